//! Training of the visual tokenizer on photographs and scenes.

use super::Run;
use crate::photos::augment;
use crate::scenes::{Scene, SceneRng, Split, caption, render};
use crate::{Error, Result};
use candle_core::DType;
use nn::train::{LoopConfig, OptimConfig, Precision, Trainer};
use nn::{Params, checkpoint, rng};
use qlip::Qlip;
use qlip::config::QlipConfig;
use qlip::data::Pictures;
use qlip::image::{Image, Preprocess};
use qlip::tokenizer::TextTokenizer;
use qlip::train::{LossWeights, PairBatch, STAGE2_FROZEN, stage1, stage2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

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
    /// Loss weights of stage 1.
    #[serde(default)]
    pub loss: Option<LossWeights>,
    /// Optimiser.
    pub optim: OptimConfig,
    /// The model, where no checkpoint gives it: the fields of config.json.
    #[serde(default)]
    pub model: Option<QlipConfig>,
}

fn four() -> usize {
    4
}
fn whole() -> f32 {
    1.0
}

impl QlipTraining {
    /// Runs the stage.
    pub fn run(&self, run: &mut Run) -> Result<()> {
        let (config, start) = self.model()?;
        let text = if self.stage == 1 { Some(self.text(&config)?) } else { None };
        let freeze = if self.stage == 2 { STAGE2_FROZEN } else { &[] };
        let params = Params::for_training(start.clone(), freeze, self.seed, DType::F32, &run.device);
        let model = Qlip::new(&params, &config, self.stage == 1)?;
        let preprocess = Preprocess::clip(config.vision_config.image_size);
        let photos = Pictures::open(&self.photos, "train")?;
        let out = run.out;
        let json = serde_json::to_string_pretty(&config).map_err(|e| Error::invalid(e.to_string()))?;
        checkpoint::write_atomic(&out.join("config.json"), json.as_bytes())?;
        let json = serde_json::to_string_pretty(&preprocess).map_err(|e| Error::invalid(e.to_string()))?;
        checkpoint::write_atomic(&out.join("preprocessor_config.json"), json.as_bytes())?;
        self.copy_tokenizer(out)?;
        let trainer = Trainer {
            config: LoopConfig {
                steps: self.steps,
                batch_size: self.batch_size,
                checkpoint_every: self.checkpoint_every,
                seed: self.seed,
                precision: self.precision,
            },
            optim: self.optim.clone(),
            params: &params,
            out,
            resume: run.resume,
        };
        trainer.run(
            |n| {
                let pairs = self.pictures(&photos, n, preprocess.crop_size)?;
                let (images, captions): (Vec<Image>, Vec<String>) = pairs.into_iter().unzip();
                let pixels = preprocess.normalise(&images, &run.device)?;
                match (&text, &self.loss) {
                    (Some(text), Some(weights)) => {
                        let (text_ids, text_tokens) = text.encode_batch(&captions)?;
                        let mut ids = HashMap::new();
                        let caption_of = captions
                            .iter()
                            .map(|c| {
                                let next = ids.len();
                                *ids.entry(c.as_str()).or_insert(next)
                            })
                            .collect();
                        stage1(&model, &PairBatch { pixels, text_ids, text_tokens, caption_of }, weights)
                    }
                    _ => stage2(&model, &pixels),
                }
            },
            |weights| {
                // what the stage does not touch (the text tower in stage 2) stays in the checkpoint
                let mut all: BTreeMap<_, _> = start.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                all.extend(weights.iter().map(|(k, v)| (k.clone(), v.clone())));
                checkpoint::save(&out.join("model.safetensors"), &all, &[])
            },
            |p| (run.progress)(p),
        )
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

    fn copy_tokenizer(&self, out: &std::path::Path) -> Result<()> {
        if let Some(path) = self.tokenizer_file().filter(|p| p.exists()) {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            checkpoint::write_atomic(&out.join("tokenizer.json"), &bytes)?;
        }
        Ok(())
    }

    /// Pictures and captions of update `n`, from nothing but the seed and n.
    fn pictures(&self, photos: &Pictures, n: usize, side: usize) -> Result<Vec<(Image, String)>> {
        (0..self.batch_size)
            .into_par_iter()
            .map(|i| {
                let mut r = rng::keyed(self.seed, &[n as u64, i as u64]);
                if f64::from(rng::uniform(&mut r)) < self.scene_share {
                    let mut s = SceneRng::new(Split::Train, self.seed, (n * self.batch_size + i) as u64);
                    let scene = Scene::random(&mut s, Split::Train, 1, self.scene_objects);
                    Ok((render(&scene, side), caption(&scene)))
                } else {
                    let (at, image) = photos.draw(&mut r)?;
                    Ok((augment(&image, side, self.smallest_crop, &mut r), photos.words(at)))
                }
            })
            .collect()
    }
}
