//! The loss of a VQ tokenizer (Sun et al. 2024, section 2.1): pixels, codebook, commitment, and where asked LPIPS and a
//! discriminator. The discriminator's weight is the constant of the config; LlamaGen's adapts it to the gradients.

use super::adversary::AdversaryConfig;
use super::judges::{JudgeWeights, Judges};
use super::{number, own};
use crate::image::Pixels;
use crate::loss::Lpips;
use crate::vq::VqTokenizer;
use nn::ops::add_term;
use nn::train::StepOutput;
use nn::{Error, Params, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Weights of the terms. A term of weight 0 that nothing else needs is not computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VqLossConfig {
    /// Mean squared error of pixels in -1..1.
    pub reconstruction: f64,
    /// Codebook, commitment and entropy together; the model's config weighs the last two.
    pub codebook: f64,
    /// Distance in the features of a trained network; needs a section [lpips].
    pub lpips: f64,
    /// Against a discriminator, from [adversary]'s `start` on; needs that section.
    pub adversarial: f64,
}

impl Default for VqLossConfig {
    fn default() -> Self {
        Self { reconstruction: 1.0, codebook: 1.0, lpips: 0.0, adversarial: 0.0 }
    }
}

/// The loss.
pub struct VqObjective {
    model: VqTokenizer,
    w: VqLossConfig,
    judges: Judges,
}

impl VqObjective {
    /// Of a model that is trained on pictures of `side` pixels; the discriminator's tensors come from `p` too.
    pub fn new(
        p: &Params,
        model: VqTokenizer,
        w: &VqLossConfig,
        lpips: Option<Lpips>,
        adversary: Option<&AdversaryConfig>,
        side: usize,
    ) -> Result<Self> {
        for (weight, part, section) in
            [(w.lpips, lpips.is_some(), "lpips"), (w.adversarial, adversary.is_some(), "adversary")]
        {
            if (weight != 0.0) != part {
                let why = format!("a weight in [loss] and a section [{section}] go together; give both or none");
                return Err(Error::invalid(why));
            }
        }
        if w.reconstruction <= 0.0 || w.codebook <= 0.0 {
            return Err(Error::invalid("[loss]: reconstruction and codebook must be above 0"));
        }
        let weights = JudgeWeights { lpips: w.lpips, gram: 0.0, adversarial: w.adversarial };
        let judges = Judges::new(&own(p), lpips, adversary, side, weights)?;
        Ok(Self { model, w: w.clone(), judges })
    }

    /// Gradients of update `step` on pixels in -1..1.
    pub fn step(&self, step: usize, pixels: &Pixels) -> Result<StepOutput> {
        let w = &self.w;
        let latents = self.model.pre_quant(&self.model.encoder_out(pixels)?)?;
        let q = self.model.quantise(&latents)?;
        let painted = self.model.decode(&q.values)?.0;
        let mse = (&painted - &pixels.0)?.sqr()?.mean_all()?;
        // of as many codes as a batch can show
        let most = self.model.config.codebook_size.min(q.indices.len()).max(1);
        let used = q.indices.iter().collect::<HashSet<_>>().len() as f64 / most as f64;
        let mut metrics = vec![
            ("mse", number(&mse)?),
            ("vq", number(&q.vq_loss)?),
            ("commit", number(&q.commit_loss)?),
            ("codes_used", used),
        ];
        let mut codebook = (q.vq_loss + q.commit_loss)?;
        if let Some(e) = q.entropy_loss {
            metrics.push(("entropy", number(&e)?));
            codebook = (codebook + e)?;
        }
        let mut loss = Some(((mse * w.reconstruction)? + (codebook * w.codebook)?)?);
        let r1 = self.judges.judge(step, &painted, &pixels.0, &mut |name, weight, value| {
            metrics.push((name, number(value)?));
            Ok(add_term(&mut loss, (value * weight)?)?)
        })?;
        metrics.extend(r1.map(|r1| ("r1", r1)));
        let loss = loss.ok_or_else(|| Error::invalid("[loss]: no terms"))?;
        StepOutput::of(&loss, metrics)
    }
}
