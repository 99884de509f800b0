//! Text to token ids for the text tower.

use nn::{Error, Result};
use std::path::Path;

/// tokenizer.json with the text tower's context length and marks.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: tokenizers::Tokenizer,
    context: usize,
    eos: u32,
}

impl TextTokenizer {
    /// From bytes of a tokenizer.json; `origin` names it in errors, `eos` ends a text and pads it.
    pub fn from_bytes(origin: &Path, bytes: &[u8], context: usize, eos: u32) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::bad_file(origin, format!("not a tokenizer.json ({e})")))?;
        Ok(Self { inner, context, eos })
    }

    /// Ids of a text with its start and end marks, cut to the context (the end mark stays), not padded.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true).map_err(|e| Error::invalid(format!("text `{text}`: {e}")))?;
        let mut ids = encoding.get_ids().to_vec();
        if ids.last() != Some(&self.eos) {
            ids.push(self.eos);
        }
        if ids.len() > self.context {
            ids.truncate(self.context);
            if let Some(last) = ids.last_mut() {
                *last = self.eos;
            }
        }
        Ok(ids)
    }

    /// Text of ids: start and end marks left out, a space where a word ends.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, true).map_err(|e| Error::invalid(format!("token ids: {e}")))?;
        Ok(text.replace("</w>", " ").trim().to_owned())
    }

    /// Ids of texts, padded with the end mark to the longest; returns the ids and that length.
    pub fn encode_batch(&self, texts: &[impl AsRef<str>]) -> Result<(Vec<u32>, usize)> {
        let all = texts.iter().map(|t| self.encode(t.as_ref())).collect::<Result<Vec<_>>>()?;
        let longest = all.iter().map(Vec::len).max().unwrap_or(0);
        let ids = all
            .into_iter()
            .flat_map(|mut t| {
                t.resize(longest, self.eos);
                t
            })
            .collect();
        Ok((ids, longest))
    }
}
