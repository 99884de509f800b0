//! Training of the unified model: one decoder over text and pictures (UM3 section 4).

use super::llamagen::Head;
use super::{Run, adapters, flip, sheet, write_json};
use crate::artifact::{Architecture, Artifact, Placement};
use crate::config::{Generation, UnifiedConfig};
use crate::corpus::CHECK;
use crate::data::{DataConfig, SampleTemplate};
use crate::draw::{Wish, drawing, wordless};
use crate::eyes::Eyes;
use crate::mixture::{Frame, Mixture, Piece, Sample, Source};
use crate::sequence::{Packed, Segment, Sequence, pack};
use crate::template::{DEFAULT_TEMPLATE, Marks};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lm::draw::pictures;
use lm::grow::{grow, with_more_bits};
use lm::head::BitwiseConfig;
use lm::loss::{Totals, split_loss};
use lm::shared_bits::SharedBits;
use lm::{Context, Llama, LlamaConfig, MergedVocab, Part, Shared, Token};
use nn::params::Lora;
use nn::rng;
use nn::stored::Stored;
use nn::train::{At, Measure, OptimConfig, Place, RunConfig, Sheet, StepOutput, Summary, Task, in_parts};
use nn::{Params, checkpoint};
use qlip::Codes;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Config of a unified training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UnifiedTraining {
    /// Steps, batches, checkpoints.
    pub run: RunConfig,
    /// Where samples come from, with their shares.
    pub data: Vec<DataConfig>,
    /// Folder of the image tokenizer, a QLIP.
    pub image_tokenizer: PathBuf,
    /// tokenizer.json of the text.
    pub tokenizer: PathBuf,
    /// Folder of a checkpoint to start from, instead of `model`: a unified one of the same vocabulary, or whose visual tokens have fewer
    /// bits than the image tokenizer's (they are the first ones then; see a tokenizer training's `quantizer`); or a Llama, which
    /// grows rows for marks and visual tokens and norms of queries and keys; what it says about text stays as it was.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// Tokens a row; short samples share one.
    pub sequence_length: usize,
    /// Visual tokens from rows of the merged vocabulary, or as bits: a token a code, half as many positions as two sub-tokens.
    #[serde(default)]
    pub head: Head,
    /// Inner width of a bitwise head; the model's if absent.
    #[serde(default)]
    pub head_width: Option<usize>,
    /// Adds a learned vector of its cell to what each visual token is read as, with `head = "bits"`: what is to be copied from another
    /// picture is found without counting.
    #[serde(default)]
    pub cell_positions: bool,
    /// Most of a drawn picture's bits that are flipped in what is read, never in what is to be drawn nor in what is shown; with
    /// `head = "bits"`.
    #[serde(default)]
    pub bit_flip: f64,
    /// Bits of a visual sub-token; needed where `head` is "tokens".
    #[serde(default)]
    pub group_bits: Option<usize>,
    /// Learns each visual row as its own vector plus a sum over its bits, which all rows share; the written table holds the
    /// sums, so that the checkpoint is an ordinary one. Needs `tie_word_embeddings`.
    #[serde(default)]
    pub shared_bits: bool,
    /// Whether samples in one row are hidden from each other (a block-diagonal mask).
    #[serde(default = "yes")]
    pub block_diagonal: bool,
    /// Weights of the losses, and what is learned.
    pub loss: UnifiedLoss,
    /// How the shares of the sources change, and what of a request is dropped.
    pub mixture: Mixture,
    /// Adapters instead of the weights of the blocks, which are held; tables, norms and heads are trained whole. Needs `start`.
    #[serde(default)]
    pub lora: Option<Lora>,
    /// Optimiser.
    pub optim: OptimConfig,
    /// How the model is to be sampled, written to its config.
    #[serde(default)]
    pub generation: Generation,
    /// A new language model; its vocabulary size is computed.
    #[serde(default)]
    pub model: Option<LlamaConfig>,
}

fn yes() -> bool {
    true
}
/// Weight of each modality's mean loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UnifiedLoss {
    /// Text.
    pub text: f64,
    /// Visual.
    pub visual: f64,
    /// z-loss; 0 is none.
    #[serde(default)]
    pub z: f64,
    /// What is learned.
    #[serde(default)]
    pub on: LossOn,
}

/// Tokens that are learned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// The model's own turns of a conversation, and documents.
    #[default]
    Answers,
    /// Everything.
    All,
}

/// Key of the stream of flipped bits.
const FLIPS: u64 = 0x666c_6970;

/// What a step needs.
struct Unifying<'a> {
    source: Source<'a>,
    model: Llama,
    shared: Option<SharedBits>,
    vocab: MergedVocab,
    words: Words,
    eyes: Eyes,
    /// Fills what is left of a row.
    pad: Token,
    /// What adapters are added to.
    start: Arc<Stored>,
    /// The folder of the model that adapters by themselves belong to.
    base: Option<PathBuf>,
    config: &'a UnifiedTraining,
}

impl UnifiedTraining {
    /// Runs it; the folder becomes a whole unified model, image tokenizer included.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        adapters::check(self.lora)?;
        if self.lora.is_some() && (self.start.is_none() || self.shared_bits) {
            return Err(Error::invalid("[lora] needs `start`, and no shared_bits: adapters change what is there"));
        }
        let marks = Marks::default();
        let image_tokenizer = Artifact::open(&self.image_tokenizer.to_string_lossy())?;
        let at = Placement { device: run.device.clone(), ..Placement::cpu() };
        let eyes = Eyes::load(&image_tokenizer, &at, false)?;
        let text = std::fs::read(&self.tokenizer).map_err(Error::io(&self.tokenizer))?;
        let words = Words::from_bytes(&self.tokenizer, &text)?.with_marks(&marks.all())?;
        let start = self.start()?;
        let vocab = MergedVocab {
            // a checkpoint's table may be longer than its tokenizer
            text: words.len().max(start.text_rows()),
            bits: eyes.model.bsq.bits,
            group_bits: self.group_bits.unwrap_or(eyes.model.bsq.bits),
            shared_table: false,
            bitwise: (self.head == Head::Bits)
                .then(|| BitwiseConfig::of(eyes.model.bsq.bits, self.head_width.unwrap_or(start.width()))),
            cell_positions: self.cell_positions,
            grid: eyes.model.grid(),
            begin_image: words.mark(&marks.begin_image)?,
            end_image: words.mark(&marks.end_image)?,
        };
        vocab.check()?;
        if self.head == Head::Tokens && self.group_bits.is_none() {
            return Err(Error::invalid("group_bits is missing: bits of a visual sub-token, or write head = \"bits\""));
        }
        flip::check(self.bit_flip, self.head == Head::Bits)?;
        if self.head == Head::Bits && self.shared_bits {
            return Err(Error::invalid("shared_bits speaks of a table of visual rows; head = \"bits\" has none"));
        }
        // adapters by themselves belong to a model that has all else
        let base = match &start {
            Start::Unified(_, _, v) if **v == vocab => self.start.clone(),
            Start::New(_) | Start::Unified(..) | Start::Llama(..) => None,
        };
        let (tensors, text_config) = start.grown(&vocab, self.run.seed)?;
        let checks = self.data.iter().any(|d| d.is_used() && d.template == Some(SampleTemplate::Check));
        let config = UnifiedConfig {
            model_type: "um3".into(),
            text_config,
            vocabulary: vocab.clone(),
            marks: marks.clone(),
            image_tokenizer: "qlip".into(),
            generation: self.generation,
            self_check: checks.then(|| CHECK.to_owned()),
        };
        let frame = Frame {
            mixture: self.mixture,
            marks: &marks,
            side: eyes.side(),
            codes: (vocab.bits, vocab.grid),
            seed: self.run.seed,
            held_out: self.run.held_out(),
        };
        let source = Source::open(&self.data, &frame, run.say)?;
        write_json(run, "config.json", &config)?;
        run.write("tokenizer.json", words.to_json()?.as_bytes())?;
        let template = serde_json::json!({ "chat_template": DEFAULT_TEMPLATE, "eos_token": config.marks.end });
        write_json(run, "tokenizer_config.json", &template)?;
        if run.world.is_first() {
            image_tokenizer.copy_to(&run.out.join("qlip"))?;
        }
        let start: Arc<Stored> = Arc::new(tensors.into());
        let params = Params::for_training_shared(start.clone(), &[], self.run.seed, DType::F32, &run.device);
        let held = params.clone().stored_as(self.lora.and_then(|l| l.base)).adapted(self.lora);
        let model = Llama::of_vocab(&held, &config.text_config, &vocab)?;
        // a checkpoint's rows have their sums in them already
        let std = if params.contains(TABLE) { 0.0 } else { config.text_config.initializer_range };
        let shared = if self.shared_bits {
            Some(SharedBits::new(&params, TABLE, "shared_bits", &vocab.bit_patterns(&run.device)?, std)?)
        } else {
            None
        };
        let pad = words.mark(&marks.end)?;
        let task = Unifying { source, model, shared, vocab, words, eyes, pad, start, base, config: self };
        let done = run.trainer(&self.run, &self.optim, &params).run(&task, run.progress);
        run.name_broken(&task.source.broken())?;
        done
    }

    fn start(&self) -> Result<Start> {
        match (&self.start, &self.model) {
            (None, Some(model)) => Ok(Start::New(model.clone())),
            (Some(dir), None) => {
                let artifact = Artifact::open(&dir.to_string_lossy())?;
                let tensors = || artifact.tensors()?.into_memory();
                match artifact.architecture {
                    Architecture::Unified => {
                        let config = artifact.config::<UnifiedConfig>()?;
                        Ok(Start::Unified(tensors()?, config.text_config, Box::new(config.vocabulary)))
                    }
                    Architecture::Llama => Ok(Start::Llama(tensors()?, artifact.config()?)),
                    other => Err(Error::invalid(format!(
                        "start: {} is a {}; a unified model or a Llama goes on",
                        dir.display(),
                        other.says()
                    ))),
                }
            }
            _ => Err(Error::invalid("give either `start` (a checkpoint folder) or a section [model]")),
        }
    }
}

/// A loss with its name and weight.
type Term = (&'static str, Tensor, f64);

impl Unifying<'_> {
    /// Rows of tokens of some samples; all their pictures are encoded at once.
    fn packed(&self, samples: &[Sample]) -> Result<Packed> {
        let c = self.config;
        pack(&self.sequences(samples)?, c.sequence_length, self.pad, c.block_diagonal)
    }

    fn sequences(&self, samples: &[Sample]) -> Result<Vec<Sequence>> {
        let images: Vec<_> = samples
            .iter()
            .flat_map(|s| &s.pieces)
            .filter_map(|p| match p {
                Piece::Image(i, _) => Some(i.clone()),
                Piece::Text(..) | Piece::Codes(..) => None,
            })
            .collect();
        // the codes that `tokenize` makes, whatever the training's arithmetic
        let codes = nn::Exec::exact(|| self.eyes.encode(&images))?;
        let mut encoded = 0..codes.images();
        let mut one = |sample: &Sample| -> Result<Sequence> {
            let mut s = Sequence { weight: sample.weight, ..Sequence::default() };
            for piece in &sample.pieces {
                let (segment, learn) = match piece {
                    Piece::Text(t, learn) => (Segment::Text(self.words.encode(t)?), *learn),
                    Piece::Codes(c, learn) => (Segment::Image(c.clone()), *learn),
                    Piece::Image(_, learn) => {
                        let at = encoded.next().ok_or_else(|| Error::invalid("a picture was not encoded"))?;
                        (Segment::Image(codes.image(at).to_vec()), *learn)
                    }
                };
                s.push(&self.vocab, &segment, learn || self.config.loss.on == LossOn::All);
            }
            if sample.cut {
                s.cut(&self.vocab, self.config.sequence_length);
            }
            Ok(s)
        };
        samples.iter().map(&mut one).collect()
    }

    /// The losses of packed rows, each its part of the mean over `totals`; and a term of no weight that keeps a head in the graph where nothing
    /// here tells it anything.
    fn losses(&self, batch: &Packed, totals: &Totals) -> Result<(Vec<Term>, Option<Tensor>)> {
        let model = match &self.shared {
            Some(s) => self.model.with_table(s.rows()?)?,
            None => self.model.clone(),
        };
        let x = model.embed(&batch.ids, batch.rows)?;
        let hidden = model.hidden(&x, &batch.positions, &batch.mask)?;
        let weights = &self.config.loss;
        let losses = split_loss(&model, &self.vocab, &hidden, &batch.targets, totals, weights.z != 0.0)?;
        let idle = match model.bitwise().filter(|_| batch.targets.visual.is_empty()) {
            Some(head) => {
                let loss = head.loss(&hidden.flatten_to(1)?.narrow(0, 0, 1)?, &[0])?;
                Some((&loss * loss.zeros_like()?)?)
            }
            None => None,
        };
        let parts = [
            ("text_loss", losses.text, weights.text),
            ("visual_loss", losses.visual, weights.visual),
            ("z_loss", losses.z, weights.z),
        ];
        Ok((parts.into_iter().filter_map(|(name, loss, weight)| Some((name, loss?, weight))).collect(), idle))
    }
}

impl Task for Unifying<'_> {
    type Batch = Vec<Sample>;

    fn batch(&self, place: &Place) -> Result<Vec<Sample>> {
        place.rows.clone().into_par_iter().map(|row| self.source.sample(place.step, row, place.held_out)).collect()
    }

    fn gradients(&self, at: &At, samples: Vec<Sample>) -> Result<StepOutput> {
        let size = at.run.micro_batch.unwrap_or(usize::MAX);
        let parts = samples.chunks(size);
        let mut parts: Vec<Packed> = parts.map(|p| self.packed(p)).collect::<Result<_>>()?;
        if self.config.bit_flip > 0.0 {
            // as LlamaGen's noise: of a part, keyed by where it begins
            let first = at.world.rows(at.run.batch_size).start;
            for (i, part) in parts.iter_mut().enumerate() {
                let row = first + i.saturating_mul(size);
                let mut r = rng::keyed(self.config.run.seed ^ FLIPS, &[at.step as u64, row as u64]);
                flip::flip_drawn(part, &self.vocab, self.config.bit_flip, &mut r);
            }
        }
        let mut totals = Totals::default();
        parts.iter().for_each(|p| totals.add(&p.targets));
        let totals = totals.over(at.world);
        if totals.is_empty() {
            return Err(Error::invalid("a batch without anything to learn"));
        }
        in_parts(at, parts, |batch| {
            let mut metrics = vec![
                ("text_targets", batch.targets.text.len() as f64),
                ("visual_targets", batch.targets.visual.len() as f64),
                ("rows", batch.rows as f64),
            ];
            let (losses, mut total) = self.losses(&batch, &totals)?;
            // every process names the same metrics, whatever its rows hold
            let named = [("text_loss", true), ("visual_loss", true), ("z_loss", self.config.loss.z != 0.0)];
            let named = named.into_iter().filter(|n| n.1 && at.world.size() > 1);
            metrics.extend(named.map(|n| (n.0, 0.0)));
            for (name, loss, weight) in losses {
                let value = f64::from(loss.to_scalar::<f32>()?);
                match metrics.iter_mut().find(|m| m.0 == name) {
                    Some(m) => m.1 += value,
                    None => metrics.push((name, value)),
                }
                nn::ops::add_term(&mut total, (loss * weight)?)?;
            }
            // rows of nothing but what is read teach nothing, at no weight
            let total = match total {
                Some(t) => t,
                None => {
                    let sum = self.model.embed(&batch.ids, batch.rows)?.sum_all()?;
                    (&sum * sum.zeros_like()?)?
                }
            };
            Ok((total, metrics))
        })
    }

    fn validate(&self, samples: Vec<Sample>) -> Result<Vec<Measure>> {
        let batch = self.packed(&samples)?;
        let mut totals = Totals::default();
        totals.add(&batch.targets);
        let mut out = vec![
            Measure { name: "loss", sum: 0.0, count: 0.0 },
            Measure { name: "text_loss", sum: 0.0, count: 0.0 },
            Measure { name: "visual_loss", sum: 0.0, count: 0.0 },
        ];
        let n = samples.len() as f64;
        out[0].count = n;
        for (name, loss, weight) in self.losses(&batch, &totals)?.0 {
            let mean = f64::from(loss.to_scalar::<f32>()?);
            out[0].sum += mean * weight * n;
            let count = if name == "text_loss" { totals.text } else { totals.visual };
            if let Some(m) = out.iter_mut().find(|m| m.name == name) {
                (m.sum, m.count) = (mean * count, count);
            }
        }
        Ok(out)
    }

    /// Pictures of samples that are not trained on, and below them what the model draws in their places.
    fn sheet(&self, weights: &BTreeMap<String, Tensor>) -> Result<Option<Sheet>> {
        let (mut wishes, mut real) = (Vec::new(), Vec::new());
        let g = &self.config.generation;
        for row in 0..sheet::PICTURES * 8 {
            let sample = self.source.sample(0, row, true)?;
            let Some(at) = sample.pieces.iter().position(|p| matches!(p, Piece::Image(_, true))) else { continue };
            let Some(Piece::Image(image, _)) = sample.pieces.get(at) else { continue };
            real.push(image.clone());
            let before = Sample { pieces: sample.pieces[..at].to_vec(), ..sample };
            let mut ids = self.sequences(&[before])?.remove(0).ids;
            ids.push(self.vocab.begin_image);
            let wordless = wordless(&self.vocab, &self.words, &Marks::default(), &ids, g)?;
            let after_picture = ids.contains(&self.vocab.end_image);
            wishes.push(Wish { context: Context::new(vec![Part::tokens(ids)]), wordless, after_picture });
            if real.len() == sheet::PICTURES {
                break;
            }
        }
        if real.is_empty() {
            return Ok(None);
        }
        let mut tensors = weights.clone();
        if let Some(s) = &self.shared {
            s.join(&mut tensors)?;
        }
        let held = adapters::read(&self.start, &tensors, self.config.lora)?;
        let params = Params::from_tensors("the training", held, DType::F32, &Device::Cpu);
        let model = Arc::new(Llama::of_vocab(&params, &self.model.config, &self.vocab)?);
        let seeds: Vec<u64> = (0..wishes.len() as u64).collect();
        let requests = drawing(&self.vocab, wishes, &seeds, g);
        let per_row = self.vocab.grid * self.vocab.groups();
        let done = pictures(&Shared::new(model), requests, per_row, &|_, token| token, &mut |_| true)?;
        let codes = done.iter().map(|d| self.vocab.to_codes(&d.tokens)).collect::<Result<Vec<_>>>()?;
        let all = Codes { bits: self.vocab.bits, grid: self.vocab.grid, indices: codes.concat() };
        sheet::table(vec![real, self.eyes.decode(&all)?])
    }

    fn export(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut weights = weights.clone();
        if let Some(s) = &self.shared {
            s.join(&mut weights)?;
        }
        let path = dir.join("model.safetensors");
        let Some(lora) = self.config.lora else { return checkpoint::save(&path, &weights, &[]) };
        checkpoint::save_packed(&path, &adapters::written(&self.start, &weights, Some(lora)), &[])?;
        match &self.base {
            Some(base) => adapters::beside(dir, base, &lora, &weights),
            None => Ok(()),
        }
    }
}

/// What a training begins with.
enum Start {
    New(LlamaConfig),
    Unified(HashMap<String, Tensor>, LlamaConfig, Box<MergedVocab>),
    Llama(HashMap<String, Tensor>, LlamaConfig),
}

impl Start {
    /// Text rows that a checkpoint's table has.
    fn text_rows(&self) -> usize {
        match self {
            Self::Llama(_, config) => config.vocab_size,
            Self::New(_) | Self::Unified(..) => 0,
        }
    }

    /// Width of the model.
    fn width(&self) -> usize {
        match self {
            Self::New(config) | Self::Unified(_, config, _) | Self::Llama(_, config) => config.hidden_size,
        }
    }

    /// Tensors and configuration for a vocabulary.
    fn grown(self, vocab: &MergedVocab, seed: u64) -> Result<(HashMap<String, Tensor>, LlamaConfig)> {
        let rows = vocab.rows();
        match self {
            Self::New(config) => Ok((HashMap::new(), LlamaConfig { vocab_size: rows, ..config })),
            Self::Unified(tensors, config, old) if config.vocab_size == rows => match (old.bitwise, vocab.bitwise) {
                (Some(from), Some(to)) if from != to => Ok((with_more_bits(tensors, &from, &to, seed)?, config)),
                _ => Ok((tensors, config)),
            },
            Self::Unified(_, config, _) => Err(Error::invalid(format!(
                "`start` has {} vocabulary rows; this tokenizer and image tokenizer make {rows}",
                config.vocab_size
            ))),
            Self::Llama(tensors, config) => grow(tensors, &config, rows, true),
        }
    }
}

const TABLE: &str = "model.embed_tokens.weight";
