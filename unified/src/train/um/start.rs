//! What a unified training begins with: a new model, a unified one, or a Llama whose table grows.

use super::UnifiedTraining;
use crate::artifact::{Architecture, Artifact};
use crate::config::UnifiedConfig;
use crate::{Error, Result};
use candle_core::Tensor;
use lm::grow::{grow, with_more_bits};
use lm::{LlamaConfig, MergedVocab};
use std::collections::HashMap;

/// What a training begins with.
pub enum Start {
    New(LlamaConfig),
    Unified(HashMap<String, Tensor>, LlamaConfig, Box<MergedVocab>),
    Llama(HashMap<String, Tensor>, LlamaConfig),
}

impl Start {
    /// What a config names.
    pub fn of(config: &UnifiedTraining) -> Result<Self> {
        match (&config.start, &config.model) {
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

    /// Text rows that a checkpoint's table has.
    pub fn text_rows(&self) -> usize {
        match self {
            Self::Llama(_, config) => config.vocab_size,
            Self::New(_) | Self::Unified(..) => 0,
        }
    }

    /// Width of the model.
    pub fn width(&self) -> usize {
        match self {
            Self::New(config) | Self::Unified(_, config, _) | Self::Llama(_, config) => config.hidden_size,
        }
    }

    /// Tensors and configuration for a vocabulary.
    pub fn grown(self, vocab: &MergedVocab, seed: u64) -> Result<(HashMap<String, Tensor>, LlamaConfig)> {
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
