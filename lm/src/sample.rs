//! From logits to tokens: temperature, top-k, top-p, min-p, repetition penalty; the same seed gives the same tokens.

use nn::rng::{self, Rng};
use nn::{Error, Result};
use serde::{Deserialize, Serialize};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
            && self.repetition_penalty > 0.0
            && self.repetition_penalty.is_finite();
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

    /// Draws an index into `logits`; `seen` holds indices that occurred, for the repetition penalty. The likeliest come first
    /// and are put in order only as far as the draw goes.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32], s: &SampleSettings) -> usize {
        let mut changed = None;
        if s.repetition_penalty != 1.0 && !seen.is_empty() {
            let mut once = seen.to_vec();
            once.sort_unstable();
            once.dedup();
            let logits = changed.insert(logits.to_vec());
            for i in once {
                if let Some(l) = logits.get_mut(i as usize) {
                    *l = if *l > 0.0 { *l / s.repetition_penalty } else { *l * s.repetition_penalty };
                }
            }
        }
        let logits = changed.as_deref().unwrap_or(logits);
        let best = argmax(logits);
        // the draw is taken even where it is not needed, so that settings do not shift the stream
        let u = f64::from(rng::uniform(&mut self.rng));
        if s.temperature == 0.0 {
            return best;
        }
        let mut weights = Vec::new();
        nn::ops::softmax_weights(logits, logits[best], s.temperature, &mut weights);
        let mut left: Vec<(u32, f32)> = weights
            .iter()
            .enumerate()
            .filter(|(_, w)| **w >= s.min_p && **w > 0.0)
            .map(|(i, &w)| (i as u32, w))
            .collect();
        // likeliest first; equal ones by index, so that the order is the same everywhere
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let all = left.len();
        let most = if s.top_k > 0 { s.top_k.min(all) } else { all };
        let mut sorted = 0;
        // puts the first in order, twice as many each time that place n is beyond what is in order
        let mut reach = |left: &mut Vec<(u32, f32)>, n: usize, most: usize| {
            if n >= sorted {
                let n = most.min((2 * n).max(FIRST));
                if n < left.len() {
                    left[sorted..].select_nth_unstable_by(n - sorted - 1, order);
                }
                left[sorted..n].sort_unstable_by(order);
                sorted = n;
            }
        };
        let sum = |part: &[(u32, f32)]| part.iter().map(|x| f64::from(x.1)).sum::<f64>();
        let mut count = most;
        if most < all {
            left.select_nth_unstable_by(most - 1, order);
        }
        let mut total = sum(&left[..most]);
        if s.top_p < 1.0 {
            let (wanted, mut reached, mut n) = (total * f64::from(s.top_p), 0.0, 0);
            while n < most {
                reach(&mut left, n, most);
                reached += f64::from(left[n].1);
                n += 1;
                if reached >= wanted {
                    break;
                }
            }
            (count, total) = (n, reached);
        }
        let mut rest = u * total;
        for n in 0..count {
            reach(&mut left, n, most);
            rest -= f64::from(left[n].1);
            if rest < 0.0 {
                return left[n].0 as usize;
            }
        }
        count.checked_sub(1).map_or(best, |n| left[n].0 as usize)
    }
}

/// Likeliest tokens that are put in order at once.
const FIRST: usize = 64;

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

    /// The draw is the one of a full sort, whatever is cut.
    #[test]
    fn the_order_is_that_of_a_full_sort() {
        let n = 3000u64;
        let logits: Vec<f32> = (0..n).map(|i| ((rng::mix(i) >> 40) as f32 / (1 << 21) as f32).round() / 2.0).collect();
        for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0), (700, 0.97, 0.0), (0, 0.999, 0.01)]
        {
            let s = SampleSettings { temperature: 1.3, top_k, top_p, min_p, ..SampleSettings::default() };
            let (mut sampler, mut again) = (Sampler::new(9, 2), Sampler::new(9, 2));
            for _ in 0..300 {
                let u = f64::from(rng::uniform(&mut again.rng));
                let mut w = Vec::new();
                nn::ops::softmax_weights(&logits, logits[argmax(&logits)], s.temperature, &mut w);
                let mut p: Vec<(usize, f64)> =
                    w.iter().map(|w| f64::from(*w)).enumerate().filter(|x| x.1 as f32 >= min_p).collect();
                p.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                if top_k > 0 {
                    p.truncate(top_k);
                }
                let total: f64 = p.iter().map(|x| x.1).sum();
                let mut sum = 0.0;
                let keep = p.iter().position(|x| {
                    sum += x.1;
                    sum >= total * f64::from(top_p)
                });
                p.truncate(if top_p < 1.0 { keep.map_or(p.len(), |k| k + 1) } else { p.len() });
                let mut left = u * p.iter().map(|x| x.1).sum::<f64>();
                let want = p.iter().find(|x| {
                    left -= x.1;
                    left < 0.0
                });
                assert_eq!(sampler.sample(&logits, &[], &s), want.map_or(p[p.len() - 1].0, |x| x.0));
            }
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
