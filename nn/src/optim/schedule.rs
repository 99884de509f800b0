//! Learning rate over the steps of a training.

use serde::{Deserialize, Serialize};

/// Linear warm-up from 0, then half a cosine down to a floor that stays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cosine {
    /// Highest value.
    pub peak: f64,
    /// Last value.
    pub floor: f64,
    /// Steps of warm-up.
    pub warmup: usize,
    /// Step at which the floor is reached.
    pub total: usize,
}

impl Cosine {
    /// Value at a step, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / self.total.saturating_sub(self.warmup).max(1) as f64;
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
    }
}
