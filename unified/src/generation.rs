//! generation_config.json: what a checkpoint's authors want of sampling.

use crate::files::ModelFiles;
use crate::{Error, Result};
use lm::SampleSettings;
use lm::llama::TokenIds;
use serde::Deserialize;

/// The keys that say how words are drawn; the others of the file are about training or about searches that are not done here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "published field names")]
pub struct GenerationFile {
    pub eos_token_id: Option<TokenIds>,
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl GenerationFile {
    /// Of a model's folder; nothing where there is no such file.
    pub fn of(files: &ModelFiles) -> Result<Self> {
        const NAME: &str = "generation_config.json";
        if !files.has(NAME) {
            return Ok(Self::default());
        }
        let path = files.path_of(NAME);
        let this: Self = serde_json::from_str(&files.text(NAME)?).map_err(|e| Error::bad_file(&path, e.to_string()))?;
        this.sampling().check().map_err(|e| Error::bad_file(&path, e.to_string()))?;
        Ok(this)
    }

    /// As sampling settings; without `do_sample` the likeliest token.
    pub fn sampling(&self) -> SampleSettings {
        let s =
            SampleSettings { repetition_penalty: self.repetition_penalty.unwrap_or(1.0), ..SampleSettings::greedy() };
        if self.do_sample != Some(true) {
            return s;
        }
        // transformers' values of what the file leaves out
        SampleSettings {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(50),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            ..s
        }
    }
}
