//! How pixels are weighed against alignment.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Decay of the running averages.
const DECAY: f64 = 0.99;

/// A rule. Each multiplies the weights `reconstruction`, `l1` and `log_mse`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// None: weights chosen beforehand, as the paper does (section 4; `unified train --probe-balance` finds them).
    #[default]
    Constant,
    /// Alignment's over the pixel error's running average, so that both terms are of one size.
    Running,
    /// Alignment's over the pixel error's gradient at the vision tower's last linear layer (VQGAN's lambda), measured
    /// every [`Balance::EVERY`] steps.
    Gradient,
}

impl Balance {
    /// Steps from one measurement of gradients to the next.
    pub const EVERY: usize = 20;

    /// The factor of the pixel term, from numbers that earlier steps left.
    pub fn factor(self, numbers: &BTreeMap<String, f64>) -> f64 {
        let get = |k: &str| numbers.get(k).copied();
        let ratio = match self {
            Self::Constant => None,
            Self::Running => get("balance.align").zip(get("balance.pixels")),
            Self::Gradient => get("balance.align_grad").zip(get("balance.pixels_grad")),
        };
        ratio.map_or(1.0, |(align, pixels)| (align / pixels.max(1e-12)).clamp(1e-4, 1e4))
    }

    /// Takes a measurement into a running average; the first one is the average.
    pub fn note(numbers: &mut BTreeMap<String, f64>, name: &str, value: f64) {
        let average = numbers.entry(name.to_owned()).or_insert(value);
        *average = DECAY * *average + (1.0 - DECAY) * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_averages_bring_both_terms_to_one_size() {
        let mut n = BTreeMap::new();
        assert_eq!(Balance::Running.factor(&n), 1.0);
        for _ in 0..500 {
            Balance::note(&mut n, "balance.align", 2.0);
            Balance::note(&mut n, "balance.pixels", 0.005);
        }
        assert!((Balance::Running.factor(&n) - 400.0).abs() < 1e-6);
        assert_eq!(Balance::Constant.factor(&n), 1.0);
    }
}
