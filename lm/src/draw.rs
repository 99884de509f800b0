//! Drawing with LlamaGen: guidance with both halves in one batch, token by token through a cache.

use crate::llamagen::{Condition, LlamaGen};
use crate::sample::{SampleSettings, Sampler};
use candle_core::{DType, Tensor};
use nn::{Error, Result};
use serde::{Deserialize, Serialize};

/// How pictures are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrawSettings {
    /// Sampling of tokens.
    pub sample: SampleSettings,
    /// 1 is none; above, logits = uncond + scale (cond - uncond).
    pub guidance_scale: f32,
    /// Guidance for the first token and the first n + 1 after it; -1 for all.
    pub guidance_interval: i64,
    /// How the scale goes from the first token to the last.
    pub schedule: Schedule,
}

/// How the guidance scale changes over a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// From 1 at the first token in a straight line to the scale at the last.
    Linear,
    /// From 1 to the scale along half a cosine.
    Cosine,
}

impl DrawSettings {
    /// Guidance scale for token `i` of `n`; nothing where guidance is off.
    fn scale(&self, i: usize, n: usize) -> Option<f32> {
        let within = self.guidance_interval < 0 || i as i64 <= self.guidance_interval + 1;
        let t = i as f32 / (n.max(2) - 1) as f32;
        let share = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => t,
            Schedule::Cosine => 0.5 * (1.0 - (std::f32::consts::PI * t).cos()),
        };
        let scale = 1.0 + (self.guidance_scale - 1.0) * share;
        (self.guidance_scale != 1.0 && within).then_some(scale)
    }
}

/// Tokens of one picture a condition, row by row of the grid. `on_row` sees the tokens of every picture as far as they
/// are, after each row, and may stop the drawing, which then returns nothing.
pub fn draw(
    model: &LlamaGen,
    condition: &Condition,
    seeds: &[u64],
    s: &DrawSettings,
    on_row: &mut dyn FnMut(&[Vec<u32>]) -> bool,
) -> Result<Vec<Vec<u32>>> {
    s.sample.check()?;
    let n = condition.len();
    if n == 0 || seeds.len() != n {
        return Err(Error::invalid(format!("{} seeds for {n} pictures", seeds.len())));
    }
    let (count, positions) = (model.config.block_size, model.config.cls_token_num);
    let per_row = model.config.grid() * model.config.sub_tokens;
    let guided = s.guidance_scale != 1.0;
    let mut x = model.condition(condition, &vec![false; n])?;
    let mut pads = condition.pads();
    if guided {
        x = Tensor::cat(&[&x, &model.condition(condition, &vec![true; n])?], 0)?;
        // the same positions are hidden from both halves
        pads.extend_from_within(..);
    }
    let mut samplers: Vec<Sampler> = seeds.iter().map(|&seed| Sampler::new(seed, 1)).collect();
    let mut cache = model.cache();
    let mut hidden = model.hidden(&x, 0, &pads, Some(&mut cache), None)?;
    let mut tokens = vec![Vec::with_capacity(count); n];
    for i in 0..count {
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
        let next = model.next_tokens(&last, positions + i - 1, |logits| {
            let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let mut chosen = Vec::with_capacity(rows.len());
            for (p, sampler) in samplers.iter_mut().enumerate() {
                let row: Vec<f32> = match s.scale(i, count) {
                    Some(scale) => rows[p].iter().zip(&rows[n + p]).map(|(c, u)| u + (c - u) * scale).collect(),
                    None => rows[p].clone(),
                };
                chosen.push(sampler.sample(&row, &[], &s.sample) as u32);
            }
            if guided {
                chosen.extend_from_within(..);
            }
            Ok(chosen)
        })?;
        tokens.iter_mut().zip(&next).for_each(|(t, &token)| t.push(token));
        if (i + 1).is_multiple_of(per_row) && !on_row(&tokens) {
            return Ok(Vec::new());
        }
        if i + 1 < count {
            let x = model.embed(&next, next.len(), i)?;
            hidden = model.hidden(&x, positions + i, &pads, Some(&mut cache), None)?;
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_follow_interval_and_schedule() {
        let s = |interval, schedule| DrawSettings {
            sample: SampleSettings::greedy(),
            guidance_scale: 3.0,
            guidance_interval: interval,
            schedule,
        };
        let on: Vec<bool> = (0..6).map(|i| s(2, Schedule::Constant).scale(i, 6).is_some()).collect();
        assert_eq!(on, [true, true, true, true, false, false]);
        assert_eq!(s(-1, Schedule::Linear).scale(0, 5), Some(1.0));
        assert_eq!(s(-1, Schedule::Linear).scale(2, 5), Some(2.0));
        assert_eq!(s(-1, Schedule::Cosine).scale(4, 5), Some(3.0));
        let off = DrawSettings { guidance_scale: 1.0, ..s(-1, Schedule::Constant) };
        assert_eq!(off.scale(0, 5), None);
    }
}
