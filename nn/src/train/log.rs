//! metrics.jsonl: one JSON object an update, and one a validation.

use crate::{Error, Result, checkpoint};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log, which grows.
pub(super) struct Log {
    path: PathBuf,
    file: std::fs::File,
}

impl Log {
    /// Opens the log and drops lines after `step`, which a killed run may have written beyond its last checkpoint.
    pub fn open(path: &Path, step: usize) -> Result<Self> {
        let kept: String = match std::fs::read_to_string(path) {
            Ok(text) if step > 0 => text
                .lines()
                .filter(|l| {
                    let line = serde_json::from_str::<serde_json::Value>(l).ok();
                    line.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step as u64)
                })
                .flat_map(|l| [l, "\n"])
                .collect(),
            _ => String::new(),
        };
        checkpoint::write_atomic(path, kept.as_bytes())?;
        let file = std::fs::OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    pub fn line(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        let mut line = serde_json::Map::new();
        line.insert("step".into(), step.into());
        for (k, v) in values {
            line.insert(k.clone(), (*v).into());
        }
        let text = serde_json::Value::Object(line).to_string() + "\n";
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))
    }

    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}
