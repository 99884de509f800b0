//! Training of LlamaGen by class (Sun et al. 2024, section 2.2) on the tokens of any image tokenizer.

use super::Run;
use crate::files::Placement;
use crate::photos::Photos;
use crate::visual::VisualTokenizer;
use crate::{Error, Result};
use candle_core::DType;
use lm::llamagen::{Condition, LlamaGen, LlamaGenConfig, ModelType};
use nn::train::{LoopConfig, OptimConfig, Precision, StepOutput, Trainer};
use nn::{Params, checkpoint, ops, rng};
use qlip::Image;
use qlip::resample::{resize, resize_window};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Pictures that are encoded between two looks at the clock.
const CHUNK: usize = 512;

/// Config of a LlamaGen training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaGenTraining {
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
    /// Folder of the image tokenizer: QLIP or LlamaGen's VQ.
    pub tokenizer: PathBuf,
    /// Bits of a sub-token of a QLIP tokenizer; the largest divisor up to 14 if absent.
    #[serde(default)]
    pub group_bits: Option<usize>,
    /// Cells along the side, for a VQ tokenizer; pictures of 256 pixels if absent.
    #[serde(default)]
    pub grid: Option<usize>,
    /// Folder of photographs (train-*.parquet) with classes.
    pub photos: PathBuf,
    /// Codes of each picture that are made beforehand: 1 the whole, 2 mirrored too, 10 four corners and the centre, mirrored
    /// too (LlamaGen's ten-crop).
    pub crops: usize,
    /// Side of a corner's crop as a share of the picture's, with 10 crops.
    #[serde(default = "corner")]
    pub crop_share: f64,
    /// Optimiser.
    pub optim: OptimConfig,
    /// A published size: "B", "L", ...
    #[serde(default)]
    pub preset: Option<String>,
    /// The fields of config.json, instead; what the tokenizer decides is filled in.
    #[serde(default)]
    pub model: Option<LlamaGenConfig>,
}

fn corner() -> f64 {
    0.9
}

impl LlamaGenTraining {
    /// Runs it; the folder becomes a model that `unified generate --class` draws with, image tokenizer included.
    pub fn run(&self, run: &mut Run) -> Result<()> {
        let placement = Placement { device: run.device.clone(), ..Placement::cpu() };
        let visual = VisualTokenizer::load(&self.tokenizer, self.group_bits, self.grid, &placement)?;
        let photos = Photos::open(&self.photos, "train")?;
        let config = self.config(&visual, photos.0.classes.len())?;
        let json = serde_json::to_string_pretty(&config).map_err(|e| Error::invalid(e.to_string()))?;
        checkpoint::write_atomic(&run.out.join("config.json"), json.as_bytes())?;
        self.copy_tokenizer(&visual, run.out)?;
        let tokens = self.tokens(&visual, &photos, &run.out.join("codes.safetensors"))?;
        let params = Params::for_training(HashMap::new(), &[], self.seed, DType::F32, &run.device);
        let model = LlamaGen::new(&params, &config)?;
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
            out: run.out,
            resume: run.resume,
        };
        let out = run.out;
        trainer.run(
            |n| {
                let mut r = rng::keyed(self.seed, &[n as u64]);
                let (mut classes, mut drop, mut targets) = (Vec::new(), Vec::new(), Vec::new());
                for _ in 0..self.batch_size {
                    let (picture, crop) = (rng::below(&mut r, photos.len()), rng::below(&mut r, self.crops));
                    classes.push(photos.0.labels[picture] as u32);
                    drop.push(f64::from(rng::uniform(&mut r)) < config.class_dropout_prob);
                    targets.extend(tokens.get(picture * self.crops + crop));
                }
                let logits = model.train_logits(&Condition::Classes(classes), &drop, &targets)?;
                let loss = ops::cross_entropy(&logits.flatten_to(1)?, &targets)?.mean_all()?;
                Ok(StepOutput { loss, metrics: Vec::new() })
            },
            |weights| checkpoint::save(&out.join("model.safetensors"), weights, &[]),
            |p| (run.progress)(p),
        )
    }

    fn config(&self, visual: &VisualTokenizer, classes: usize) -> Result<LlamaGenConfig> {
        let size = match (&self.preset, &self.model) {
            (Some(name), None) => LlamaGenConfig::preset(name, ModelType::C2i, visual.grid())?,
            (None, Some(model)) => model.clone(),
            _ => return Err(Error::invalid("give either `preset` (a published size) or a section [model]")),
        };
        if size.model_type != ModelType::C2i {
            return Err(Error::invalid("[model]: training knows classes only; leave model_type out or write \"c2i\""));
        }
        if !matches!(self.crops, 1 | 2 | 10) {
            return Err(Error::invalid(format!("crops = {}: write 1, 2 or 10", self.crops)));
        }
        if !(self.crop_share > 0.0 && self.crop_share <= 1.0) {
            return Err(Error::invalid(format!("crop_share = {}: write a share of the side", self.crop_share)));
        }
        let config = LlamaGenConfig {
            vocab_size: visual.vocab(),
            sub_tokens: visual.sub_tokens(),
            block_size: visual.grid() * visual.grid() * visual.sub_tokens(),
            num_classes: classes,
            ..size
        };
        config.check()?;
        Ok(config)
    }

    /// The image tokenizer beside the model, so that the folder draws by itself.
    fn copy_tokenizer(&self, visual: &VisualTokenizer, out: &Path) -> Result<()> {
        let dir = out.join(visual.folder());
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        for name in ["config.json", "preprocessor_config.json", "model.safetensors"] {
            let from = self.tokenizer.join(name);
            if from.is_file() {
                let bytes = std::fs::read(&from).map_err(Error::io(&from))?;
                checkpoint::write_atomic(&dir.join(name), &bytes)?;
            }
        }
        Ok(())
    }

    /// Tokens of all crops of all pictures, made once and kept beside the model.
    fn tokens(&self, visual: &VisualTokenizer, photos: &Photos, path: &Path) -> Result<PackedTokens> {
        let (count, per) = (photos.len() * self.crops, visual.grid() * visual.grid() * visual.sub_tokens());
        let bits = (visual.vocab().max(2) - 1).ilog2() as usize + 1;
        if path.is_file() {
            let found = PackedTokens::load(path)?;
            if (found.count, found.per, found.bits) == (count, per, bits) {
                return Ok(found);
            }
            return Err(Error::bad_file(path, "codes of another training; remove the file, or choose another folder"));
        }
        let mut all = PackedTokens::new(per, bits);
        let pictures: Vec<usize> = (0..photos.len()).collect();
        for chunk in pictures.chunks(CHUNK) {
            let images: Vec<Image> = chunk
                .par_iter()
                .flat_map_iter(|&i| (0..self.crops).map(move |c| (i, c)))
                .map(|(i, c)| self.crop(&photos.0.images[i], c, visual.side()))
                .collect();
            for t in visual.tokens(&images)? {
                all.push(&t);
            }
        }
        all.save(path)?;
        Ok(all)
    }

    fn crop(&self, image: &Image, n: usize, side: usize) -> Image {
        let (w, h) = (image.width(), image.height());
        let (cell, mirrored) = if self.crops == 10 { (n / 2, n % 2 == 1) } else { (4, n == 1) };
        let short = w.min(h);
        let keep = if self.crops == 10 { ((short as f64 * self.crop_share).round() as usize).max(1) } else { short };
        let (right, bottom) = (w - keep, h - keep);
        let at = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right / 2, bottom / 2)][cell];
        let cut = resize_window(image, (w, h), at, (keep, keep));
        let out = resize(&cut, side, side);
        if mirrored { out.flipped() } else { out }
    }
}

/// Tokens of many pictures, each token in as few bits as the vocabulary needs.
struct PackedTokens {
    count: usize,
    per: usize,
    bits: usize,
    words: Vec<u8>,
}

impl PackedTokens {
    fn new(per: usize, bits: usize) -> Self {
        Self { count: 0, per, bits, words: Vec::new() }
    }

    /// Bytes a picture.
    fn stride(&self) -> usize {
        (self.per * self.bits).div_ceil(8)
    }

    fn push(&mut self, tokens: &[u32]) {
        let start = self.words.len();
        self.words.resize(start + self.stride(), 0);
        for (i, token) in tokens.iter().enumerate() {
            for bit in 0..self.bits {
                let at = i * self.bits + bit;
                self.words[start + at / 8] |= ((token >> bit & 1) as u8) << (at % 8);
            }
        }
        self.count += 1;
    }

    fn get(&self, n: usize) -> impl Iterator<Item = u32> {
        let row = &self.words[n * self.stride()..(n + 1) * self.stride()];
        (0..self.per).map(move |i| {
            (0..self.bits).fold(0, |token, bit| {
                let at = i * self.bits + bit;
                token | u32::from(row[at / 8] >> (at % 8) & 1) << bit
            })
        })
    }

    /// `packed` [pictures, bytes]; bits and tokens a picture are metadata.
    fn save(&self, path: &Path) -> Result<()> {
        let shape = (self.count, self.stride());
        let packed = candle_core::Tensor::from_vec(self.words.clone(), shape, &candle_core::Device::Cpu)?;
        let meta = [("bits", self.bits.to_string()), ("tokens", self.per.to_string())];
        checkpoint::save(path, &[("packed".to_owned(), packed)].into(), &meta)
    }

    fn load(path: &Path) -> Result<Self> {
        let bad = || Error::bad_file(path, "not the codes of a LlamaGen training");
        let meta = checkpoint::metadata(path)?;
        let number = |key: &str| meta.get(key).and_then(|v| v.parse::<usize>().ok());
        let (Some(bits), Some(per)) = (number("bits"), number("tokens")) else { return Err(bad()) };
        let tensors = checkpoint::load(path)?;
        let packed = tensors.get("packed").ok_or_else(bad)?;
        let (count, stride) = packed.dims2().map_err(|_| bad())?;
        if bits == 0 || bits > 32 || per.checked_mul(bits).map(|n| n.div_ceil(8)) != Some(stride) {
            return Err(bad());
        }
        Ok(Self { count, per, bits, words: packed.flatten_all()?.to_vec1::<u8>().map_err(|_| bad())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing_and_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("codes.safetensors");
        let rows = [[0u32, 1023, 5, 512, 77], [1, 2, 3, 4, 1000]];
        let mut p = PackedTokens::new(5, 10);
        rows.iter().for_each(|r| p.push(r));
        // fifty bits are seven bytes
        assert_eq!(p.words.len(), 14);
        p.save(&path).unwrap();
        let p = PackedTokens::load(&path).unwrap();
        for (i, r) in rows.iter().enumerate() {
            assert_eq!(p.get(i).collect::<Vec<_>>(), r);
        }
        checkpoint::save(&path, &Default::default(), &[]).unwrap();
        assert!(PackedTokens::load(&path).is_err());
    }
}
