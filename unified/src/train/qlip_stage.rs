//! Training of the visual tokenizer on photographs and scenes.

use super::Run;
use super::pictures::{PictureSource, broken, share, whole};
use crate::{Error, Result};
use candle_core::DType;
use nn::train::{LoopConfig, OptimConfig, Precision, Summary, Trainer};
use nn::{Params, checkpoint};
use qlip::Qlip;
use qlip::config::QlipConfig;
use qlip::data::Pictures;
use qlip::image::{Image, Pixels, Preprocess};
use qlip::loss::{Lpips, LpipsConfig};
use qlip::tokenizer::TextTokenizer;
use qlip::train::{
    AdversaryConfig, CLIPPED_APART, LossConfig, Objective, PairBatch, Parts, STAGE2_FROZEN, Teacher, exported,
    warm_tensors,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Config of stage 1 or 2.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QlipTraining {
    /// 1: everything, aligned with text; 2: the way up from the bits, vision tower frozen, no text.
    pub stage: u8,
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
    /// Folder of the checkpoint to start from; stage 2 needs one, stage 1 may have one.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// tokenizer.json of the text tower (stage 1).
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// Folder of photographs (train-*.parquet).
    pub photos: PathBuf,
    /// Share of scenes among the pictures.
    pub scene_share: f64,
    /// Most objects in a scene (up to 9).
    #[serde(default = "four")]
    pub scene_objects: usize,
    /// Smallest side of a random crop, as a share of the photograph.
    #[serde(default = "whole")]
    pub smallest_crop: f32,
    /// Loss weights; stage 1 needs them, stage 2 has pixels alone where they are absent.
    #[serde(default)]
    pub loss: Option<LossConfig>,
    /// Trunk and heads of the perceptual loss.
    #[serde(default)]
    pub lpips: Option<LpipsConfig>,
    /// The other player of the adversarial loss.
    #[serde(default)]
    pub adversary: Option<AdversaryConfig>,
    /// Folder of a CLIP or QLIP whose features are learned too.
    #[serde(default)]
    pub teacher: Option<PathBuf>,
    /// Safetensors file or folder of CLIP, OpenCLIP or EVA weights that a new model's towers begin with.
    #[serde(default)]
    pub warm_start: Option<PathBuf>,
    /// Pictures whose graph is in memory at once; the gradient is still the whole batch's, but for the adversarial term.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Whether blocks forget their inner values and compute them again in the backward pass.
    #[serde(default)]
    pub recompute: bool,
    /// Share of the pictures that may be unreadable.
    #[serde(default = "broken")]
    pub broken_share: f64,
    /// Updates between sheets of originals and reconstructions in the folder `samples`; 0 for none.
    #[serde(default)]
    pub sample_every: usize,
    /// Optimiser.
    pub optim: OptimConfig,
    /// The model, where no checkpoint gives it: the fields of config.json.
    #[serde(default)]
    pub model: Option<QlipConfig>,
}

fn four() -> usize {
    4
}

/// Pictures on a sheet of samples.
const SHEET: usize = 8;

impl QlipTraining {
    /// Runs the stage.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        share("scene_share", self.scene_share)?;
        share("smallest_crop", f64::from(self.smallest_crop))?;
        let (config, start) = self.model()?;
        let text = if self.stage == 1 { Some(self.text(&config)?) } else { None };
        let freeze = if self.stage == 2 { STAGE2_FROZEN } else { &[] };
        let start = self.warm(start, &config, run.out)?;
        let params = Params::for_training(start.clone(), freeze, self.seed, DType::F32, &run.device);
        let model = Qlip::new(&params, &config, self.stage == 1)?;
        let preprocess = Preprocess::clip(config.vision_config.image_size);
        let parts = Parts {
            lpips: self.lpips.as_ref().map(|c| Lpips::load(c, &run.device)).transpose()?,
            adversary: self.adversary.clone(),
            teacher: self.teacher.as_ref().map(|t| Teacher::load(t, &run.device)).transpose()?,
            micro_batch: self.micro_batch,
        };
        let objective =
            Objective::new(&params, model, self.stage, &self.loss.clone().unwrap_or_default(), &preprocess, parts)?;
        let photos = Pictures::open(&self.photos, "train")?.allow_broken(self.broken_share);
        (run.say)(&format!("{}: {}", self.photos.display(), photos.summary()));
        if self.loss.as_ref().is_none_or(|l| l.alignment > 0.0) {
            photos.needs_words(&self.photos)?;
        }
        let out = run.out;
        let json = serde_json::to_string_pretty(&config.published()).map_err(|e| Error::invalid(e.to_string()))?;
        checkpoint::write_atomic(&out.join("config.json"), json.as_bytes())?;
        let json = serde_json::to_string_pretty(&preprocess).map_err(|e| Error::invalid(e.to_string()))?;
        checkpoint::write_atomic(&out.join("preprocessor_config.json"), json.as_bytes())?;
        self.copy_tokenizer(out)?;
        let steps = LoopConfig {
            steps: self.steps,
            batch_size: self.batch_size,
            checkpoint_every: self.checkpoint_every,
            seed: self.seed,
            precision: self.precision,
        };
        let trainer = Trainer::new(steps, &self.optim, &params, run.out, run.resume);
        let trainer = Trainer { apart: CLIPPED_APART, recompute: self.recompute, ..trainer };
        let source = PictureSource {
            photos: &photos,
            seed: self.seed,
            scene_share: self.scene_share,
            scene_objects: self.scene_objects,
            smallest_crop: self.smallest_crop,
            side: preprocess.crop_size,
        };
        let vars = params.vars();
        source.train(
            &trainer,
            |n, shown| {
                let (images, captions): (Vec<Image>, Vec<String>) =
                    shown.into_iter().map(|s| (s.image, s.words)).unzip();
                let pixels = preprocess.normalise(&images, &run.device)?;
                let (text_ids, text_tokens) = match &text {
                    Some(text) => text.encode_batch(&captions)?,
                    None => (Vec::new(), 0),
                };
                let mut ids = HashMap::new();
                let caption_of = captions
                    .iter()
                    .map(|c| {
                        let next = ids.len();
                        *ids.entry(c.as_str()).or_insert(next)
                    })
                    .collect();
                let batch = PairBatch { pixels, text_ids, text_tokens, caption_of };
                if self.sample_every > 0 && n.is_multiple_of(self.sample_every) {
                    sheet(objective.model(), &preprocess, &batch.pixels, &out.join("samples"), n)?;
                }
                objective.step(n, &batch, &vars, &mut trainer.numbers.borrow_mut())
            },
            |weights| {
                // what the stage does not touch (the text tower in stage 2) stays in the checkpoint
                let mut all: BTreeMap<_, _> = start.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                all.extend(exported(weights));
                checkpoint::save(&out.join("model.safetensors"), &all, &[])
            },
            run.progress,
        )
    }

    /// First values: of the checkpoint, or of published towers, of which warm-start.txt says what was taken.
    fn warm(
        &self,
        start: HashMap<String, candle_core::Tensor>,
        config: &QlipConfig,
        out: &Path,
    ) -> Result<HashMap<String, candle_core::Tensor>> {
        let Some(from) = &self.warm_start else { return Ok(start) };
        if self.start.is_some() {
            return Err(Error::invalid("`start` and `warm_start` both say what to begin with; give one"));
        }
        let file = if from.is_dir() { checkpoint::load_dir(from)? } else { checkpoint::load(from)? };
        let warm = warm_tensors(from, file, config)?;
        let told = format!("{} tensors taken\n{}\n", warm.tensors.len(), warm.left_out.join("\n"));
        checkpoint::write_atomic(&out.join("warm-start.txt"), told.as_bytes())?;
        Ok(warm.tensors)
    }

    fn model(&self) -> Result<(QlipConfig, HashMap<String, candle_core::Tensor>)> {
        if !(1..=2).contains(&self.stage) {
            return Err(Error::invalid(format!("stage = {}: write 1 or 2", self.stage)));
        }
        if !(1..=9).contains(&self.scene_objects) {
            return Err(Error::invalid(format!("scene_objects = {}: a scene has 1 to 9", self.scene_objects)));
        }
        if self.stage == 1 && self.loss.is_none() {
            return Err(Error::invalid("stage 1 needs a section [loss]"));
        }
        match (&self.start, &self.model) {
            (Some(dir), None) => {
                let config = QlipConfig::from_file(&dir.join("config.json"))?;
                Ok((config, checkpoint::load_dir(dir)?))
            }
            (None, Some(model)) if self.stage == 1 => {
                model.check()?;
                Ok((model.clone(), HashMap::new()))
            }
            _ => Err(Error::invalid("give either `start` (a checkpoint folder) or, in stage 1, a section [model]")),
        }
    }

    fn tokenizer_file(&self) -> Option<PathBuf> {
        self.tokenizer.clone().or_else(|| self.start.as_ref().map(|d| d.join("tokenizer.json")))
    }

    fn text(&self, config: &QlipConfig) -> Result<TextTokenizer> {
        let path =
            self.tokenizer_file().ok_or_else(|| Error::invalid("stage 1 needs `tokenizer`, a tokenizer.json"))?;
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let t = &config.text_config;
        TextTokenizer::from_bytes(&path, &bytes, t.max_position_embeddings, t.eos_token_id)
    }

    fn copy_tokenizer(&self, out: &Path) -> Result<()> {
        if let Some(path) = self.tokenizer_file().filter(|p| p.exists()) {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            checkpoint::write_atomic(&out.join("tokenizer.json"), &bytes)?;
        }
        Ok(())
    }
}

/// A PNG of pictures above their reconstructions.
fn sheet(model: &Qlip, preprocess: &Preprocess, pixels: &Pixels, dir: &Path, n: usize) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let some = Pixels(pixels.0.narrow(0, 0, SHEET.min(pixels.0.dim(0)?))?.contiguous()?);
    let latents = nn::Exec::exact(|| model.encode(&some))?.latents;
    let back = model.paint(&model.expand(&model.bsq.quantize(&latents)?)?)?.0;
    let mut images = preprocess.images(&some)?;
    let columns = images.len();
    images.extend(preprocess.images(&Pixels(back.0.detach()))?);
    Image::table(&images, columns, 2).save_png(&dir.join(format!("{n:06}.png")))
}
