//! From logits to tokens: temperature, top-k, top-p, min-p, repetition penalty; the same seed gives the same tokens.

use nn::rng::{self, Rng};
use nn::{Error, Result};
use serde::{Deserialize, Serialize};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleSettings {
    /// Divides the logits; 0 takes the best token.
    pub temperature: f32,
    /// Keep this many best tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest best tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this share as likely as the best; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred; 1 is off.
    pub repetition_penalty: f32,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

impl SampleSettings {
    /// The best token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether every number is in its range.
    pub fn check(&self) -> Result<()> {
        let ok = self.temperature >= 0.0
            && self.temperature.is_finite()
            && self.top_p > 0.0
            && self.top_p <= 1.0
            && (0.0..=1.0).contains(&self.min_p)
            && self.repetition_penalty > 0.0;
        if ok {
            return Ok(());
        }
        Err(Error::invalid("sampling: temperature >= 0, 0 < top_p <= 1, 0 <= min_p <= 1, repetition_penalty > 0"))
    }
}

/// One sequence's random stream.
#[derive(Debug, Clone)]
pub struct Sampler {
    rng: Rng,
}

impl Sampler {
    /// The stream of sequence `row` under a seed.
    pub fn new(seed: u64, row: u64) -> Self {
        Self { rng: rng::keyed(seed, &[row]) }
    }

    /// Draws an index into `logits`; `seen` holds indices that occurred, for the repetition penalty.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32], s: &SampleSettings) -> usize {
        let mut logits = logits.to_vec();
        if s.repetition_penalty != 1.0 {
            let mut once = seen.to_vec();
            once.sort_unstable();
            once.dedup();
            for i in once {
                if let Some(l) = logits.get_mut(i as usize) {
                    *l = if *l > 0.0 { *l / s.repetition_penalty } else { *l * s.repetition_penalty };
                }
            }
        }
        let best = argmax(&logits);
        // the draw is taken even where it is not needed, so that settings do not shift the stream
        let u = f64::from(rng::uniform(&mut self.rng));
        if s.temperature == 0.0 {
            return best;
        }
        let top = logits[best];
        let mut p: Vec<(usize, f64)> = logits
            .iter()
            .enumerate()
            .map(|(i, &l)| (i, (f64::from(l - top) / f64::from(s.temperature)).exp()))
            .filter(|(_, w)| *w >= f64::from(s.min_p) && *w > 0.0)
            .collect();
        // likeliest first; equal ones by index, so that the order is the same everywhere
        p.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if s.top_k > 0 {
            p.truncate(s.top_k);
        }
        if s.top_p < 1.0 {
            let total: f64 = p.iter().map(|x| x.1).sum();
            let mut sum = 0.0;
            let keep = p.iter().position(|x| {
                sum += x.1;
                sum >= total * f64::from(s.top_p)
            });
            p.truncate(keep.map_or(p.len(), |k| k + 1));
        }
        let mut left = u * p.iter().map(|x| x.1).sum::<f64>();
        for (i, w) in &p {
            left -= w;
            if left < 0.0 {
                return *i;
            }
        }
        p.last().map_or(best, |x| x.0)
    }
}

/// Index of the largest value, the lowest where several are equal.
pub fn argmax(x: &[f32]) -> usize {
    x.iter().enumerate().fold(0, |best, (i, v)| if *v > x[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_softmax() {
        let logits = [0.0f32, 1.0, -1.0, 2.0];
        let s = SampleSettings { temperature: 0.7, ..SampleSettings::default() };
        let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l / 0.7).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut counts = [0usize; 4];
        let mut sampler = Sampler::new(3, 0);
        for _ in 0..20_000 {
            counts[sampler.sample(&logits, &[], &s)] += 1;
        }
        for (c, w) in counts.iter().zip(&weights) {
            assert!((*c as f64 / 20_000.0 - w / total).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn cuts_keep_what_they_should() {
        let logits = [3.0f32, 2.0, 1.0, 0.0];
        let draws = |s: SampleSettings| {
            let mut sampler = Sampler::new(5, 1);
            let mut seen: Vec<usize> = (0..500).map(|_| sampler.sample(&logits, &[], &s)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        let base = SampleSettings { temperature: 2.0, ..SampleSettings::default() };
        assert_eq!(draws(SampleSettings { top_k: 2, ..base }), [0, 1]);
        assert_eq!(draws(SampleSettings { top_p: 0.1, ..base }), [0]);
        assert_eq!(draws(SampleSettings { min_p: 0.5, ..base }), [0, 1]);
        assert_eq!(draws(SampleSettings::greedy()), [0]);
        assert_eq!(draws(base), [0, 1, 2, 3]);
        let penalised = SampleSettings { repetition_penalty: 10.0, ..SampleSettings::greedy() };
        assert_eq!(Sampler::new(0, 0).sample(&logits, &[0, 0], &penalised), 1);
    }
}
