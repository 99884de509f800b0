//! Heads of training: how the quantised tokens are read by losses of their own. The published model aligns the class token
//! alone, which never passes the quantizer; its quantised features lose 20 points of GQA for it (table 6).

use crate::bsq::unit;
use crate::vision::Bottleneck;
use candle_core::{D, Tensor};
use nn::block::Linear;
use nn::{Params, Result};

/// Attention pooling and a projection: [pictures, tokens, width] to unit vectors [pictures, out].
pub struct Pool {
    query: Linear,
    projection: Bottleneck,
}

impl Pool {
    /// Takes the tensors at this place.
    pub fn new(p: &Params, width: usize, out: usize) -> Result<Self> {
        let std = (width as f32).powf(-0.5);
        Ok(Self {
            query: Linear::new(&p.at("query"), width, 1, false, std)?,
            projection: Bottleneck::new(&p.at("projection"), width, width, out, std)?,
        })
    }

    /// The pooled embedding.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let scores = self.query.forward(tokens)?.squeeze(D::Minus1)?;
        let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
        let pooled = tokens.broadcast_mul(&weights.unsqueeze(D::Minus1)?)?.sum(1)?;
        unit(&self.projection.forward(&pooled)?)
    }
}

/// A linear head that should point where the teacher's feature does.
pub struct Imitation(Linear);

impl Imitation {
    /// Takes the tensors at this place.
    pub fn new(p: &Params, width: usize, out: usize) -> Result<Self> {
        Ok(Self(Linear::new(p, width, out, true, (width as f32).powf(-0.5))?))
    }

    /// Mean over features [.., width] of 1 - cosine with the teacher's [.., out].
    pub fn loss(&self, features: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        let cosine = (unit(&self.0.forward(features)?)? * unit(teacher)?.detach())?.sum(D::Minus1)?;
        Ok(cosine.mean_all()?.affine(-1.0, 1.0)?)
    }
}
