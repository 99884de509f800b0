//! `unified train CONFIG`: one config file, one training, one folder.

mod classifier;
mod llamagen;
mod llava;
mod llava_data;
mod pictures;
mod qlip_stage;
mod tokenizer;
mod um;
mod vq;

pub use classifier::ClassifierTraining;
pub use llamagen::LlamaGenTraining;
pub use llava::{LlavaTraining, conversations};
pub use llava_data::{Entry, Turn};
pub use qlip_stage::QlipTraining;
pub use tokenizer::TokenizerTraining;
pub use um::UnifiedTraining;
pub use vq::VqTraining;

use crate::{Error, Result};
use nn::train::{Progress, STATE_FILE, Summary};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A training config; `kind` says which.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Training {
    /// A byte-pair vocabulary.
    Tokenizer(TokenizerTraining),
    /// Stage 1 or 2 of the visual tokenizer.
    Qlip(Box<QlipTraining>),
    /// LlamaGen's image tokenizer.
    Vq(Box<VqTraining>),
    /// A classifier of pictures, for measuring drawings.
    Classifier(Box<ClassifierTraining>),
    /// LLaVA, stage 1 or 2.
    Llava(Box<LlavaTraining>),
    /// LlamaGen by class.
    LlamaGen(Box<LlamaGenTraining>),
    /// The unified model.
    Unified(Box<UnifiedTraining>),
}

/// Where a training runs and how it reports.
pub struct Run<'a> {
    /// Folder of the results.
    pub out: &'a Path,
    /// Continue an earlier run in the folder.
    pub resume: bool,
    /// Device.
    pub device: candle_core::Device,
    /// Called after every step.
    pub progress: &'a mut dyn FnMut(&Progress),
    /// Told a line about each source of data before the first step: what it holds, and what was passed over.
    pub say: &'a mut dyn FnMut(&str),
}

impl Training {
    /// Reads a TOML file and applies overrides `key=value` (dotted keys reach into sections).
    pub fn from_file(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let bad = |e: String| Error::bad_file(path, e.trim_end().replace('\n', " "));
        let mut table: toml::Table = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        for o in overrides {
            set(&mut table, o)?;
        }
        toml::Value::Table(table).try_into().map_err(|e: toml::de::Error| bad(e.message().to_owned()))
    }

    /// Runs it, leaving config, log, state and model in the folder.
    pub fn run(&self, run: &mut Run) -> Result<Option<Summary>> {
        let state = run.out.join(STATE_FILE);
        if !run.resume && state.exists() {
            let why = "a training is here already; go on with --resume, or choose another --out";
            return Err(Error::bad_file(&state, why));
        }
        if self.batch_size() == Some(0) {
            return Err(Error::invalid("batch_size = 0: nothing to train; write 1 or more"));
        }
        let new = !run.out.exists();
        std::fs::create_dir_all(run.out).map_err(Error::io(run.out))?;
        let text = toml::to_string(self).map_err(|e| Error::invalid(format!("config: {e}")))?;
        let config = run.out.join("training.toml");
        nn::checkpoint::write_atomic(&config, text.as_bytes())?;
        let done = self.begin(run);
        if done.is_err() && new && !run.out.join("metrics.jsonl").exists() {
            // it never began: nothing of it stays, unless something else is in the folder by now
            let _ = std::fs::remove_file(&config);
            let _ = std::fs::remove_dir(run.out);
        }
        done
    }

    fn batch_size(&self) -> Option<usize> {
        match self {
            Self::Tokenizer(_) => None,
            Self::Qlip(t) => Some(t.batch_size),
            Self::Vq(t) => Some(t.batch_size),
            Self::Classifier(t) => Some(t.batch_size),
            Self::Llava(t) => Some(t.batch_size),
            Self::LlamaGen(t) => Some(t.batch_size),
            Self::Unified(t) => Some(t.batch_size),
        }
    }

    fn begin(&self, run: &mut Run) -> Result<Option<Summary>> {
        match self {
            Self::Tokenizer(t) => t.run(run).map(|()| None),
            Self::Qlip(t) => t.run(run).map(Some),
            Self::Vq(t) => t.run(run).map(Some),
            Self::Classifier(t) => t.run(run).map(Some),
            Self::Llava(t) => t.run(run).map(Some),
            Self::LlamaGen(t) => t.run(run).map(Some),
            Self::Unified(t) => t.run(run).map(Some),
        }
    }
}

/// Sets `a.b.c=value` in a table; a value that is not TOML is taken as a string.
fn set(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let (key, value) =
        assignment.split_once('=').ok_or_else(|| Error::invalid(format!("--set {assignment}: write key=value")))?;
    let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().unwrap_or(key);
    let mut at = table;
    for p in parts {
        at = at
            .entry(p)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| Error::invalid(format!("--set {assignment}: `{p}` is not a section")))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}
