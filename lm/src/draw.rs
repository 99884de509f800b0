//! Drawing with LlamaGen: a request to the engine for each picture, guidance as its peer.

use crate::engine::{Context, Done, Part, Request, Shared, in_turn};
use crate::llamagen::{Condition, LlamaGen};
use crate::sample::SampleSettings;
use crate::vocab::Token;
use candle_core::Tensor;
use nn::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
    /// Whether every number is in its range.
    pub fn check(&self) -> Result<()> {
        if !self.guidance_scale.is_finite() {
            return Err(Error::invalid(format!(
                "guidance scale {}: use a finite number; 1 is none",
                self.guidance_scale
            )));
        }
        self.sample.check()
    }

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
    model: &Arc<LlamaGen>,
    condition: &Condition,
    seeds: &[u64],
    s: &DrawSettings,
    on_row: &mut dyn FnMut(&[Vec<Token>]) -> bool,
) -> Result<Vec<Vec<Token>>> {
    s.check()?;
    let n = condition.len();
    if n == 0 || seeds.len() != n {
        return Err(Error::invalid(format!("{} seeds for {n} pictures", seeds.len())));
    }
    let (count, per_row) = (model.config.block_size, model.config.grid() * model.config.sub_tokens);
    let (guided, pads) = (s.guidance_scale != 1.0, condition.pads());
    let cond = model.condition(condition, &vec![false; n])?;
    let uncond = if guided { Some(model.condition(condition, &vec![true; n])?) } else { None };
    let context = |x: &Tensor, i: usize| -> Result<Context> {
        // hidden positions are not read at all; both halves hide the same ones
        let (pad, positions) = (pads[i], x.dim(1)?);
        let x = x.get(i)?.narrow(0, pad, positions - pad)?.contiguous()?;
        let keys = vec![0; positions - pad];
        Ok(Context { read: None, prompt: vec![Part::Embedded(x, keys)], offset: pad as u32 })
    };
    let mut requests = Vec::with_capacity(n);
    for (i, &seed) in seeds.iter().enumerate() {
        let grammar = in_turn((0..count).map(|t| model.source(t)).collect());
        let mut r = Request::new(context(&cond, i)?, s.sample, (seed, 1), grammar);
        // conditions are embeddings of their own: there is nothing to share
        r.share = false;
        if let Some(uncond) = &uncond {
            let s = *s;
            r = r.guided(context(uncond, i)?, move |token| s.scale(token, count));
        }
        requests.push(r);
    }
    let code = |place, token| model.code(place, token);
    let done = pictures(&Shared::new(model.clone()), requests, per_row, &code, on_row)?;
    let codes = |d: Done| d.tokens.into_iter().enumerate().map(|(place, token)| code(place, token)).collect();
    Ok(done.into_iter().map(codes).collect())
}

/// Runs requests that draw a picture each. `on_row` sees of every picture what `code` makes of its tokens (place, token) so far,
/// after each row, and may stop them all, which then returns nothing.
pub fn pictures(
    engine: &Shared,
    requests: Vec<Request>,
    per_row: usize,
    code: &dyn Fn(usize, Token) -> Token,
    on_row: &mut dyn FnMut(&[Vec<Token>]) -> bool,
) -> Result<Vec<Done>> {
    let mut codes: Vec<Vec<Token>> = vec![Vec::new(); requests.len()];
    let (mut stopped, mut shown) = (false, 0);
    let done = engine.run(requests, &mut |i, token, _| {
        let place = codes[i].len();
        codes[i].push(code(place, token));
        // a row is done when the last of the pictures has it: they need not go in step
        let rows = codes.iter().map(Vec::len).min().unwrap_or(0) / per_row.max(1);
        if rows > shown {
            shown = rows;
            stopped |= !on_row(&codes);
        }
        !stopped
    })?;
    Ok(if stopped { Vec::new() } else { done })
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
