//! Training of LlamaGen's image tokenizer (Sun et al. 2024, section 2.1), with a codebook or with signs.

use super::Run;
use super::pictures::{PictureSource, broken, image_size, share, whole};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use nn::train::{LoopConfig, OptimConfig, Precision, Summary, Trainer};
use nn::{Params, checkpoint};
use qlip::data::Pictures;
use qlip::image::{Image, Preprocess};
use qlip::loss::{Lpips, LpipsConfig};
use qlip::train::{AdversaryConfig, CLIPPED_APART, VqLossConfig, VqObjective, exported};
use qlip::vq::{VqConfig, VqTokenizer};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;

/// Config of a VQ tokenizer's training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqTraining {
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
    /// Folder of the checkpoint to start from, instead of [model].
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// The photographs: see [`Pictures::open`].
    pub photos: PathBuf,
    /// Share of the pictures that may be unreadable.
    #[serde(default = "broken")]
    pub broken_share: f64,
    /// Share of scenes among the pictures.
    #[serde(default)]
    pub scene_share: f64,
    /// Smallest side of a random crop, as a share of the photograph.
    #[serde(default = "whole")]
    pub smallest_crop: f32,
    /// Pixels along the side of a picture in training; drawing may ask for other sizes.
    pub image_size: usize,
    /// Weights of the terms.
    #[serde(default)]
    pub loss: VqLossConfig,
    /// Trunk and heads of the perceptual loss.
    #[serde(default)]
    pub lpips: Option<LpipsConfig>,
    /// The other player of the adversarial loss.
    #[serde(default)]
    pub adversary: Option<AdversaryConfig>,
    /// Optimiser.
    pub optim: OptimConfig,
    /// The model: the fields of config.json.
    #[serde(default)]
    pub model: Option<VqConfig>,
}

/// Most objects in a scene.
const SCENE_OBJECTS: usize = 4;

impl VqTraining {
    /// Runs it; the folder becomes an image tokenizer that LlamaGen is trained on.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        share("scene_share", self.scene_share)?;
        share("smallest_crop", f64::from(self.smallest_crop))?;
        let (config, start) = self.model()?;
        config.check()?;
        image_size(self.image_size)?;
        if !self.image_size.is_multiple_of(config.stride()) {
            let why = format!("image_size = {}: write a multiple of the stride {}", self.image_size, config.stride());
            return Err(Error::invalid(why));
        }
        let params = Params::for_training(start, &[], self.seed, DType::F32, &run.device);
        let model = VqTokenizer::new(&params, &config)?;
        let lpips = self.lpips.as_ref().map(|c| Lpips::load(c, &run.device)).transpose()?;
        let objective = VqObjective::new(&params, model, &self.loss, lpips, self.adversary.as_ref(), self.image_size)?;
        let photos = Pictures::open(&self.photos, "train")?.allow_broken(self.broken_share);
        (run.say)(&format!("{}: {}", self.photos.display(), photos.summary()));
        let json = serde_json::to_string_pretty(&config).map_err(|e| Error::invalid(e.to_string()))?;
        let out = run.out;
        checkpoint::write_atomic(&out.join("config.json"), json.as_bytes())?;
        let source = PictureSource {
            photos: &photos,
            seed: self.seed,
            scene_share: self.scene_share,
            scene_objects: SCENE_OBJECTS,
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
        let trainer = Trainer { apart: CLIPPED_APART, ..trainer };
        source.train(
            &trainer,
            |n, shown| {
                let images: Vec<Image> = shown.into_iter().map(|s| s.image).collect();
                objective.step(n, &preprocess.normalise(&images, &device)?)
            },
            |weights| checkpoint::save(&out.join("model.safetensors"), &exported(weights).collect(), &[]),
            run.progress,
        )
    }

    fn model(&self) -> Result<(VqConfig, HashMap<String, Tensor>)> {
        match (&self.start, &self.model) {
            (Some(dir), None) => {
                let config: VqConfig = qlip::config::read_json(&dir.join("config.json"))?;
                Ok((config, checkpoint::load_dir(dir)?))
            }
            (None, Some(model)) => Ok((model.clone(), HashMap::new())),
            _ => Err(Error::invalid("give either `start` (a checkpoint folder) or a section [model]")),
        }
    }
}
