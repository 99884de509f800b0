//! LLaVA-1.5: a vision tower's patch features through a two-layer projector into a language model's sequence
//! (Liu et al. 2023, section 3).

use super::config::{LlavaConfig, Select, VisionConfig, VisionFeature};
use super::names::published_name;
use crate::artifact::{Artifact, Placement};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lm::{Llama, Token};
use nn::block::Linear;
use nn::ops::{Activation, Mask, Positions};
use nn::params::Lora;
use nn::{Params, WeightType};
use qlip::Pixels;
use qlip::bsq::Bsq;
use qlip::clip::ClipTower;
use qlip::vision::VisionTower;
use std::sync::Arc;

enum Tower {
    Clip(Box<ClipTower>),
    Qlip(Box<VisionTower>, Bsq),
}

/// The model.
pub struct Llava {
    /// Its configuration.
    pub config: LlavaConfig,
    /// The language model.
    pub lm: Arc<Llama>,
    tower: Tower,
    linear_1: Linear,
    linear_2: Linear,
    act: Activation,
    layer: usize,
    dtype: DType,
}

impl Llava {
    /// Loads a folder of any layout.
    pub fn load(artifact: &Artifact, at: &Placement) -> Result<Self> {
        let files = &artifact.files;
        let config = LlavaConfig::parse(&files.path_of("config.json"), &files.text("config.json")?)?;
        let stored = artifact.tensors()?.renamed(published_name);
        let params = Params::from_tensors(files.weights_path().display().to_string(), stored, at.dtype, &at.device);
        Self::adapted(&params.stored_as(at.weights), &config, files.adapter())
    }

    /// Takes the tensors, under their llava-hf names.
    pub fn new(p: &Params, config: &LlavaConfig) -> Result<Self> {
        Self::adapted(p, config, None)
    }

    /// The same with adapters in the language model's layers.
    pub fn adapted(p: &Params, config: &LlavaConfig, lora: Option<Lora>) -> Result<Self> {
        // blocks are for the words; what is seen stays exact
        let exact = p.clone().stored_as(p.weights().map(WeightType::for_pictures));
        let vision = exact.at("vision_tower.vision_model");
        let tower = match &config.vision_config {
            VisionConfig::Clip(c) => Tower::Clip(Box::new(ClipTower::new(&vision, c)?)),
            VisionConfig::Qlip(c) => Tower::Qlip(Box::new(VisionTower::new(&vision, c)?), Bsq::new(&c.quantizer_cfg)),
        };
        let (from, to) = (config.feature_width(), config.text_config.hidden_size);
        let (bias, std) = (config.multimodal_projector_bias, config.text_config.initializer_range);
        let projector = exact.at("multi_modal_projector");
        Ok(Self {
            lm: Arc::new(Llama::new(&p.at("language_model").adapted(lora), &config.text_config)?),
            tower,
            linear_1: Linear::new(&projector.at("linear_1"), from, to, bias, std)?,
            linear_2: Linear::new(&projector.at("linear_2"), to, to, bias, std)?,
            act: config.projector_hidden_act,
            layer: config.feature_layer()?,
            dtype: p.dtype(),
            config: config.clone(),
        })
    }

    /// Pixels along the side of a picture.
    pub fn side(&self) -> usize {
        match &self.config.vision_config {
            VisionConfig::Clip(c) => c.image_size,
            VisionConfig::Qlip(c) => c.image_size,
        }
    }

    /// Tokens that a picture becomes.
    pub fn tokens_per_picture(&self) -> usize {
        let grid = match &self.config.vision_config {
            VisionConfig::Clip(c) => c.grid(),
            VisionConfig::Qlip(c) => c.grid(),
        };
        let class = self.config.vision_feature_select_strategy == Select::Full
            && self.config.vision_feature == VisionFeature::Hidden;
        grid * grid + usize::from(class)
    }

    /// Type of the activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// What the tower sees in pixels [pictures, 3, side, side]: [pictures, tokens, feature width].
    pub fn see(&self, pixels: &Pixels) -> Result<Tensor> {
        let hidden = match &self.tower {
            Tower::Clip(tower) => tower.forward(pixels)?.hidden.swap_remove(self.layer),
            Tower::Qlip(tower, bsq) => {
                let mut out = tower.forward(pixels)?;
                match self.config.vision_feature {
                    VisionFeature::Hidden => out.hidden.swap_remove(self.layer),
                    VisionFeature::Latents => return Ok(out.latents.0),
                    VisionFeature::Codes => return bsq.quantize(&out.latents),
                }
            }
        };
        match self.config.vision_feature_select_strategy {
            Select::Full => Ok(hidden),
            Select::Default => Ok(hidden.narrow(1, 1, hidden.dim(1)? - 1)?.contiguous()?),
        }
    }

    /// What the tower sees, in the language model's width: [pictures, tokens, width].
    pub fn project(&self, seen: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.act.forward(&self.linear_1.forward(seen)?)?)
    }

    /// Embeddings [tokens, width] of ids in which every image token is a place for one row of `features` [rows, width],
    /// in order over all pictures.
    pub fn embed(&self, ids: &[Token], features: Option<&Tensor>) -> Result<Tensor> {
        let image = self.config.image_token_index;
        let places = ids.iter().filter(|&&i| i == image).count();
        let rows = features.map_or(Ok(0), |f| f.dim(0))?;
        if places != rows {
            return Err(Error::invalid(format!("{places} image tokens for {rows} rows of picture features")));
        }
        let mut parts = Vec::new();
        let mut taken = 0;
        for run in ids.chunk_by(|a, b| (*a == image) == (*b == image)) {
            match features {
                Some(f) if run[0] == image => {
                    parts.push(f.narrow(0, taken, run.len())?);
                    taken += run.len();
                }
                _ => parts.push(self.lm.embed(run, 1)?.squeeze(0)?),
            }
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Logits [batch, tokens, vocabulary] of embedded sequences [batch, tokens, width].
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.lm.hidden(x, &Positions::From(0), &Mask::Causal)?;
        self.lm.logits(&hidden, 0..self.config.text_config.vocab_size)
    }
}
