//! `unified train CONFIG`: one config file, one training, one folder.

mod adapters;
mod classifier;
mod codes;
mod config;
pub mod conversations;
mod flip;
mod llamagen;
mod llava;
mod pictures;
pub mod plan;
mod qlip_stage;
#[cfg(feature = "schema")]
pub mod schema;
mod sheet;
mod tokenizer;
mod um;
mod vq;

pub use classifier::ClassifierTraining;
pub use llamagen::LlamaGenTraining;
pub use llava::LlavaTraining;
pub use qlip_stage::QlipTraining;
pub use tokenizer::TokenizerTraining;
pub use um::UnifiedTraining;
pub use vq::VqTraining;

use crate::data::DataConfig;
use crate::{Error, Result};
use nn::Params;
use nn::parallel::World;
use nn::train::{OptimConfig, Progress, RunConfig, STATE_FILE, Summary, Trainer};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
    /// The processes that train together.
    pub world: &'a World,
    /// Called after every step; false ends the training with a checkpoint.
    pub progress: &'a mut dyn FnMut(&Progress) -> bool,
    /// Told a line about each source of data before the first step: what it holds, and what was passed over.
    pub say: &'a mut dyn FnMut(&str),
}

impl<'a> Run<'a> {
    /// A trainer in this folder.
    fn trainer<'b>(&self, run: &'b RunConfig, optim: &'b OptimConfig, params: &'b Params) -> Trainer<'b>
    where
        'a: 'b,
    {
        Trainer { run, optim, params, out: self.out, resume: self.resume, world: self.world, apart: &[] }
    }

    /// A file of the folder, written by the first process alone.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.world.is_first() { nn::checkpoint::write_atomic(&self.out.join(name), bytes) } else { Ok(()) }
    }

    /// Which samples could not be read, if any, beside the model.
    fn name_broken(&self, broken: &[String]) -> Result<()> {
        if broken.is_empty() { Ok(()) } else { self.write("broken.txt", (broken.join("\n") + "\n").as_bytes()) }
    }
}

/// A JSON file of the folder.
fn write_json(run: &Run, name: &str, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value).map_err(|e| Error::invalid(e.to_string()))?;
    run.write(name, json.as_bytes())
}

impl Training {
    /// Keys of an earlier run's config that are another now, as "key: old -> new". What makes another model is an error.
    fn changes(&self, before: &str, path: &Path) -> Result<Vec<String>> {
        const MODEL: [&str; 8] = ["kind", "model", "preset", "head", "head_width", "group_bits", "stage", "lora"];
        config::renamed(before, path)?;
        let old: toml::Table = toml::from_str(before).map_err(|e| Error::bad_file(path, e.message().to_owned()))?;
        let text = toml::to_string(self).map_err(|e| Error::invalid(format!("config: {e}")))?;
        let new: toml::Table = toml::from_str(&text).map_err(|e| Error::invalid(e.message().to_owned()))?;
        let mut out = Vec::new();
        differences("", &toml::Value::Table(old), &toml::Value::Table(new), &mut out);
        let of_model = |key: &str| MODEL.iter().any(|m| key == *m || key.starts_with(&format!("{m}.")));
        if let Some((key, change)) = out.iter().find(|c| of_model(&c.0)) {
            let why = format!(
                "--resume: {key}: {change}: that is another model; choose another --out, or start = this folder"
            );
            return Err(Error::bad_file(path, why));
        }
        Ok(out.into_iter().map(|(key, change)| format!("{key}: {change}")).collect())
    }

    /// Runs it, leaving config, log, state and model in the folder.
    pub fn run(&self, run: &mut Run) -> Result<Option<Summary>> {
        let state = run.out.join(STATE_FILE);
        if !run.resume && state.exists() {
            let why = "a training is here already; go on with --resume, or choose another --out";
            return Err(Error::bad_file(&state, why));
        }
        self.run_config().map_or(Ok(()), RunConfig::check)?;
        if !run.world.is_first() {
            // the first process makes the folder ready
            run.world.any(false);
            return self.begin(run);
        }
        self.keep(run, &state)
    }

    /// Runs it as the process that writes: config, lock, and what a run that cannot go on would leave changed.
    fn keep(&self, run: &mut Run, state: &Path) -> Result<Option<Summary>> {
        let new = !run.out.exists();
        let config = run.out.join("training.toml");
        if run.resume && !state.exists() && !matches!(self, Self::Tokenizer(_)) {
            (run.say)(&format!("{}: no training to go on with; it begins anew", run.out.display()));
        }
        let before = std::fs::read_to_string(&config).ok().filter(|_| state.exists());
        for change in before.as_ref().map_or(Ok(Vec::new()), |b| self.changes(b, &config))? {
            (run.say)(&format!("other than before: {change}"));
        }
        std::fs::create_dir_all(run.out).map_err(Error::io(run.out))?;
        // held until the end, and given back by the system whatever happens
        let lock = std::fs::File::create(run.out.join(LOCK)).map_err(Error::io(run.out))?;
        if lock.try_lock().is_err() {
            return Err(Error::bad_file(run.out, "another training runs in this folder; choose another --out"));
        }
        // what a run that cannot go on would leave changed
        let kept: Vec<(PathBuf, Vec<u8>)> = ["training.toml", "config.json", "tokenizer.json", "classes.json"]
            .iter()
            .filter_map(|name| Some((run.out.join(name), std::fs::read(run.out.join(name)).ok()?)))
            .collect();
        let at = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let (state_before, text) =
            (at(state), toml::to_string(self).map_err(|e| Error::invalid(format!("config: {e}")))?);
        nn::checkpoint::write_atomic(&config, text.as_bytes())?;
        run.world.any(false);
        let done = self.begin(run);
        if done.is_err() && state.exists() && at(state) == state_before {
            // nothing was trained: the folder is as it was
            for (path, bytes) in &kept {
                nn::checkpoint::write_atomic(path, bytes)?;
            }
        }
        let _ = std::fs::remove_file(run.out.join(LOCK));
        if done.is_err() && new && !run.out.join("metrics.jsonl").exists() {
            // it never began: nothing of it stays, unless something else is in the folder by now
            let _ = std::fs::remove_file(&config);
            let _ = std::fs::remove_dir(run.out);
        }
        done
    }

    /// Section `[run]`; a text tokenizer has none.
    pub fn run_config(&self) -> Option<&RunConfig> {
        match self {
            Self::Tokenizer(_) => None,
            Self::Qlip(t) => Some(&t.run),
            Self::Vq(t) => Some(&t.run),
            Self::Classifier(t) => Some(&t.run),
            Self::Llava(t) => Some(&t.run),
            Self::LlamaGen(t) => Some(&t.run),
            Self::Unified(t) => Some(&t.run),
        }
    }

    /// The sources of `[[data]]`.
    pub fn data(&self) -> &[DataConfig] {
        match self {
            Self::Tokenizer(_) => &[],
            Self::Qlip(t) => &t.data,
            Self::Vq(t) => &t.data,
            Self::Classifier(t) => &t.data,
            Self::Llava(t) => &t.data,
            Self::LlamaGen(t) => &t.data,
            Self::Unified(t) => &t.data,
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

/// Marks a folder in which a training runs.
const LOCK: &str = "training.lock";

/// Keys that differ, and how.
fn differences(at: &str, old: &toml::Value, new: &toml::Value, out: &mut Vec<(String, String)>) {
    if let (toml::Value::Table(a), toml::Value::Table(b)) = (old, new) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let name = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            match (a.get(key), b.get(key)) {
                (Some(x), Some(y)) => differences(&name, x, y, out),
                (Some(x), None) => out.push((name, format!("{x} -> (absent)"))),
                // a key that an older version did not write
                (None, Some(_)) | (None, None) => {}
            }
        }
    } else if old != new {
        out.push((at.to_owned(), format!("{old} -> {new}")));
    }
}
