//! Decoding a batch of sequences of different lengths, padded on the left.

use crate::llama::{KvCache, Llama};
use candle_core::Tensor;
use nn::ops::{Mask, Positions};
use nn::{Error, Result};

/// A batch on its way through the model.
#[derive(Clone)]
pub struct Decoding<'a> {
    model: &'a Llama,
    cache: KvCache,
    pads: Vec<usize>,
}

impl<'a> Decoding<'a> {
    /// Reads the contexts (none of them empty) and returns the hidden state after each, [rows, width].
    pub fn start(model: &'a Llama, contexts: &[Vec<u32>]) -> Result<(Self, Tensor)> {
        let longest = contexts.iter().map(Vec::len).max().unwrap_or(0);
        if contexts.iter().any(Vec::is_empty) || contexts.is_empty() {
            return Err(Error::invalid("an empty context: there is nothing to continue"));
        }
        let pads: Vec<usize> = contexts.iter().map(|c| longest - c.len()).collect();
        let ids: Vec<u32> =
            contexts.iter().zip(&pads).flat_map(|(c, &p)| std::iter::repeat_n(0, p).chain(c.iter().copied())).collect();
        let mut this = Self { model, cache: model.cache(), pads };
        let hidden = this.run(&ids)?;
        Ok((this, hidden))
    }

    /// As [`Self::start`], from contexts that are embedded already (text with picture features between), each
    /// [tokens, width].
    pub fn start_embedded(model: &'a Llama, contexts: &[Tensor]) -> Result<(Self, Tensor)> {
        let lengths = contexts.iter().map(|c| c.dim(0)).collect::<candle_core::Result<Vec<_>>>()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if lengths.contains(&0) || lengths.is_empty() {
            return Err(Error::invalid("an empty context: there is nothing to continue"));
        }
        let pads: Vec<usize> = lengths.iter().map(|l| longest - l).collect();
        let rows = contexts.iter().zip(&pads).map(|(c, &p)| c.pad_with_zeros(0, p, 0));
        let x = Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let mut this = Self { model, cache: model.cache(), pads };
        let hidden = this.run_embedded(&x)?;
        Ok((this, hidden))
    }

    /// Appends tokens, as many to every row, and returns the hidden states after the last of each, [rows, width].
    pub fn advance(&mut self, tokens: &[u32]) -> Result<Tensor> {
        self.run(tokens)
    }

    /// The rows that `rows` name, in that order; one may come more than once, and continues in as many ways.
    pub fn select(&mut self, rows: &[usize]) -> Result<()> {
        if let Some(row) = rows.iter().find(|r| **r >= self.pads.len()) {
            return Err(Error::invalid(format!("row {row} of a batch of {}", self.pads.len())));
        }
        self.pads = rows.iter().map(|&r| self.pads[r]).collect();
        self.cache.select(&rows.iter().map(|&r| r as u32).collect::<Vec<_>>())
    }

    /// Takes the rows of another decoding into this batch, after its own: from here on both advance as one.
    pub fn join(&mut self, other: &Decoding) -> Result<()> {
        let (mine, others) = (self.len(), other.len());
        self.cache.join(&other.cache)?;
        let len = self.len();
        self.pads.iter_mut().for_each(|p| *p += len - mine);
        self.pads.extend(other.pads.iter().map(|p| p + len - others));
        Ok(())
    }

    /// Tokens read so far, padding included.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Never true: a decoding starts with its contexts.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    fn run(&mut self, ids: &[u32]) -> Result<Tensor> {
        let x = self.model.embed(ids, self.pads.len())?;
        self.run_embedded(&x)
    }

    fn run_embedded(&mut self, x: &Tensor) -> Result<Tensor> {
        let (from, to) = (self.cache.len(), self.cache.len() + x.dim(1)?);
        if to > self.model.max_positions() {
            return Err(Error::invalid(format!(
                "{to} tokens are more than the {} the model can hold; start a new conversation",
                self.model.max_positions()
            )));
        }
        let each = |f: fn(usize, usize) -> usize| -> Vec<u32> {
            self.pads.iter().flat_map(|&p| (from..to).map(move |t| f(p, t) as u32)).collect()
        };
        let positions = Positions::Each(each(|p, t| t.saturating_sub(p)).into());
        // padding sees itself, so that no query is without keys
        let mask = Mask::CausalFrom(each(usize::min).into());
        let h = self.model.hidden(x, &positions, &mask, Some(&mut self.cache))?;
        Ok(h.narrow(1, to - from - 1, 1)?.squeeze(1)?.contiguous()?)
    }
}
