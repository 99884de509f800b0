//! What judges painted pictures besides their squared error: the features of a trained network, and a discriminator.

use super::adversary::{Adversary, AdversaryConfig};
use crate::loss::{Lpips, gram};
use candle_core::Tensor;
use nn::{Params, Result};

/// Weights of the terms; a term of weight 0 is not computed, but for the discriminator, which learns where it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct JudgeWeights {
    pub lpips: f64,
    pub gram: f64,
    pub adversarial: f64,
}

/// The judges that a training has.
pub(super) struct Judges {
    lpips: Option<Lpips>,
    adversary: Option<Adversary>,
    w: JudgeWeights,
}

impl Judges {
    /// The discriminator takes its tensors from `own`, the training's place for what is never exported.
    pub fn new(
        own: &Params,
        lpips: Option<Lpips>,
        adversary: Option<&AdversaryConfig>,
        side: usize,
        w: JudgeWeights,
    ) -> Result<Self> {
        let adversary = adversary.map(|c| Adversary::new(&own.at("discriminator"), c, side)).transpose()?;
        Ok(Self { lpips, adversary, w })
    }

    /// Whether nobody judges.
    pub fn is_empty(&self) -> bool {
        self.lpips.is_none() && self.adversary.is_none()
    }

    /// Hands each term of pixels in -1..1 to `add`, with its name and weight; returns the penalty R1 in steps that have one.
    pub fn judge(
        &self,
        step: usize,
        fake: &Tensor,
        real: &Tensor,
        add: &mut dyn FnMut(&'static str, f64, &Tensor) -> Result<()>,
    ) -> Result<Option<f64>> {
        let w = &self.w;
        if let Some(lpips) = &self.lpips {
            let want: Vec<Tensor> = lpips.features(&real.detach())?.iter().map(Tensor::detach).collect();
            let got = lpips.features(fake)?;
            if w.lpips != 0.0 {
                add("lpips", w.lpips, &lpips.distance(&got, &want)?.0.mean_all()?)?;
            }
            if w.gram != 0.0 {
                add("gram", w.gram, &gram(&got, &want)?)?;
            }
        }
        let Some(adversary) = &self.adversary else { return Ok(None) };
        let turn = adversary.turn(step, fake, real)?;
        if let Some(g) = &turn.generator {
            add("adversarial", w.adversarial, g)?;
        }
        add("discriminator", 1.0, &turn.discriminator)?;
        Ok(turn.r1)
    }
}
