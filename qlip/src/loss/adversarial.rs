//! Adversarial losses over logits of "real", and the gradient penalty on real pictures.

use super::{relu, softplus};
use crate::discriminator::Discriminator;
use candle_core::{Tensor, Var};
use nn::Result;
use serde::{Deserialize, Serialize};

/// How the two sides are scored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Game {
    /// Logistic: softplus of the logits (Goodfellow et al. 2014; StyleGAN2, bsq-vit).
    #[default]
    NonSaturating,
    /// Hinge (Lim and Ye 2017; VQGAN, LlamaGen).
    Hinge,
}

impl Game {
    /// Loss of the side that makes pictures, from the logits of its pictures.
    pub fn generator(self, fake: &Tensor) -> Result<Tensor> {
        match self {
            Self::NonSaturating => Ok(softplus(&fake.neg()?)?.mean_all()?),
            Self::Hinge => Ok(fake.mean_all()?.neg()?),
        }
    }

    /// Loss of the discriminator: half of each side's.
    pub fn discriminator(self, real: &Tensor, fake: &Tensor) -> Result<Tensor> {
        let (real, fake) = match self {
            Self::NonSaturating => (softplus(&real.neg()?)?, softplus(fake)?),
            Self::Hinge => (relu(&real.affine(-1.0, 1.0)?)?, relu(&fake.affine(1.0, 1.0)?)?),
        };
        Ok(((real.mean_all()? + fake.mean_all()?)? * 0.5)?)
    }
}

/// How far pixels are moved to measure the slope of a gradient: the root mean square of the step, in pixel units.
const R1_STEP: f64 = 1e-3;

/// R1 (Mescheder et al. 2018): gamma / 2 times the mean squared length of the gradient at real pictures. Returns its value,
/// and a scalar whose gradient in the discriminator's parameters is the penalty's.
///
/// The gradient of |g|^2 / 2 with g = dD/dx is the derivative of dD/dtheta in the direction g, so a central difference of
/// two ordinary backward passes stands for the double backward that candle lacks; exact up to the third derivative times
/// the square of the step (tests compare with float64 differences of the penalty itself).
pub fn r1(d: &Discriminator, real: &Tensor, gamma: f64) -> Result<(f64, Tensor)> {
    let x = Var::from_tensor(&real.detach())?;
    let grads = d.held().forward(x.as_tensor())?.mean(1)?.sum_all()?.backward()?;
    let g = grads
        .get(x.as_tensor())
        .ok_or_else(|| nn::Error::invalid("the discriminator has no gradient at its pictures"))?
        .detach();
    let pictures = real.dim(0)? as f64;
    let squared = g.sqr()?.sum_all()?.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
    let length = (squared / g.elem_count() as f64).sqrt();
    let step = R1_STEP / length.max(1e-12);
    let at = |s: f64| -> Result<Tensor> { Ok(d.forward(&(real.detach() + (&g * s)?)?)?.mean(1)?.sum_all()?) };
    let slope = ((at(step)? - at(-step)?)? * (gamma / (2.0 * step * pictures)))?;
    Ok((0.5 * gamma * squared / pictures, slope))
}
