//! Training of the unified model: one decoder over text and pictures (UM3 section 4).

use super::Run;
use super::llamagen::Head;
use crate::artifact::{Architecture, Artifact, Placement};
use crate::config::{Generation, UnifiedConfig};
use crate::corpus::CHECK;
use crate::documents::Documents;
use crate::eyes::Eyes;
use crate::mixture::{Mixture, Piece, Sample, Source};
use crate::sequence::{Segment, Sequence, pack};
use crate::template::{DEFAULT_TEMPLATE, Marks};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lm::grow::grow;
use lm::head::BitwiseConfig;
use lm::loss::split_loss;
use lm::shared_bits::SharedBits;
use lm::{Llama, LlamaConfig, MergedVocab};
use nn::train::{LoopConfig, OptimConfig, Precision, StepOutput, Summary, Trainer};
use nn::{Params, checkpoint};
use qlip::data::Pictures;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Config of a unified training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnifiedTraining {
    /// Updates in all.
    pub steps: usize,
    /// Samples an update.
    pub batch_size: usize,
    /// Updates between checkpoints.
    pub checkpoint_every: usize,
    /// Seed.
    pub seed: u64,
    /// Arithmetic of the products.
    #[serde(default)]
    pub precision: Precision,
    /// Whether blocks compute their inner values again in the backward pass, which saves memory for a forward pass more.
    #[serde(default)]
    pub recompute: bool,
    /// Folder of the image tokenizer.
    pub qlip: PathBuf,
    /// tokenizer.json of the text.
    pub tokenizer: PathBuf,
    /// Folder of classed photographs (train-*.parquet); needed where the mixture has a share of them.
    #[serde(default)]
    pub photos: Option<PathBuf>,
    /// Folder of a checkpoint to start from, instead of `model`: a unified one of the same vocabulary, or a Llama, which
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
    /// Shares of the samples.
    pub mixture: Mixture,
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
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// The model's own turns of a conversation, and documents.
    #[default]
    Answers,
    /// Everything.
    All,
}

impl UnifiedTraining {
    /// Runs it; the folder becomes a whole unified model, image tokenizer included.
    pub fn run(&self, run: &mut Run) -> Result<Summary> {
        self.mixture.check()?;
        let marks = Marks::default();
        let image_tokenizer = Artifact::open(&self.qlip.to_string_lossy())?;
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
            grid: eyes.model.grid(),
            begin_image: words.mark(&marks.begin_image)?,
            end_image: words.mark(&marks.end_image)?,
        };
        vocab.check()?;
        if self.head == Head::Tokens && self.group_bits.is_none() {
            return Err(Error::invalid("group_bits is missing: bits of a visual sub-token, or write head = \"bits\""));
        }
        if self.head == Head::Bits && self.shared_bits {
            return Err(Error::invalid("shared_bits speaks of a table of visual rows; head = \"bits\" has none"));
        }
        let (tensors, text_config) = start.with_rows(vocab.rows())?;
        let config = UnifiedConfig {
            model_type: "um3".into(),
            text_config,
            vocabulary: vocab.clone(),
            marks: marks.clone(),
            image_tokenizer: "qlip".into(),
            generation: self.generation,
            self_check: self.mixture.checks().then(|| CHECK.to_owned()),
        };
        self.write_folder(run.out, &config, words.to_json()?.as_bytes())?;
        image_tokenizer.copy_to(&run.out.join("qlip"))?;
        let params = Params::for_training(tensors, &[], self.seed, DType::F32, &run.device);
        let model = Llama::of_vocab(&params, &config.text_config, &vocab)?;
        // a checkpoint's rows have their sums in them already
        let std = if params.contains(TABLE) { 0.0 } else { config.text_config.initializer_range };
        let shared = if self.shared_bits {
            Some(SharedBits::new(&params, TABLE, "shared_bits", &vocab.bit_patterns(&run.device)?, std)?)
        } else {
            None
        };
        let photos = match (&self.photos, self.mixture.photos > 0.0) {
            (Some(dir), true) => {
                let photos = Pictures::open(dir, "train")?;
                (run.say)(&format!("{}: {}", dir.display(), photos.summary()));
                // photographs are asked for by class
                photos.labels()?;
                Some(photos)
            }
            (None, true) => {
                let share = self.mixture.photos;
                let why = format!(
                    "photos is missing: the mixture has a share of {share} photographs; write photos = \"DIR\", or mixture.photos = 0"
                );
                return Err(Error::invalid(why));
            }
            (_, false) => None,
        };
        let open = |d| Documents::open(d, vocab.bits, vocab.grid);
        let documents = self.mixture.documents.iter().map(open).collect::<Result<Vec<_>>>()?;
        for (config, documents) in self.mixture.documents.iter().zip(&documents) {
            (run.say)(&format!("{}: {}", config.path.display(), documents.summary()));
        }
        let source = Source {
            photos: photos.as_ref(),
            mixture: &self.mixture,
            documents: &documents,
            marks: &marks,
            side: eyes.side(),
            seed: self.seed,
        };
        let pad = words.mark(&marks.end)?;
        let steps = LoopConfig {
            steps: self.steps,
            batch_size: self.batch_size,
            checkpoint_every: self.checkpoint_every,
            seed: self.seed,
            precision: self.precision,
        };
        let trainer = Trainer::new(steps, &self.optim, &params, run.out, run.resume);
        let trainer = Trainer { recompute: self.recompute, ..trainer };
        let out = run.out;
        trainer.run(
            |n| {
                let samples: Vec<Sample> =
                    (0..self.batch_size).into_par_iter().map(|row| source.sample(n, row)).collect::<Result<_>>()?;
                let sequences = self.sequences(&samples, &vocab, &words, &eyes)?;
                let batch = pack(&sequences, self.sequence_length, pad, self.block_diagonal)?;
                let model = match &shared {
                    Some(s) => model.with_table(s.rows()?)?,
                    None => model.clone(),
                };
                let x = model.embed(&batch.ids, batch.rows)?;
                let hidden = model.hidden(&x, &batch.positions, &batch.mask)?;
                let weights = &self.loss;
                let losses = split_loss(&model, &vocab, &hidden, &batch.targets, weights.z != 0.0)?;
                let mut metrics = vec![
                    ("text_targets", batch.targets.text.len() as f64),
                    ("visual_targets", batch.targets.visual.len() as f64),
                    ("rows", batch.rows as f64),
                ];
                let mut total: Option<Tensor> = None;
                let parts = [
                    ("text_loss", losses.text, weights.text),
                    ("visual_loss", losses.visual, weights.visual),
                    ("z_loss", losses.z, weights.z),
                ];
                for (name, loss, weight) in parts {
                    if let Some(l) = loss {
                        metrics.push((name, f64::from(l.to_scalar::<f32>()?)));
                        nn::ops::add_term(&mut total, (l * weight)?)?;
                    }
                }
                let loss = total.ok_or_else(|| Error::invalid("a batch without anything to learn"))?;
                StepOutput::of(&loss, metrics)
            },
            |weights| {
                let mut weights = weights.clone();
                if let Some(s) = &shared {
                    s.join(&mut weights)?;
                }
                checkpoint::save(&out.join("model.safetensors"), &weights, &[])
            },
            |p| (run.progress)(p),
        )
    }

    /// Samples to token sequences; all pictures of the batch are encoded at once.
    fn sequences(&self, samples: &[Sample], vocab: &MergedVocab, words: &Words, eyes: &Eyes) -> Result<Vec<Sequence>> {
        let images: Vec<_> = samples
            .iter()
            .flat_map(|s| &s.pieces)
            .filter_map(|p| match p {
                Piece::Image(i, _) => Some(i.clone()),
                Piece::Text(..) | Piece::Codes(..) => None,
            })
            .collect();
        // the codes that `tokenize` makes, whatever the training's arithmetic
        let codes = nn::Exec::exact(|| eyes.encode(&images))?;
        let mut encoded = 0..codes.images();
        let mut one = |sample: &Sample| -> Result<Sequence> {
            let mut s = Sequence::default();
            for piece in &sample.pieces {
                let (segment, learn) = match piece {
                    Piece::Text(t, learn) => (Segment::Text(words.encode(t)?), *learn),
                    Piece::Codes(c, learn) => (Segment::Image(c.clone()), *learn),
                    Piece::Image(_, learn) => {
                        let at = encoded.next().ok_or_else(|| Error::invalid("a picture was not encoded"))?;
                        (Segment::Image(codes.image(at).to_vec()), *learn)
                    }
                };
                s.push(vocab, &segment, learn || self.loss.on == LossOn::All);
            }
            if sample.cut {
                s.cut(vocab, self.sequence_length);
            }
            Ok(s)
        };
        samples.iter().map(&mut one).collect()
    }

    fn start(&self) -> Result<Start> {
        match (&self.start, &self.model) {
            (None, Some(model)) => Ok(Start::New(model.clone())),
            (Some(dir), None) => {
                let artifact = Artifact::open(&dir.to_string_lossy())?;
                let tensors = || artifact.tensors()?.into_memory();
                match artifact.architecture {
                    Architecture::Unified => {
                        Ok(Start::Unified(tensors()?, artifact.config::<UnifiedConfig>()?.text_config))
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

    /// Everything but the weights.
    fn write_folder(&self, out: &Path, config: &UnifiedConfig, tokenizer: &[u8]) -> Result<()> {
        let json = |v: &serde_json::Value| serde_json::to_vec_pretty(v).map_err(|e| Error::invalid(e.to_string()));
        let value = serde_json::to_value(config).map_err(|e| Error::invalid(e.to_string()))?;
        checkpoint::write_atomic(&out.join("config.json"), &json(&value)?)?;
        checkpoint::write_atomic(&out.join("tokenizer.json"), tokenizer)?;
        let template = serde_json::json!({ "chat_template": DEFAULT_TEMPLATE, "eos_token": config.marks.end });
        checkpoint::write_atomic(&out.join("tokenizer_config.json"), &json(&template)?)?;
        Ok(())
    }
}

/// What a training begins with.
enum Start {
    New(LlamaConfig),
    Unified(HashMap<String, Tensor>, LlamaConfig),
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
            Self::New(config) | Self::Unified(_, config) | Self::Llama(_, config) => config.hidden_size,
        }
    }

    /// Tensors and configuration with a table of `rows`.
    fn with_rows(self, rows: usize) -> Result<(HashMap<String, Tensor>, LlamaConfig)> {
        match self {
            Self::New(config) => Ok((HashMap::new(), LlamaConfig { vocab_size: rows, ..config })),
            Self::Unified(tensors, config) if config.vocab_size == rows => Ok((tensors, config)),
            Self::Unified(_, config) => Err(Error::invalid(format!(
                "`start` has {} vocabulary rows; this tokenizer and image tokenizer make {rows}",
                config.vocab_size
            ))),
            Self::Llama(tensors, config) => grow(tensors, &config, rows, true),
        }
    }
}

const TABLE: &str = "model.embed_tokens.weight";
