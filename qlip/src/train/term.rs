//! A term of a loss.

use super::number;
use candle_core::Tensor;
use nn::Result;
use nn::ops::add_term;
use std::collections::BTreeMap;

/// Named numbers for the log.
pub(super) type Metrics = BTreeMap<&'static str, f64>;

/// A loss and what is to be said of it.
pub(super) struct Term {
    pub(super) loss: Option<Tensor>,
    /// What the gradient rule weighs against each other: the pixel terms by their own weights, and alignment.
    pub(super) balanced: Option<Tensor>,
    pub(super) metrics: Metrics,
}

impl Term {
    pub(super) fn new() -> Self {
        Self { loss: None, balanced: None, metrics: Metrics::new() }
    }

    pub(super) fn add(&mut self, name: &'static str, weight: f64, value: &Tensor) -> Result<()> {
        self.metrics.insert(name, number(value)?);
        if weight != 0.0 {
            add_term(&mut self.loss, (value * weight)?)?;
        }
        Ok(())
    }

    /// A term that the gradient rule weighs: `factor` is what it said last.
    pub(super) fn add_balanced(&mut self, name: &'static str, weight: f64, factor: f64, value: &Tensor) -> Result<()> {
        self.add(name, weight * factor, value)?;
        add_term(&mut self.balanced, (value * weight)?)?;
        Ok(())
    }
}

/// Zero, with gradients of zero: times a tensor, because candle cuts the graph where it multiplies by the number 0.
pub(super) fn idle(t: &Tensor) -> Result<Tensor> {
    Ok((t * t.zeros_like()?)?)
}
