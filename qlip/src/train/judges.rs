//! What judges painted pictures besides their squared error: the features of a trained network, and a discriminator.

use super::adversary::{Adversary, AdversaryConfig, Turn};
use crate::loss::{Lpips, gram};
use candle_core::Tensor;
use nn::{Params, Result};

/// Weights of the terms of features; a term of weight 0 is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct JudgeWeights {
    pub lpips: f64,
    pub gram: f64,
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

    /// What they say of pixels in -1..1.
    pub fn judge(&self, step: usize, fake: &Tensor, real: &Tensor) -> Result<Judged> {
        let w = &self.w;
        let mut features = Vec::new();
        if let Some(lpips) = &self.lpips {
            let want: Vec<Tensor> = lpips.features(&real.detach())?.iter().map(Tensor::detach).collect();
            let got = lpips.features(fake)?;
            if w.lpips != 0.0 {
                features.push(("lpips", w.lpips, lpips.distance(&got, &want)?.0.mean_all()?));
            }
            if w.gram != 0.0 {
                features.push(("gram", w.gram, gram(&got, &want)?));
            }
        }
        let turn = self.adversary.as_ref().map(|a| a.turn(step, fake, real)).transpose()?;
        Ok(Judged { features, turn })
    }
}

/// What was said of a batch.
pub(super) struct Judged {
    /// Terms of features, with names and weights.
    pub features: Vec<(&'static str, f64, Tensor)>,
    /// Both sides of the adversarial term.
    pub turn: Option<Turn>,
}
