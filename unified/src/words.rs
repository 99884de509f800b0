//! Text to tokens of the language model and back.

use crate::{Error, Result};
use lm::Token;
use std::path::Path;
use tokenizers::AddedToken;

/// A tokenizer.json.
#[derive(Clone)]
pub struct Words {
    inner: tokenizers::Tokenizer,
    /// The same, which reads marks as the letters that they are written with.
    plain: tokenizers::Tokenizer,
    /// How marks are written.
    marks: Vec<String>,
}

/// Around the place of a mark that a person wrote, in a text that is to be encoded: characters of the private use area.
const TYPED: [char; 2] = ['\u{F8F0}', '\u{F8F1}'];

impl Words {
    /// From bytes; `origin` names them in errors.
    pub fn from_bytes(origin: &Path, bytes: &[u8]) -> Result<Self> {
        Ok(Self::of(qlip::tokenizer::parse(origin, bytes)?))
    }

    fn of(inner: tokenizers::Tokenizer) -> Self {
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        let special = inner.get_added_tokens_decoder().into_values().filter(|t| t.special);
        let mut marks: Vec<String> = special.map(|t| t.content).filter(|t| !t.trim().is_empty()).collect();
        // the longest first, so that none hides in another
        marks.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        Self { inner, plain, marks }
    }

    /// A person's words as a template may show them: marks in them are noted as words, which [`Self::encode`] reads back.
    pub fn typed(&self, text: &str) -> String {
        let mut text = text.replace(TYPED, "");
        for (i, mark) in self.marks.iter().enumerate() {
            text = text.replace(mark.as_str(), &format!("{}{i}{}", TYPED[0], TYPED[1]));
        }
        text
    }

    /// Parts of a text, and whether each is a mark that a person typed.
    fn parts<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (&'a str, bool)> {
        text.split(TYPED[0])
            .enumerate()
            .flat_map(|(n, part)| {
                if n == 0 {
                    return [Some((part, false)), None];
                }
                match part.split_once(TYPED[1]) {
                    Some((i, rest)) => {
                        let mark = i.parse().ok().and_then(|i: usize| self.marks.get(i)).map_or("", String::as_str);
                        [Some((mark, true)), Some((rest, false))]
                    }
                    None => [Some((part, false)), None],
                }
            })
            .flatten()
            .filter(|p| !p.0.is_empty())
    }

    /// The same with these marks, added at the end where they are not there yet.
    pub fn with_marks(mut self, marks: &[&str]) -> Result<Self> {
        let new: Vec<AddedToken> = marks
            .iter()
            .filter(|m| self.inner.token_to_id(m).is_none())
            .map(|m| AddedToken::from((*m).to_owned(), true))
            .collect();
        self.inner.add_special_tokens(new).map_err(|e| Error::invalid(format!("marks: {e}")))?;
        Ok(Self::of(self.inner))
    }

    /// tokenizer.json.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::invalid(format!("tokenizer: {e}")))
    }

    /// Entries, marks included.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The highest number of an entry, and one: more than the entries where numbers are left out.
    pub fn rows(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids of a text; marks in it become their ids.
    pub fn encode(&self, text: &str) -> Result<Vec<Token>> {
        let mut ids = Vec::new();
        for (part, typed) in self.parts(text) {
            let with = if typed { &self.plain } else { &self.inner };
            let e = with.encode(part, false).map_err(|e| Error::invalid(format!("text `{part}`: {e}")))?;
            ids.extend(e.get_ids().iter().map(|&id| Token::from(id)));
        }
        Ok(ids)
    }

    /// Ids of a text, each with the byte of the text that it begins at.
    pub fn encode_with_places(&self, text: &str) -> Result<Vec<(Token, usize)>> {
        let e = self.inner.encode(text, false).map_err(|e| Error::invalid(format!("text `{text}`: {e}")))?;
        Ok(e.get_ids().iter().zip(e.get_offsets()).map(|(&id, place)| (Token::from(id), place.0)).collect())
    }

    /// Text of ids, marks left out. Bytes that are no UTF-8 become replacement characters.
    pub fn decode(&self, ids: &[Token]) -> Result<String> {
        // what is no text's is passed over, as the tokenizer does with ids that it has not
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.inner.decode(&ids, true).map_err(|e| Error::invalid(format!("token ids: {e}")))
    }

    /// How an entry is written.
    pub fn token(&self, id: Token) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// The id of a mark.
    pub fn mark(&self, mark: &str) -> Result<Token> {
        self.inner
            .token_to_id(mark)
            .map(Token::from)
            .ok_or_else(|| Error::invalid(format!("the tokenizer has no entry `{mark}`")))
    }
}
