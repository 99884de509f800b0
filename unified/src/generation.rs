//! generation_config.json: what a checkpoint's authors want of sampling.

use crate::artifact::ModelFiles;
use crate::config::Generation;
use crate::words::Words;
use crate::{Error, Result};
use lm::llama::TokenIds;
use lm::{SampleSettings, Token};
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

    /// Tokens that end an answer: the file's, else config.json's, else the mark `eos`.
    pub fn ends(&self, config: &Option<TokenIds>, words: &Words, eos: &str) -> Result<Vec<Token>> {
        match self.eos_token_id.as_ref().or(config.as_ref()) {
            Some(TokenIds::One(i)) => Ok(vec![*i]),
            Some(TokenIds::Many(v)) => Ok(v.clone()),
            None => Ok(vec![words.mark(eos)?]),
        }
    }

    /// How words are to be drawn; pictures as usual.
    pub fn generation(&self) -> Generation {
        Generation { text: self.sampling(), ..Generation::default() }
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
