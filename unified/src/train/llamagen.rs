//! Training of LlamaGen (Sun et al. 2024, sections 2.2 and 2.3), by class or by caption, on the tokens of any image
//! tokenizer.

use super::Run;
use super::pictures::broken;
use crate::artifact::{Artifact, Placement};
use crate::captions::{Captions, TextEncoder};
use crate::visual::VisualTokenizer;
use crate::{Error, Result};
use candle_core::DType;
use lm::head::BitwiseConfig;
use lm::llamagen::{Condition, LlamaGen, LlamaGenConfig, ModelType};
use lm::shared_bits::{SharedBits, bit_patterns};
use nn::dropout::{Dropout, DropoutConfig};
use nn::rng::Rng;
use nn::train::{LoopConfig, OptimConfig, Precision, StepOutput, Summary, Trainer};
use nn::{Params, checkpoint, rng};
use qlip::Image;
use qlip::data::Pictures;
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
    /// The pictures, with classes or captions: see [`Pictures::open`].
    pub photos: PathBuf,
    /// Share of the pictures that may be unreadable.
    #[serde(default = "broken")]
    pub broken_share: f64,
    /// Folder of the T5 encoder whose features of the captions are the condition; with it the model draws captions.
    #[serde(default)]
    pub text_encoder: Option<PathBuf>,
    /// How tokens go in and out.
    #[serde(default)]
    pub head: Head,
    /// Inner width of a bitwise head; the model's if absent.
    #[serde(default)]
    pub head_width: Option<usize>,
    /// Most of a picture's bits that are flipped in what is read, never in what is to be drawn; with a bitwise head.
    #[serde(default)]
    pub bit_flip: f64,
    /// Whether the sub-tokens of a cell share one table.
    #[serde(default)]
    pub shared_table: bool,
    /// Learns each row of the tables as its own vector plus a sum over its bits, which all rows share; the written tables
    /// hold the sums, so that the checkpoint is an ordinary one. For tokens made of bits: QLIP's, or a VQ tokenizer's with
    /// `quantizer = "lfq"`.
    #[serde(default)]
    pub shared_bits: bool,
    /// Noise.
    #[serde(default)]
    pub dropout: DropoutConfig,
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

/// How tokens go in and out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// Rows of a table, a token or a group of bits each.
    #[default]
    Tokens,
    /// Bits: one token a cell, and no table.
    Bits,
}

/// Positions of a published text-conditional model's caption.
const CAPTION_POSITIONS: usize = 120;

/// Most rows of a table of tokens.
const MOST_ROWS: usize = 1 << 20;

/// Tables whose rows share their bits.
struct Tables {
    tokens: SharedBits,
    output: SharedBits,
}

impl Tables {
    fn new(params: &Params, config: &LlamaGenConfig) -> Result<Self> {
        let group_bits = config.vocab_size.max(2).ilog2() as usize;
        let patterns = bit_patterns(0, config.sub_tokens, group_bits, config.shared_table, params.device())?;
        let std = config.initializer_range;
        Ok(Self {
            tokens: SharedBits::new(params, "tok_embeddings.weight", "shared_bits.tokens", &patterns, std)?,
            // tables of logits begin at zero
            output: SharedBits::new(params, "output.weight", "shared_bits.output", &patterns, 0.0)?,
        })
    }
}

/// Captions of the pictures: features of the distinct ones, and which each picture has.
struct Texts {
    features: Captions,
    of: Vec<usize>,
}

/// Tokens of whole pictures, of each a share of up to `most` of the bits flipped.
fn flipped(tokens: &[u32], bits: usize, pictures: usize, most: f64, r: &mut Rng) -> Vec<u32> {
    if most == 0.0 {
        return tokens.to_vec();
    }
    let per = (tokens.len() / pictures.max(1)).max(1);
    let mut out = tokens.to_vec();
    for picture in out.chunks_mut(per) {
        let share = most * f64::from(rng::uniform(r));
        for token in picture {
            for bit in 0..bits {
                if f64::from(rng::uniform(r)) < share {
                    *token ^= 1 << bit;
                }
            }
        }
    }
    out
}

impl LlamaGenTraining {
    /// Runs it; the folder becomes a model that `unified generate` draws with, image tokenizer included.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        let placement = Placement { device: run.device.clone(), ..Placement::cpu() };
        let tokenizer = Artifact::open(&self.tokenizer.to_string_lossy())?;
        let visual = VisualTokenizer::load(&tokenizer, self.group_bits, self.grid, &placement)?;
        let visual = if self.head == Head::Bits { visual.with_whole_codes()? } else { visual };
        let photos = Pictures::open(&self.photos, "train")?.allow_broken(self.broken_share);
        (run.say)(&format!("{}: {}", self.photos.display(), photos.summary()));
        let texts = self.texts(&photos, run.out)?;
        let config = self.config(&visual, photos.classes.len(), texts.as_ref())?;
        let json = serde_json::to_string_pretty(&config).map_err(|e| Error::invalid(e.to_string()))?;
        checkpoint::write_atomic(&run.out.join("config.json"), json.as_bytes())?;
        if texts.is_none() {
            let names = serde_json::to_vec(&photos.classes).map_err(|e| Error::invalid(e.to_string()))?;
            checkpoint::write_atomic(&run.out.join("classes.json"), &names)?;
        }
        tokenizer.copy_to(&run.out.join(visual.folder()))?;
        let tokens = self.tokens(&visual, &photos, &run.out.join("codes.safetensors"))?;
        // the features of "no caption" are data, not a parameter
        let freeze = ["cls_embedding.uncond_embedding"];
        let params = Params::for_training(HashMap::new(), &freeze, self.seed, DType::F32, &run.device);
        let model = LlamaGen::new(&params, &config)?;
        let tables = if self.shared_bits { Some(Tables::new(&params, &config)?) } else { None };
        let labels = if texts.is_some() { Vec::new() } else { photos.labels()? };
        let steps = LoopConfig {
            steps: self.steps,
            batch_size: self.batch_size,
            checkpoint_every: self.checkpoint_every,
            seed: self.seed,
            precision: self.precision,
        };
        let trainer = Trainer::new(steps, &self.optim, &params, run.out, run.resume);
        let out = run.out;
        trainer.run(
            |n| {
                let mut r = rng::keyed(self.seed, &[n as u64]);
                let (mut pictures, mut drop, mut targets) = (Vec::new(), Vec::new(), Vec::new());
                for _ in 0..self.batch_size {
                    let (picture, crop) = (rng::below(&mut r, tokens.pictures.len()), rng::below(&mut r, self.crops));
                    pictures.push(tokens.pictures[picture]);
                    drop.push(f64::from(rng::uniform(&mut r)) < config.class_dropout_prob);
                    targets.extend(tokens.get(picture * self.crops + crop));
                }
                let condition = match &texts {
                    Some(t) => t.features.condition(&pictures.iter().map(|&p| t.of[p]).collect::<Vec<_>>())?,
                    None => Condition::Classes(pictures.iter().map(|&p| labels[p] as u32).collect()),
                };
                let seen = match &config.bitwise {
                    Some(b) => flipped(&targets, b.bits, self.batch_size, self.bit_flip, &mut r),
                    None => targets.clone(),
                };
                let mut noise = (!self.dropout.is_none()).then(|| Dropout::new(self.dropout, r));
                let model = match &tables {
                    Some(t) => model.with_tables(t.tokens.rows()?, t.output.rows()?)?,
                    None => model.clone(),
                };
                let loss = model.train_loss(&condition, &drop, &seen, &targets, noise.as_mut())?;
                // comparable between heads and tokenizers: nats a cell
                let cell = f64::from(loss.to_scalar::<f32>()?) * config.sub_tokens as f64;
                StepOutput::of(&loss, vec![("nats_per_cell", cell)])
            },
            |weights| {
                let mut weights = weights.clone();
                if let Some(t) = &tables {
                    t.tokens.join(&mut weights)?;
                    t.output.join(&mut weights)?;
                }
                checkpoint::save(&out.join("model.safetensors"), &weights, &[])
            },
            |p| (run.progress)(p),
        )
    }

    /// Features of the pictures' captions, each caption's made once and kept beside the model.
    fn texts(&self, photos: &Pictures, out: &Path) -> Result<Option<Texts>> {
        let Some(dir) = &self.text_encoder else { return Ok(None) };
        let mut distinct: HashMap<String, usize> = HashMap::new();
        let mut captions = Vec::new();
        let of = (0..photos.len())
            .map(|i| {
                let words = photos.words(i);
                *distinct.entry(words.clone()).or_insert_with(|| {
                    captions.push(words);
                    captions.len() - 1
                })
            })
            .collect();
        let path = out.join("captions.safetensors");
        if !path.is_file() {
            // a config by class has one position, the published ones by caption 120
            let own = self.model.as_ref().map(|m| m.cls_token_num).filter(|&n| n > 1);
            let mut encoder = TextEncoder::load(&Artifact::open(&dir.to_string_lossy())?, &candle_core::Device::Cpu)?;
            encoder.encode(&captions, own.unwrap_or(CAPTION_POSITIONS))?.save(&path)?;
        }
        // as the file rounds them, so that a resumed run reads what the first one read
        let features = Captions::load(&path, &candle_core::Device::Cpu)?;
        if features.len() != captions.len() {
            let why = format!("{} captions; the pictures have {}", features.len(), captions.len());
            return Err(Error::bad_file(&path, why + "; remove the file, or choose another folder"));
        }
        Ok(Some(Texts { features, of }))
    }

    fn config(&self, visual: &VisualTokenizer, classes: usize, texts: Option<&Texts>) -> Result<LlamaGenConfig> {
        let kind = if texts.is_some() { ModelType::T2i } else { ModelType::C2i };
        let size = match (&self.preset, &self.model) {
            (Some(name), None) => LlamaGenConfig::preset(name, kind, visual.grid())?,
            (None, Some(model)) => model.clone(),
            _ => return Err(Error::invalid("give either `preset` (a published size) or a section [model]")),
        };
        if !matches!(self.crops, 1 | 2 | 10) {
            return Err(Error::invalid(format!("crops = {}: write 1, 2 or 10", self.crops)));
        }
        if !(self.crop_share > 0.0 && self.crop_share <= 1.0) {
            return Err(Error::invalid(format!("crop_share = {}: write a share of the side", self.crop_share)));
        }
        if !(0.0..=0.5).contains(&self.bit_flip) || (self.bit_flip > 0.0 && self.head != Head::Bits) {
            let why = "write a share from 0 to 0.5, with head = \"bits\"";
            return Err(Error::invalid(format!("bit_flip = {}: {why}", self.bit_flip)));
        }
        self.dropout.check()?;
        if self.shared_bits && (self.head == Head::Bits || !visual.has_bits()) {
            let why =
                "it is for tables of tokens that are made of bits: a QLIP or lfq tokenizer, with head = \"tokens\"";
            return Err(Error::invalid(format!("shared_bits = true: {why}")));
        }
        let bits = visual.code_bits();
        let caption = texts.map(|t| t.features.features.dims3()).transpose()?;
        let config = LlamaGenConfig {
            model_type: kind,
            vocab_size: if self.head == Head::Bits { 0 } else { visual.vocab() },
            bitwise: (self.head == Head::Bits).then(|| BitwiseConfig::of(bits, self.head_width.unwrap_or(size.dim))),
            sub_tokens: visual.sub_tokens(),
            shared_table: self.shared_table,
            block_size: visual.grid() * visual.grid() * visual.sub_tokens(),
            num_classes: if texts.is_some() { size.num_classes } else { classes },
            cls_token_num: caption.map_or(1, |c| c.1),
            caption_dim: caption.map_or(size.caption_dim, |c| c.2),
            ..size
        };
        if self.head == Head::Tokens && visual.vocab() > MOST_ROWS {
            let why = format!("a table of 2^{bits} rows; write group_bits, or head = \"bits\"");
            return Err(Error::invalid(why));
        }
        config.check()?;
        Ok(config)
    }

    /// Tokens of all crops of all pictures that can be read, made once and kept beside the model.
    fn tokens(&self, visual: &VisualTokenizer, photos: &Pictures, path: &Path) -> Result<PackedTokens> {
        let per = visual.grid() * visual.grid() * visual.sub_tokens();
        let bits = (visual.vocab().max(2) - 1).ilog2() as usize + 1;
        if path.is_file() {
            let found = PackedTokens::load(path)?;
            let fits = found.pictures.iter().all(|&p| p < photos.len()) && !found.pictures.is_empty();
            if fits && (found.count, found.per, found.bits) == (found.pictures.len() * self.crops, per, bits) {
                return Ok(found);
            }
            return Err(Error::bad_file(path, "codes of another training; remove the file, or choose another folder"));
        }
        let mut all = PackedTokens::new(per, bits);
        let pictures: Vec<usize> = (0..photos.len()).collect();
        for chunk in pictures.chunks(CHUNK) {
            let read = |&i: &usize| -> Result<Option<(usize, Image)>> {
                match photos.image(i) {
                    Ok(image) => Ok(Some((i, image))),
                    Err(e) => photos.note(i, e).map(|()| None),
                }
            };
            let images: Vec<(usize, Image)> =
                chunk.par_iter().filter_map(|i| read(i).transpose()).collect::<Result<_>>()?;
            let crops: Vec<Image> = images
                .par_iter()
                .flat_map_iter(|(_, image)| (0..self.crops).map(move |c| self.crop(image, c, visual.side())))
                .collect();
            for t in visual.tokens(&crops)? {
                all.push(&t);
            }
            all.pictures.extend(images.iter().map(|(i, _)| *i));
        }
        if all.pictures.is_empty() {
            return Err(Error::bad_file(&self.photos, "no picture could be read"));
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
    /// Which pictures of the source they are; each has as many rows as there are crops.
    pictures: Vec<usize>,
}

impl PackedTokens {
    fn new(per: usize, bits: usize) -> Self {
        Self { count: 0, per, bits, words: Vec::new(), pictures: Vec::new() }
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

    /// `packed` [rows, bytes] and `pictures`; bits and tokens a picture are metadata.
    fn save(&self, path: &Path) -> Result<()> {
        let shape = (self.count, self.stride());
        let packed = candle_core::Tensor::from_vec(self.words.clone(), shape, &candle_core::Device::Cpu)?;
        let meta = [("bits", self.bits.to_string()), ("tokens", self.per.to_string())];
        let pictures: Vec<u32> = self.pictures.iter().map(|&p| p as u32).collect();
        let pictures = candle_core::Tensor::from_vec(pictures, self.pictures.len(), &candle_core::Device::Cpu)?;
        let tensors = [("packed".to_owned(), packed), ("pictures".to_owned(), pictures)];
        checkpoint::save(path, &tensors.into(), &meta)
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
        let pictures = tensors.get("pictures").ok_or_else(bad)?.to_vec1::<u32>().map_err(|_| bad())?;
        let pictures = pictures.into_iter().map(|p| p as usize).collect();
        Ok(Self { count, per, bits, pictures, words: packed.flatten_all()?.to_vec1::<u8>().map_err(|_| bad())? })
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
        p.pictures = vec![0, 3];
        p.save(&path).unwrap();
        let p = PackedTokens::load(&path).unwrap();
        assert_eq!(p.pictures, [0, 3]);
        for (i, r) in rows.iter().enumerate() {
            assert_eq!(p.get(i).collect::<Vec<_>>(), r);
        }
        checkpoint::save(&path, &Default::default(), &[]).unwrap();
        assert!(PackedTokens::load(&path).is_err());
    }
}
