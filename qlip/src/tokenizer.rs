//! Text to token ids for the text tower.

use nn::{Error, Result};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// The tokenizer in bytes of a tokenizer.json; `origin` names them in errors.
pub fn parse(origin: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let bad = |why: &str| Error::bad_file(origin, format!("not a tokenizer.json ({why})"));
    if let Ok(Merges { model }) = serde_json::from_slice(bytes) {
        model.check().map_err(|why| bad(&why))?;
    }
    // a fence for what the library does not expect and the check above does not know
    nn::guard::guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
        .map_err(|_| bad("its parts do not fit together"))?
        .map_err(|e| bad(&e.to_string()))
}

/// The part of a tokenizer.json that the library trusts: it writes each merged pair to a buffer of the longest entry's size.
#[derive(Deserialize)]
struct Merges {
    model: Bpe,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

impl Bpe {
    fn check(&self) -> std::result::Result<(), String> {
        let longest = self.vocab.keys().map(String::len).max().unwrap_or(0);
        let prefix = self.continuing_subword_prefix.as_deref().unwrap_or("");
        for merge in &self.merges {
            let (a, b) = match merge {
                Merge::Line(line) => line.split_once(' ').unwrap_or((line, prefix)),
                Merge::Pair(a, b) => (a.as_str(), b.as_str()),
            };
            let Some(b) = b.strip_prefix(prefix) else {
                return Err(format!("the merge `{a} {b}` lacks the prefix `{prefix}`"));
            };
            if a.len() + b.len() > longest {
                return Err(format!("the merge `{a} {b}` is in no entry of its vocabulary"));
            }
        }
        Ok(())
    }
}

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
        Ok(Self { inner: parse(origin, bytes)?, context, eos })
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

#[cfg(test)]
mod tests {
    use super::parse;
    use std::path::Path;

    #[test]
    fn merges_that_no_entry_can_hold_are_an_error() {
        let json =
            r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"aa":0,"bb":1},"merges":["aa bb"]}}"#;
        let error = parse(Path::new("broken.json"), json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("broken.json") && error.contains("`aa bb`"), "{error}");
    }
}
