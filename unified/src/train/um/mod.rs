//! Training of the unified model: one decoder over text and pictures (UM3 section 4).

mod start;
mod task;

use self::start::Start;
use self::task::Unifying;
use super::llamagen::Head;
use super::{Run, adapters, flip, write_json};
use crate::artifact::{Artifact, Placement};
use crate::config::{Generation, UnifiedConfig};
use crate::corpus::CHECK;
use crate::data::{DataConfig, SampleTemplate};
use crate::eyes::Eyes;
use crate::mixture::{Frame, Mixture, Source};
use crate::template::{DEFAULT_TEMPLATE, Marks};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::DType;
use lm::head::BitwiseConfig;
use lm::shared_bits::SharedBits;
use lm::{Llama, LlamaConfig, MergedVocab};
use nn::Params;
use nn::params::Lora;
use nn::stored::Stored;
use nn::train::{OptimConfig, RunConfig, Summary};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
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

const TABLE: &str = "model.embed_tokens.weight";

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
        let start = Start::of(self)?;
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
}
