//! Text to tokens of the language model and back.

use crate::{Error, Result};
use std::path::Path;
use tokenizers::AddedToken;

/// A tokenizer.json.
#[derive(Clone)]
pub struct Words {
    inner: tokenizers::Tokenizer,
}

impl Words {
    /// From bytes; `origin` names them in errors.
    pub fn from_bytes(origin: &Path, bytes: &[u8]) -> Result<Self> {
        Ok(Self { inner: qlip::tokenizer::parse(origin, bytes)? })
    }

    /// The same with these marks, added at the end where they are not there yet.
    pub fn with_marks(mut self, marks: &[&str]) -> Result<Self> {
        let new: Vec<AddedToken> = marks
            .iter()
            .filter(|m| self.inner.token_to_id(m).is_none())
            .map(|m| AddedToken::from((*m).to_owned(), true))
            .collect();
        self.inner.add_special_tokens(new).map_err(|e| Error::invalid(format!("marks: {e}")))?;
        Ok(self)
    }

    /// tokenizer.json.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::invalid(format!("tokenizer: {e}")))
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

    /// Ids of a text, each with the byte of the text that it begins at.
    pub fn encode_with_places(&self, text: &str) -> Result<Vec<(u32, usize)>> {
        let e = self.inner.encode(text, false).map_err(|e| Error::invalid(format!("text `{text}`: {e}")))?;
        Ok(e.get_ids().iter().zip(e.get_offsets()).map(|(&id, place)| (id, place.0)).collect())
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
