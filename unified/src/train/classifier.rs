//! Training of the classifier that measures drawings: cross-entropy, random crops and flips.

use super::pictures::{PictureSource, Shown, shares};
use super::{Run, write_json};
use crate::Result;
use crate::classifier::{Classifier, ClassifierConfig, ModelType};
use crate::data::DataConfig;
use candle_core::{DType, Device, Tensor};
use nn::train::{At, Measure, OptimConfig, Place, RunConfig, StepOutput, Summary, Task, in_parts};
use nn::{Params, checkpoint, ops};
use qlip::image::{Image, Preprocess};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Config of a classifier's training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ClassifierTraining {
    /// Steps, batches, checkpoints.
    pub run: RunConfig,
    /// The photographs, with classes: one source.
    pub data: Vec<DataConfig>,
    /// Pixels along the side of a picture; the first layer works at half of it.
    pub image_size: usize,
    /// Channels of the first layer, then of each halving of the resolution.
    pub widths: Vec<usize>,
    /// Optimiser.
    pub optim: OptimConfig,
}

/// What a step needs.
struct Classifying {
    source: PictureSource,
    model: Classifier,
    preprocess: Preprocess,
    device: Device,
}

impl ClassifierTraining {
    /// Runs it.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        let side = self.image_size;
        let source = PictureSource::open(&self.data, (side, self.run.seed, self.run.held_out()), run.say)?;
        source.only()?.labels()?;
        let config = ClassifierConfig {
            model_type: ModelType::Classifier,
            classes: source.only()?.classes.clone(),
            image_size: self.image_size,
            widths: self.widths.clone(),
        };
        let params = Params::for_training(HashMap::new(), &[], self.run.seed, DType::F32, &run.device);
        let model = Classifier::new(&params, &config)?;
        write_json(run, "config.json", &config)?;
        let task = Classifying { source, model, preprocess: Preprocess::half(side), device: run.device.clone() };
        let done = run.trainer(&self.run, &self.optim, &params).run(&task, run.progress);
        run.name_broken(&task.source.broken())?;
        done
    }
}

impl Classifying {
    /// The sum of the losses, and how many are right.
    fn losses(&self, shown: Vec<Shown>) -> Result<(Tensor, f64, usize)> {
        // no scene is among them, and every photograph has a class
        let targets: Vec<u32> = shown.iter().filter_map(|s| s.class).map(|c| c as u32).collect();
        let images: Vec<Image> = shown.into_iter().map(|s| s.image).collect();
        let logits = self.model.logits(&self.model.features(&self.preprocess.normalise(&images, &self.device)?)?)?;
        let loss = ops::cross_entropy(&logits, &targets)?.sum_all()?;
        let rows = logits.to_vec2::<f32>()?;
        let right = rows.iter().zip(&targets).filter(|(r, t)| lm::sample::argmax(r) == **t as usize).count();
        Ok((loss, right as f64, targets.len()))
    }
}

impl Task for Classifying {
    type Batch = Vec<Shown>;

    fn batch(&self, place: &Place) -> Result<Vec<Shown>> {
        self.source.batch(place)
    }

    fn gradients(&self, at: &At, batch: Vec<Shown>) -> Result<StepOutput> {
        let all = at.run.batch_size;
        in_parts(at, shares(batch, at.run.micro_batch, all), |(part, _)| {
            let (loss, right, _) = self.losses(part)?;
            Ok(((loss / all as f64)?, vec![("accuracy", right / all as f64)]))
        })
    }

    fn validate(&self, batch: Vec<Shown>) -> Result<Vec<Measure>> {
        let (loss, right, n) = self.losses(batch)?;
        let count = n as f64;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        Ok(vec![Measure { name: "loss", sum: loss, count }, Measure { name: "accuracy", sum: right, count }])
    }

    fn export(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        checkpoint::save(&dir.join("model.safetensors"), weights, &[])
    }
}
