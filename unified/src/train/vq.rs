//! Training of LlamaGen's image tokenizer (Sun et al. 2024, section 2.1), with a codebook or with signs.

use super::pictures::{PictureSource, Shown, image_size, shares};
use super::{Run, sheet, write_json};
use crate::data::DataConfig;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use nn::train::{At, Measure, OptimConfig, Place, RunConfig, Sheet, StepOutput, Summary, Task, of_shares};
use nn::{Params, checkpoint};
use qlip::image::{Image, Pixels, Preprocess};
use qlip::loss::{Lpips, LpipsConfig};
use qlip::train::{AdversaryConfig, CLIPPED_APART, VqLossConfig, VqObjective, exported};
use qlip::vq::{VqConfig, VqTokenizer};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Config of a VQ tokenizer's training. With `run.micro_batch`, or several processes, the terms that look at a batch as a whole (entropy
/// of the codes, discriminator) look at its parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VqTraining {
    /// Steps, batches, checkpoints.
    pub run: RunConfig,
    /// Pictures and scenes.
    pub data: Vec<DataConfig>,
    /// Folder of the checkpoint to start from, instead of [model].
    #[serde(default)]
    pub start: Option<PathBuf>,
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

/// What a step needs.
struct Quantising {
    source: PictureSource,
    objective: VqObjective,
    preprocess: Preprocess,
    device: Device,
}

impl VqTraining {
    /// Runs it; the folder becomes an image tokenizer that LlamaGen is trained on.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        let (config, start) = self.model()?;
        config.check()?;
        image_size(self.image_size)?;
        if !self.image_size.is_multiple_of(config.stride()) {
            let why = format!("image_size = {}: write a multiple of the stride {}", self.image_size, config.stride());
            return Err(Error::invalid(why));
        }
        let params = Params::for_training(start, &[], self.run.seed, DType::F32, &run.device);
        let model = VqTokenizer::new(&params, &config)?;
        let lpips = self.lpips.as_ref().map(|c| Lpips::load(c, &run.device)).transpose()?;
        let objective = VqObjective::new(&params, model, &self.loss, lpips, self.adversary.as_ref(), self.image_size)?;
        let about = (self.image_size, self.run.seed, self.run.held_out());
        let source = PictureSource::open(&self.data, about, run.say)?;
        write_json(run, "config.json", &config)?;
        let preprocess = Preprocess::half(self.image_size);
        let task = Quantising { source, objective, preprocess, device: run.device.clone() };
        let mut trainer = run.trainer(&self.run, &self.optim, &params);
        trainer.apart = CLIPPED_APART;
        let done = trainer.run(&task, run.progress);
        run.name_broken(&task.source.broken())?;
        done
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

impl Quantising {
    fn pixels(&self, shown: Vec<Shown>) -> Result<Pixels> {
        let images: Vec<Image> = shown.into_iter().map(|s| s.image).collect();
        self.preprocess.normalise(&images, &self.device)
    }
}

impl Task for Quantising {
    type Batch = Vec<Shown>;

    fn batch(&self, place: &Place) -> Result<Vec<Shown>> {
        self.source.batch(place)
    }

    fn gradients(&self, at: &At, batch: Vec<Shown>) -> Result<StepOutput> {
        let parts = shares(batch, at.run.micro_batch, at.run.batch_size);
        of_shares(at, parts, |part| self.objective.step(at.step, &self.pixels(part)?))
    }

    fn validate(&self, batch: Vec<Shown>) -> Result<Vec<Measure>> {
        let n = batch.len();
        let (mse, psnr) = self.objective.validate(&self.pixels(batch)?)?;
        Ok(vec![Measure::mean("loss", mse, n), Measure::mean("psnr", psnr, n)])
    }

    fn sheet(&self, _: &BTreeMap<String, Tensor>) -> Result<Option<Sheet>> {
        let pixels = self.pixels(self.source.held_out(sheet::PICTURES)?)?;
        let back = self.objective.rebuilt(&pixels)?;
        sheet::table(vec![self.preprocess.images(&pixels)?, self.preprocess.images(&back)?])
    }

    fn export(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        checkpoint::save(&dir.join("model.safetensors"), &exported(weights).collect(), &[])
    }
}
