//! A context on its way through the model.

use super::{Context, Part};
use crate::vocab::Token;
use candle_core::Tensor;
use nn::cache::Slot;
use std::collections::VecDeque;

/// A context on its way.
pub(super) struct Line {
    pub slot: Slot,
    pub offset: u32,
    /// What is to be read, first part first.
    waiting: VecDeque<Part>,
    /// Hidden state [width] after the last token read.
    pub hidden: Option<Tensor>,
}

impl Line {
    pub fn new(c: Context, empty: impl FnOnce() -> Slot) -> Self {
        let waiting = c.prompt.into_iter().filter(|p| !p.is_empty()).collect();
        Self { slot: c.read.unwrap_or_else(empty), offset: c.offset, waiting, hidden: None }
    }

    /// Tokens that are to be read.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(Part::len).sum()
    }

    /// Whether all is read.
    pub fn is_read(&self) -> bool {
        self.waiting.is_empty()
    }

    /// One more token, which came or was set.
    pub fn push(&mut self, head: u8, token: Token) {
        self.hidden = None;
        self.waiting.push_back(Part::Tokens(head, vec![token]));
    }

    /// Begins with a cache that holds the first tokens of what is to be read.
    pub fn begin_with(&mut self, slot: Slot) {
        self.take(slot.len());
        self.slot = slot;
    }

    /// The first `n` tokens that are to be read, taken out.
    pub fn take(&mut self, n: usize) -> Vec<Part> {
        let mut out = Vec::new();
        let mut left = n;
        while left > 0 {
            let Some(part) = self.waiting.pop_front() else { break };
            if part.len() <= left {
                left -= part.len();
                out.push(part);
                continue;
            }
            let (a, b) = match part {
                Part::Tokens(head, mut ids) => {
                    let rest = ids.split_off(left);
                    (Part::Tokens(head, ids), Part::Tokens(head, rest))
                }
                Part::Embedded(t, mut keys) => {
                    let rest = keys.split_off(left);
                    // the shape was checked when the request came
                    let part = |from: usize, len: usize| t.narrow(0, from, len).unwrap_or_else(|_| t.clone());
                    (Part::Embedded(part(0, left), keys), Part::Embedded(part(left, rest.len()), rest))
                }
            };
            out.push(a);
            self.waiting.push_front(b);
            left = 0;
        }
        out
    }
}
