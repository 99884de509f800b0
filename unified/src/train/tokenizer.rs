//! A byte-level byte-pair vocabulary for small models, trained on the corpus of scenes, captions and small talk.

use super::Run;
use crate::{Error, Result, corpus};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder,
};

/// Marks, in the order of their ids from 0 on. Start and end frame a text for the text tower; the others are the chat's.
pub const MARKS: [&str; 7] =
    ["<|startoftext|>", "<|endoftext|>", "<|image|>", "<|/image|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// Config of a tokenizer training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenizerTraining {
    /// Entries, marks and the 256 bytes included.
    pub vocab_size: usize,
    /// Scenes that the corpus describes.
    pub scenes: usize,
    /// Class names of photographs that the corpus names.
    pub classes: Vec<String>,
    /// Files with `{"text": ..}` a line that belong to the corpus.
    #[serde(default)]
    pub documents: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

impl TokenizerTraining {
    /// Writes tokenizer.json.
    pub fn run(&self, run: &mut Run) -> Result<()> {
        let bad = |e: tokenizers::Error| Error::invalid(format!("tokenizer: {e}"));
        let mut lines = corpus::lines(&self.classes, self.scenes);
        for path in &self.documents {
            let file = std::fs::read_to_string(path).map_err(Error::io(path))?;
            for (i, line) in file.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                let text: Text = serde_json::from_str(line)
                    .map_err(|e| Error::bad_file(path, format!("line {}: no object with `text` ({e})", i + 1)))?;
                lines.push(text.text);
            }
        }
        let bytes = ByteLevel::new(false, true, true);
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(self.vocab_size)
            .special_tokens(MARKS.iter().map(|m| AddedToken::from(*m, true)).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let template = TemplateProcessing::builder()
            .try_single(format!("{} $A {}", MARKS[0], MARKS[1]))
            .map_err(|e| Error::invalid(e.to_string()))?
            .special_tokens(vec![(MARKS[0], 0), (MARKS[1], 1)])
            .build()
            .map_err(|e| Error::invalid(e.to_string()))?;
        let mut tokenizer = TokenizerBuilder::<
            BPE,
            NormalizerWrapper,
            PreTokenizerWrapper,
            PostProcessorWrapper,
            DecoderWrapper,
        >::default()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(bytes)))
        .with_post_processor(Some(PostProcessorWrapper::Template(template)))
        .with_decoder(Some(DecoderWrapper::ByteLevel(bytes)))
        .build()
        .map_err(bad)?;
        tokenizer.train(&mut trainer, lines.iter().map(String::as_str)).map_err(bad)?;
        let json = tokenizer.to_string(true).map_err(bad)?;
        nn::checkpoint::write_atomic(&run.out.join("tokenizer.json"), json.as_bytes())
    }
}
