//! Training of the classifier that measures drawings: cross-entropy, random crops and flips.

use super::Run;
use super::pictures::{PictureSource, broken, share};
use crate::classifier::{Classifier, ClassifierConfig, ModelType};
use crate::{Error, Result};
use candle_core::DType;
use nn::train::{LoopConfig, OptimConfig, Precision, StepOutput, Summary, Trainer};
use nn::{Params, checkpoint, ops};
use qlip::data::Pictures;
use qlip::image::{Image, Preprocess};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;

/// Config of a classifier's training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTraining {
    /// Updates in all.
    pub steps: usize,
    /// Pictures an update.
    pub batch_size: usize,
    /// Updates between checkpoints.
    pub checkpoint_every: usize,
    /// Seed.
    pub seed: u64,
    /// Arithmetic of the products.
    #[serde(default)]
    pub precision: Precision,
    /// The photographs, with classes: see [`Pictures::open`].
    pub photos: PathBuf,
    /// Share of the pictures that may be unreadable.
    #[serde(default = "broken")]
    pub broken_share: f64,
    /// Smallest side of a random crop, as a share of the photograph.
    pub smallest_crop: f32,
    /// Pixels along the side of a picture; the first layer works at half of it.
    pub image_size: usize,
    /// Channels of the first layer, then of each halving of the resolution.
    pub widths: Vec<usize>,
    /// Optimiser.
    pub optim: OptimConfig,
}

impl ClassifierTraining {
    /// Runs it.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        share("smallest_crop", f64::from(self.smallest_crop))?;
        let photos = Pictures::open(&self.photos, "train")?.allow_broken(self.broken_share);
        (run.say)(&format!("{}: {}", self.photos.display(), photos.summary()));
        photos.labels()?;
        let config = ClassifierConfig {
            model_type: ModelType::Classifier,
            classes: photos.classes.clone(),
            image_size: self.image_size,
            widths: self.widths.clone(),
        };
        let params = Params::for_training(HashMap::new(), &[], self.seed, DType::F32, &run.device);
        let model = Classifier::new(&params, &config)?;
        let json = serde_json::to_string_pretty(&config).map_err(|e| Error::invalid(e.to_string()))?;
        let out = run.out;
        checkpoint::write_atomic(&out.join("config.json"), json.as_bytes())?;
        let source = PictureSource {
            photos: &photos,
            seed: self.seed,
            scene_share: 0.0,
            scene_objects: 1,
            smallest_crop: self.smallest_crop,
            side: self.image_size,
        };
        let preprocess = Preprocess::half(self.image_size);
        let steps = LoopConfig {
            steps: self.steps,
            batch_size: self.batch_size,
            checkpoint_every: self.checkpoint_every,
            seed: self.seed,
            precision: self.precision,
        };
        let device = run.device.clone();
        let trainer = Trainer::new(steps, &self.optim, &params, out, run.resume);
        source.train(
            &trainer,
            |_, shown| {
                // no scene is among them, and every photograph has a class
                let targets: Vec<u32> = shown.iter().filter_map(|s| s.class).map(|c| c as u32).collect();
                let images: Vec<Image> = shown.into_iter().map(|s| s.image).collect();
                let logits = model.logits(&model.features(&preprocess.normalise(&images, &device)?)?)?;
                let loss = ops::cross_entropy(&logits, &targets)?.mean_all()?;
                let rows = logits.to_vec2::<f32>()?;
                let right = rows.iter().zip(&targets).filter(|(r, t)| lm::sample::argmax(r) == **t as usize).count();
                StepOutput::of(&loss, vec![("accuracy", right as f64 / targets.len().max(1) as f64)])
            },
            |weights| checkpoint::save(&out.join("model.safetensors"), weights, &[]),
            run.progress,
        )
    }
}
