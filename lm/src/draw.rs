//! Drawing with LlamaGen: a request to the engine for each picture, guidance as its peer.

use crate::engine::{Context, Done, Part, Request, Shared, Uncertain, in_turn};
use crate::llamagen::{Condition, LlamaGen};
use crate::sample::SampleSettings;
use crate::vocab::Token;
use candle_core::Tensor;
use nn::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Cells over which doubt is a mean: one open cell in a certain picture is a shape that begins, and not a photograph.
const DOUBTED_CELLS: usize = 3;

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
    /// What the scale becomes where the model finds every choice as likely as another ([`Uncertain`]); it stays if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_uncertain: Option<f32>,
    /// Likewise of the temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_uncertain: Option<f32>,
    /// Other guidance in a conversation that shows a picture already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_picture: Option<AfterPicture>,
}

/// Guidance of a picture in a conversation that shows one already: a change of it, or another drawing. Guidance leans on what the words change, and
/// much of it changes what was to stay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AfterPicture {
    /// In place of `guidance_scale`.
    pub guidance_scale: f32,
    /// In place of `guidance_uncertain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_uncertain: Option<f32>,
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
    /// The same guidance and temperature throughout every picture.
    pub fn constant(sample: SampleSettings, guidance_scale: f32) -> Self {
        Self {
            sample,
            guidance_scale,
            guidance_interval: -1,
            schedule: Schedule::Constant,
            guidance_uncertain: None,
            temperature_uncertain: None,
            after_picture: None,
        }
    }

    /// With a guidance scale that is asked for: it holds throughout.
    pub fn guided(self, scale: Option<f32>) -> Self {
        match scale {
            Some(guidance_scale) => Self { guidance_scale, guidance_uncertain: None, after_picture: None, ..self },
            None => self,
        }
    }

    /// With a temperature that is asked for, likewise.
    pub fn heated(mut self, temperature: Option<f32>) -> Self {
        if let Some(t) = temperature {
            (self.sample.temperature, self.temperature_uncertain) = (t, None);
        }
        self
    }

    /// Whether every number is in its range.
    pub fn check(&self) -> Result<()> {
        let after = self.after_picture.map(|a| [Some(a.guidance_scale), a.guidance_uncertain]);
        let scales =
            [Some(self.guidance_scale), self.guidance_uncertain].into_iter().chain(after.into_iter().flatten());
        if let Some(scale) = scales.flatten().find(|s| !s.is_finite()) {
            return Err(Error::invalid(format!("guidance scale {scale}: use a finite number; 1 is none")));
        }
        if let Some(t) = self.temperature_uncertain.filter(|t| !(t.is_finite() && *t >= 0.0)) {
            return Err(Error::invalid(format!("temperature_uncertain {t}: use 0 or more")));
        }
        self.sample.check()
    }

    /// What guidance and temperature become where the model is uncertain; nothing where both stay. A cell of the picture is so many choices.
    pub fn uncertain(&self, choices: usize) -> Option<Uncertain> {
        let window = DOUBTED_CELLS * choices;
        let to = Uncertain { scale: self.guidance_uncertain, temperature: self.temperature_uncertain, window };
        Some(to).filter(|u| u.scale.is_some() || u.temperature.is_some())
    }

    /// Whether any token is guided.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale != 1.0 || self.guidance_uncertain.is_some()
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
        (self.is_guided() && within).then_some(scale)
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
    let (guided, pads) = (s.is_guided(), condition.pads());
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
        r.uncertain = s.uncertain(model.config.sub_tokens);
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
        let guided = DrawSettings::constant(SampleSettings::greedy(), 3.0);
        let s = |guidance_interval, schedule| DrawSettings { guidance_interval, schedule, ..guided };
        let on: Vec<bool> = (0..6).map(|i| s(2, Schedule::Constant).scale(i, 6).is_some()).collect();
        assert_eq!(on, [true, true, true, true, false, false]);
        assert_eq!(s(-1, Schedule::Linear).scale(0, 5), Some(1.0));
        assert_eq!(s(-1, Schedule::Linear).scale(2, 5), Some(2.0));
        assert_eq!(s(-1, Schedule::Cosine).scale(4, 5), Some(3.0));
        let off = DrawSettings { guidance_scale: 1.0, ..s(-1, Schedule::Constant) };
        assert_eq!(off.scale(0, 5), None);
    }

    #[test]
    fn what_is_asked_for_holds_throughout() {
        let after = AfterPicture { guidance_scale: 1.2, guidance_uncertain: None };
        let s = DrawSettings {
            guidance_uncertain: Some(9.0),
            temperature_uncertain: Some(2.0),
            after_picture: Some(after),
            ..DrawSettings::constant(SampleSettings::default(), 3.0)
        };
        assert_eq!(s.guided(None).heated(None), s);
        let scale = s.guided(Some(3.0));
        assert_eq!(
            (scale.guidance_uncertain, scale.after_picture, scale.temperature_uncertain),
            (None, None, Some(2.0))
        );
        let greedy = s.heated(Some(0.0));
        assert_eq!((greedy.guidance_uncertain, greedy.temperature_uncertain), (Some(9.0), None));
        assert_eq!((greedy.sample.temperature, greedy.after_picture), (0.0, Some(after)));
        for bad in [
            DrawSettings { guidance_uncertain: Some(f32::NAN), ..s },
            DrawSettings { temperature_uncertain: Some(-1.0), ..s },
            DrawSettings { after_picture: Some(AfterPicture { guidance_scale: f32::INFINITY, ..after }), ..s },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
