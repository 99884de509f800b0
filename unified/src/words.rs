//! Text to tokens of the language model and back.

use crate::{Error, Result};
use std::path::Path;

/// A tokenizer.json.
#[derive(Clone)]
pub struct Words {
    inner: tokenizers::Tokenizer,
}

impl Words {
    /// From bytes; `origin` names them in errors.
    pub fn from_bytes(origin: &Path, bytes: &[u8]) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::bad_file(origin, format!("not a tokenizer.json ({e})")))?;
        Ok(Self { inner })
    }

    /// Entries, marks included.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids of a text; marks in it become their ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let e = self.inner.encode(text, false).map_err(|e| Error::invalid(format!("text `{text}`: {e}")))?;
        Ok(e.get_ids().to_vec())
    }

    /// Text of ids, marks left out. Bytes that are no UTF-8 become replacement characters.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| Error::invalid(format!("token ids: {e}")))
    }

    /// How an entry is written.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a mark.
    pub fn mark(&self, mark: &str) -> Result<u32> {
        self.inner.token_to_id(mark).ok_or_else(|| Error::invalid(format!("the tokenizer has no entry `{mark}`")))
    }
}
