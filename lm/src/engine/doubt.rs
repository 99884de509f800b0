//! How open a request's last choices were, and what that does to guidance and temperature.
//!
//! A model may be nearly certain of all it draws in one kind of picture (a scene of shapes) and of hardly anything in another (a photograph): the
//! first wants little guidance and a low temperature, the second much of both. After the entropy-based temperature of Zhang et al. 2024
//! (arXiv 2403.14541); the entropy is that of the main context's logits, and a running mean, since one sure bit of an open token says little.

/// What guidance and temperature become where every choice is as likely as another. From where they are when the model is certain, they go there with
/// the square of the entropy's mean: a little doubt is a choice or two that are open in a picture that is certain otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Uncertain {
    /// Of each guidance scale; nothing: they stay.
    pub scale: Option<f32>,
    /// Of the temperature; nothing: it stays, and so does 0, the likeliest token always.
    pub temperature: Option<f32>,
    /// Choices over which the mean runs: earlier ones count less and less, by 1 - 1/window each.
    pub window: usize,
}

/// The running mean of a request.
#[derive(Debug, Clone)]
pub(super) struct Doubt {
    of: Uncertain,
    sum: f32,
    weight: f32,
}

impl Doubt {
    pub(super) fn new(of: Uncertain) -> Self {
        Self { of, sum: 0.0, weight: 0.0 }
    }

    /// Takes in the main context's logits of the next choice.
    pub(super) fn see(&mut self, logits: &[f32]) {
        let stays = 1.0 - 1.0 / self.of.window.max(1) as f32;
        self.sum = self.sum * stays + entropy(logits);
        self.weight = self.weight * stays + 1.0;
    }

    pub(super) fn scale(&self, certain: f32) -> f32 {
        self.between(certain, self.of.scale)
    }

    pub(super) fn temperature(&self, certain: f32) -> f32 {
        self.between(certain, self.of.temperature.filter(|_| certain > 0.0))
    }

    fn between(&self, certain: f32, open: Option<f32>) -> f32 {
        let mean = if self.weight > 0.0 { self.sum / self.weight } else { 0.0 };
        open.map_or(certain, |open| certain + (open - certain) * mean * mean)
    }
}

/// Entropy of what logits say, of the largest that it can be.
fn entropy(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut weighed) = (0f64, 0f64);
    for &l in logits {
        let x = f64::from(l - most);
        let share = x.exp();
        sum += share;
        // what cannot come has no part, and minus infinity times nothing is no number
        weighed += if x.is_finite() { x * share } else { 0.0 };
    }
    let entropy = sum.ln() - weighed / sum;
    (entropy / (logits.len().max(2) as f64).ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_are_shares_of_the_largest() {
        assert!((entropy(&[1.0; 16]) - 1.0).abs() < 1e-6);
        assert!(entropy(&[30.0, 0.0, 0.0, f32::NEG_INFINITY]) < 1e-6);
        // two of four: half of the bits
        assert!((entropy(&[5.0, 5.0, f32::NEG_INFINITY, f32::NEG_INFINITY]) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn scale_and_temperature_follow_the_running_mean() {
        let (open, sure) = ([0.0f32; 4], [90.0f32, 0.0, 0.0, 0.0]);
        let mut d = Doubt::new(Uncertain { scale: Some(9.0), temperature: Some(2.0), window: 4 });
        assert_eq!((d.scale(1.0), d.temperature(1.0)), (1.0, 1.0));
        d.see(&open);
        assert_eq!((d.scale(1.0), d.temperature(1.0)), (9.0, 2.0));
        // weights 3/4 and 1
        d.see(&sure);
        let share = (0.75f32 / 1.75).powi(2);
        assert!((d.scale(1.0) - (1.0 + 8.0 * share)).abs() < 1e-6 && (d.temperature(1.0) - (1.0 + share)).abs() < 1e-6);
        assert_eq!(d.temperature(0.0), 0.0);
        let mut last = Doubt::new(Uncertain { scale: None, temperature: None, window: 1 });
        last.see(&open);
        assert_eq!((last.scale(3.0), last.temperature(0.5)), (3.0, 0.5));
    }
}
