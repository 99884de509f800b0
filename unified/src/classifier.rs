//! A convolutional classifier of small pictures: what measures drawings must not be the model that drew them.

use crate::photos::{MOST_PIXELS, centre};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lm::sample::argmax;
use nn::ops::{self, Activation};
use nn::{Init, Params};
use qlip::image::{Image, Pixels, Preprocess};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Groups of every norm.
const GROUPS: usize = 8;

/// Pictures that go through the network at once where nothing is learned.
const BATCH: usize = 100;

/// What config.json calls the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelType {
    /// This one.
    Classifier,
}

/// config.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Always "classifier".
    pub model_type: ModelType,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Pixels along the side of a picture; the first layer works at half of it.
    pub image_size: usize,
    /// Channels of the first layer, then of each halving of the resolution; the last are the features.
    pub widths: Vec<usize>,
}

impl ClassifierConfig {
    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        let halvings = self.widths.len();
        if halvings == 0 || self.widths.iter().any(|w| *w == 0 || !w.is_multiple_of(GROUPS)) {
            return Err(Error::invalid(format!("classifier: widths must be multiples of {GROUPS}, one at least")));
        }
        if halvings > 16 || !self.image_size.is_multiple_of(1 << halvings) || self.image_size == 0 {
            let why = format!("image_size {} cannot be halved {halvings} times", self.image_size);
            return Err(Error::invalid(format!("classifier: {why}")));
        }
        if self.image_size > MOST_PIXELS {
            let why = format!("classifier: image_size {} is beyond {MOST_PIXELS}", self.image_size);
            return Err(Error::invalid(why));
        }
        if self.classes.len() < 2 {
            return Err(Error::invalid("classifier: needs pictures of two classes or more"));
        }
        Ok(())
    }
}

/// Convolution, group norm, SiLU.
#[derive(Debug, Clone)]
struct Layer {
    kernels: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: usize,
}

impl Layer {
    fn new(p: &Params, input: usize, output: usize, stride: usize) -> Result<Self> {
        let std = (2.0 / (9 * input) as f32).sqrt();
        Ok(Self {
            kernels: p.at("conv").get((output, input, 3, 3), "weight", Init::Normal(std))?,
            weight: p.at("norm").get(output, "weight", Init::Const(1.0))?,
            bias: p.at("norm").get(output, "bias", Init::Const(0.0))?,
            stride,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = ops::conv2d(x, &self.kernels, 1, self.stride)?;
        let y = ops::group_norm(&y, &self.weight, &self.bias, GROUPS, 1e-5)?;
        Ok(Activation::Silu.forward(&y)?)
    }
}

/// The network.
#[derive(Debug, Clone)]
pub struct Classifier {
    /// Its configuration.
    pub config: ClassifierConfig,
    stem: Layer,
    /// At each resolution one layer that halves it and one beside the residual stream.
    stages: Vec<[Layer; 2]>,
    weight: Tensor,
    bias: Tensor,
}

impl Classifier {
    /// Takes the model's tensors.
    pub fn new(p: &Params, config: &ClassifierConfig) -> Result<Self> {
        config.check()?;
        let stage = |(i, w): (usize, &[usize])| -> Result<[Layer; 2]> {
            let p = p.at("stages").at(i);
            Ok([Layer::new(&p.at("down"), w[0], w[1], 2)?, Layer::new(&p.at("residual"), w[1], w[1], 1)?])
        };
        let (first, last) = (config.widths[0], config.widths[config.widths.len() - 1]);
        let head = p.at("head");
        Ok(Self {
            stem: Layer::new(&p.at("stem"), 3, first, 1)?,
            stages: config.widths.windows(2).enumerate().map(stage).collect::<Result<_>>()?,
            weight: head.get((config.classes.len(), last), "weight", Init::Normal(0.01))?,
            bias: head.get(config.classes.len(), "bias", Init::Const(0.0))?,
            config: config.clone(),
        })
    }

    /// From a folder with config.json and model.safetensors.
    pub fn load(dir: &Path) -> Result<Self> {
        let config: ClassifierConfig = qlip::config::read_json(&dir.join("config.json"))?;
        Self::new(&Params::from_dir(dir, DType::F32, &candle_core::Device::Cpu)?, &config)
    }

    /// Features [pictures, width] of pixels in -1..1: the mean over places of the last layer.
    pub fn features(&self, pixels: &Pixels) -> Result<Tensor> {
        let mut x = self.stem.forward(&ops::halve(&pixels.0)?)?;
        for [down, residual] in &self.stages {
            x = down.forward(&x)?;
            x = (&x + residual.forward(&x)?)?;
        }
        Ok(x.flatten_from(2)?.mean(2)?)
    }

    /// Logits [pictures, classes] of features.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(features, &self.weight, Some(&self.bias))?)
    }

    /// Features and the likeliest class of each picture of any size.
    pub fn look(&self, images: &[Image]) -> Result<Vec<(Vec<f32>, usize)>> {
        let side = self.config.image_size;
        let preprocess = Preprocess::half(side);
        let mut out = Vec::with_capacity(images.len());
        for chunk in images.chunks(BATCH) {
            let whole: Vec<Image> = chunk.par_iter().map(|i| centre(i, side)).collect();
            let features = self.features(&preprocess.normalise(&whole, self.weight.device())?)?;
            let logits = self.logits(&features)?.to_vec2::<f32>()?;
            out.extend(features.to_vec2::<f32>()?.into_iter().zip(logits.iter().map(|l| argmax(l))));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_become_features_and_every_tensor_learns() {
        let config = ClassifierConfig {
            model_type: ModelType::Classifier,
            classes: vec!["a".into(), "b".into(), "c".into()],
            image_size: 8,
            widths: vec![8, 16],
        };
        let params = Params::for_training(Default::default(), &[], 1, DType::F32, &candle_core::Device::Cpu);
        let model = Classifier::new(&params, &config).unwrap();
        let image = |v: u8| Image::from_rgb(8, 8, (0..192).map(|i| (i as u8).wrapping_mul(v)).collect());
        let seen = model.look(&[image(3), image(7)]).unwrap();
        assert!(seen.len() == 2 && seen.iter().all(|(f, class)| f.len() == 16 && *class < 3));
        let pixels = Preprocess::half(8).normalise(&[image(3), image(7)], &candle_core::Device::Cpu).unwrap();
        let logits = model.logits(&model.features(&pixels).unwrap()).unwrap();
        let grads = ops::cross_entropy(&logits, &[0, 2]).unwrap().mean_all().unwrap().backward().unwrap();
        assert!(params.vars().values().all(|v| grads.get(v.as_tensor()).is_some()));
        assert!(ClassifierConfig { image_size: 6, ..config }.check().is_err());
    }
}
