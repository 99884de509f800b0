//! Rows of a vocabulary in which an image tokenizer's codes are entries among others (Chameleon, Emu3).

use lm::{Source, Token};
use std::collections::HashMap;

/// Codes as tokens and back.
#[derive(Debug, Clone)]
pub struct CodeRows {
    tokens: Vec<Token>,
    codes: HashMap<Token, u32>,
}

impl CodeRows {
    /// `tokens[code]` is a code's token; there is at least one.
    pub fn new(tokens: Vec<Token>) -> Self {
        let codes = tokens.iter().enumerate().map(|(code, &t)| (t, code as u32)).collect();
        Self { tokens, codes }
    }

    /// How many codes.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// A code's token.
    pub fn token(&self, code: u32) -> Option<Token> {
        self.tokens.get(code as usize).copied()
    }

    /// A token's code, where it is one.
    pub fn code(&self, token: Token) -> Option<u32> {
        self.codes.get(&token).copied()
    }

    /// The rows from the first code to the last.
    pub fn source(&self) -> Source {
        let first = self.tokens.iter().min().copied().unwrap_or(0);
        let last = self.tokens.iter().max().copied().unwrap_or(0);
        Source::rows(first as usize..last as usize + 1)
    }

    /// What lies between them and is no code.
    pub fn between(&self) -> Vec<Token> {
        let s = self.source();
        (s.start..s.start + Token::from(s.rows)).filter(|t| !self.codes.contains_key(t)).collect()
    }

    /// All tokens that are codes.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }
}
