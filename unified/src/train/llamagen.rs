//! Training of LlamaGen (Sun et al. 2024, sections 2.2 and 2.3), by class or by caption, on the tokens of any image
//! tokenizer.

use super::codes::{PackedTokens, Pictured};
use super::pictures::PictureSource;
use super::{Run, flip, sheet, write_json};
use crate::artifact::{Artifact, Placement};
use crate::captions::{Captions, TextEncoder};
use crate::data::DataConfig;
use crate::visual::VisualTokenizer;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lm::draw::DrawSettings;
use lm::head::BitwiseConfig;
use lm::llamagen::{Condition, LlamaGen, LlamaGenConfig, ModelType};
use lm::shared_bits::{SharedBits, bit_patterns};
use lm::{SampleSettings, Token};
use nn::dropout::{Dropout, DropoutConfig};
use nn::rng::Rng;
use nn::train::{At, Measure, OptimConfig, Place, RunConfig, Sheet, StepOutput, Summary, Task, in_parts};
use nn::{Params, checkpoint, rng};
use qlip::data::Pictures;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Config of a LlamaGen training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LlamaGenTraining {
    /// Steps, batches, checkpoints.
    pub run: RunConfig,
    /// The pictures, with classes or captions: one source.
    pub data: Vec<DataConfig>,
    /// Folder of the image tokenizer: QLIP or LlamaGen's VQ.
    pub image_tokenizer: PathBuf,
    /// Bits of a sub-token of a QLIP tokenizer; the largest divisor up to 14 if absent.
    #[serde(default)]
    pub group_bits: Option<usize>,
    /// Cells along the side, for a VQ tokenizer; pictures of 256 pixels if absent.
    #[serde(default)]
    pub grid: Option<usize>,
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// A picture to be drawn.
struct Wanted {
    /// Number in the source.
    picture: usize,
    /// Whether its condition is left out.
    drop: bool,
    /// What is read.
    seen: Vec<Token>,
    /// What is to come.
    targets: Vec<Token>,
}

/// What a step needs.
struct Drawing<'a> {
    tokens: PackedTokens,
    model: LlamaGen,
    tables: Option<Tables>,
    texts: Option<Texts>,
    labels: Vec<usize>,
    sizes: LlamaGenConfig,
    /// What drawings are shown through.
    visual: &'a VisualTokenizer,
    /// Places among the encoded pictures of those that are trained on, and of those that never are.
    parts: [Vec<usize>; 2],
    config: &'a LlamaGenTraining,
}

impl LlamaGenTraining {
    /// Runs it; the folder becomes a model that `unified generate` draws with, image tokenizer included.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        let placement = Placement { device: run.device.clone(), ..Placement::cpu() };
        let tokenizer = Artifact::open(&self.image_tokenizer.to_string_lossy())?;
        let visual = VisualTokenizer::load(&tokenizer, self.group_bits, self.grid, &placement)?;
        let visual = if self.head == Head::Bits { visual.with_whole_codes()? } else { visual };
        let source = PictureSource::open(&self.data, (visual.side(), self.run.seed, self.run.held_out()), run.say)?;
        let photos = source.only()?;
        let texts = self.texts(photos, run)?;
        let config = self.config(&visual, photos.classes.len(), texts.as_ref())?;
        write_json(run, "config.json", &config)?;
        if texts.is_none() {
            let names = serde_json::to_vec(&photos.classes).map_err(|e| Error::invalid(e.to_string()))?;
            run.write("classes.json", &names)?;
        }
        if run.world.is_first() {
            tokenizer.copy_to(&run.out.join(visual.folder()))?;
        }
        let fingerprint = tokenizer.fingerprint()?;
        let crops = Pictured { photos, crops: self.crops, crop_share: self.crop_share, visual: &visual, fingerprint };
        let tokens = crops.tokens(&run.out.join("codes.safetensors"), run)?;
        // the features of "no caption" are data, not a parameter
        let freeze = ["cls_embedding.uncond_embedding"];
        let params = Params::for_training(HashMap::new(), &freeze, self.run.seed, DType::F32, &run.device);
        let model = LlamaGen::new(&params, &config)?;
        let tables = if self.shared_bits { Some(Tables::new(&params, &config)?) } else { None };
        let labels = if texts.is_some() { Vec::new() } else { photos.labels()? };
        let (held, used) = (0..tokens.pictures.len()).partition(|&i| photos.is_held_out(tokens.pictures[i]));
        let parts: [Vec<usize>; 2] = [used, held];
        if parts[0].is_empty() || (self.run.validation.is_some() && parts[1].is_empty()) {
            return Err(Error::invalid("no picture that can be read is left to train on, or to validate on"));
        }
        let task =
            Drawing { tokens, model, tables, texts, labels, sizes: config, visual: &visual, parts, config: self };
        let done = run.trainer(&self.run, &self.optim, &params).run(&task, run.progress);
        run.name_broken(&source.broken())?;
        done
    }

    /// Features of the pictures' captions, each caption's made once and kept beside the model.
    fn texts(&self, photos: &Pictures, run: &Run) -> Result<Option<Texts>> {
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
        let path = run.out.join("captions.safetensors");
        if run.world.is_first() && !path.is_file() {
            // a config by class has one position, the published ones by caption 120
            let own = self.model.as_ref().map(|m| m.cls_token_num).filter(|&n| n > 1);
            let mut encoder = TextEncoder::load(&Artifact::open(&dir.to_string_lossy())?, &Device::Cpu)?;
            encoder.encode(&captions, own.unwrap_or(CAPTION_POSITIONS))?.save(&path)?;
        }
        // the others wait until the first has written it
        run.world.any(false);
        // as the file rounds them, so that a resumed run reads what the first one read
        let features = Captions::load(&path, &Device::Cpu)?;
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
        flip::check(self.bit_flip, self.head == Head::Bits)?;
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
}

impl Drawing<'_> {
    /// What some pictures are drawn from.
    fn condition(&self, pictures: &[usize]) -> Result<Condition> {
        match &self.texts {
            Some(t) => t.features.condition(&pictures.iter().map(|&p| t.of[p]).collect::<Vec<_>>()),
            None => Ok(Condition::Classes(pictures.iter().map(|&p| self.labels[p] as u32).collect())),
        }
    }

    /// Places of pictures that are not trained on, of different classes or captions where there are so many.
    fn shown(&self) -> Vec<usize> {
        let kind = |at: usize| match &self.texts {
            Some(t) => t.of[self.tokens.pictures[at]],
            None => self.labels[self.tokens.pictures[at]],
        };
        let mut seen = std::collections::HashSet::new();
        let mut some: Vec<usize> = self.parts[1].iter().copied().filter(|&at| seen.insert(kind(at))).collect();
        some.sort_by_key(|&at| kind(at));
        some.truncate(sheet::PICTURES);
        some
    }

    /// The tensors of the whole model.
    fn whole(&self, weights: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let mut weights = weights.clone();
        if let Some(t) = &self.tables {
            t.tokens.join(&mut weights)?;
            t.output.join(&mut weights)?;
        }
        Ok(weights)
    }

    /// The mean loss of some pictures in nats a token.
    fn loss(&self, batch: &[Wanted], noise: Option<Rng>) -> Result<Tensor> {
        let pictures: Vec<usize> = batch.iter().map(|w| w.picture).collect();
        let condition = self.condition(&pictures)?;
        let drop: Vec<bool> = batch.iter().map(|w| w.drop).collect();
        let flat =
            |of: fn(&Wanted) -> &Vec<Token>| batch.iter().flat_map(|w| of(w).iter().copied()).collect::<Vec<Token>>();
        let (seen, targets) = (flat(|w| &w.seen), flat(|w| &w.targets));
        let dropout = self.config.dropout;
        let mut noise = noise.filter(|_| !dropout.is_none()).map(|r| Dropout::new(dropout, r));
        let model = match &self.tables {
            Some(t) => self.model.with_tables(t.tokens.rows()?, t.output.rows()?)?,
            None => self.model.clone(),
        };
        model.train_loss(&condition, &drop, &seen, &targets, noise.as_mut())
    }

    /// Comparable between heads and tokenizers: nats a cell.
    fn per_cell(&self, loss: &Tensor) -> Result<f64> {
        Ok(f64::from(loss.to_scalar::<f32>()?) * self.sizes.sub_tokens as f64)
    }
}

impl Task for Drawing<'_> {
    type Batch = (Vec<Wanted>, usize);

    fn batch(&self, place: &Place) -> Result<Self::Batch> {
        let part = &self.parts[usize::from(place.held_out)];
        let stream = if place.held_out { 0x7661_6c69 } else { 0 };
        let one = |row: usize| {
            let mut r = rng::keyed(self.config.run.seed ^ stream, &[place.step as u64, row as u64]);
            let (at, crop) = (part[rng::below(&mut r, part.len())], rng::below(&mut r, self.config.crops));
            let targets: Vec<Token> = self.tokens.get(at * self.config.crops + crop)?;
            // a condition that is left out is not what is measured
            let drop = f64::from(rng::uniform(&mut r)) < self.sizes.class_dropout_prob && !place.held_out;
            let mut seen = targets.clone();
            if let Some(b) = self.sizes.bitwise.filter(|_| !place.held_out && self.config.bit_flip > 0.0) {
                flip::flip(&mut seen, 0..targets.len(), 0, b.bits, self.config.bit_flip, &mut r);
            }
            Ok(Wanted { picture: self.tokens.pictures[at], drop, seen, targets })
        };
        Ok((place.rows.clone().map(one).collect::<Result<_>>()?, place.rows.start))
    }

    fn gradients(&self, at: &At, (batch, first): Self::Batch) -> Result<StepOutput> {
        let size = at.run.micro_batch.unwrap_or(usize::MAX);
        in_parts(at, batch.chunks(size).enumerate(), |(i, part)| {
            // noise is of a part, keyed by where it begins
            let row = first + i.saturating_mul(size);
            let noise = rng::keyed(self.config.run.seed ^ NOISE, &[at.step as u64, row as u64]);
            let loss = self.loss(part, Some(noise))?;
            let share = part.len() as f64 / at.run.batch_size as f64;
            let cell = self.per_cell(&loss)? * share;
            Ok(((loss * share)?, vec![("nats_per_cell", cell)]))
        })
    }

    fn validate(&self, (batch, _): Self::Batch) -> Result<Vec<Measure>> {
        let cell = self.per_cell(&self.loss(&batch, None)?)?;
        Ok(vec![Measure::mean("loss", cell, batch.len())])
    }

    /// The first classes or captions, each drawn with guidance 2; below them a picture of each that is not trained on.
    fn sheet(&self, weights: &BTreeMap<String, Tensor>) -> Result<Option<Sheet>> {
        let shown: Vec<usize> = self.shown();
        let pictures: Vec<usize> = shown.iter().map(|&at| self.tokens.pictures[at]).collect();
        let tensors: HashMap<String, Tensor> = self.whole(weights)?.into_iter().collect();
        let params = Params::from_tensors("the training", tensors, DType::F32, &Device::Cpu);
        let model = Arc::new(LlamaGen::new(&params, &self.sizes)?);
        let settings = DrawSettings::constant(SampleSettings::default(), SHEET_GUIDANCE);
        let seeds: Vec<u64> = (0..shown.len() as u64).collect();
        let drawn = lm::draw::draw(&model, &self.condition(&pictures)?, &seeds, &settings, &mut |_| true)?;
        let crops = self.config.crops;
        let real = shown.iter().map(|&at| self.tokens.get(at * crops)).collect::<Result<Vec<_>>>()?;
        sheet::table(vec![self.visual.images(&drawn)?, self.visual.images(&real)?])
    }

    fn export(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        checkpoint::save(&dir.join("model.safetensors"), &self.whole(weights)?, &[])
    }
}

/// Guidance of the drawings that validations leave.
const SHEET_GUIDANCE: f32 = 2.0;

/// What is added to the seed for dropout's noise.
const NOISE: u64 = 0x6e6f_6973;
