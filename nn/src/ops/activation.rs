//! Element-wise activations and the gated product of SwiGLU.

use super::{in_parts, is_fused, values, vector, with_values};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

const CHUNK: usize = 16 * 1024;

/// An activation function, under its published `hidden_act` name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Activation {
    /// x Phi(x), exact (error function).
    #[serde(rename = "gelu")]
    Gelu,
    /// x Phi(x) by its tanh approximation: T5's and LlamaGen's caption embedder.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
    /// x sigmoid(1.702 x), OpenAI CLIP's.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// x sigmoid(x).
    #[serde(rename = "silu")]
    Silu,
    /// tanh x.
    #[serde(rename = "tanh")]
    Tanh,
}

impl Activation {
    /// Applies the function to every element.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if is_fused(x) {
            return x.contiguous()?.apply_op1(self);
        }
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x / ((x * -1.702)?.exp()? + 1.0)?,
            Self::Silu => x.silu(),
            Self::Tanh => x.tanh(),
        }
    }

    pub(super) fn values(self, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Gelu => map(x, |x| 0.5 * x * (1.0 + erf_and_gauss(x * std::f32::consts::FRAC_1_SQRT_2).0)),
            Self::GeluTanh => map(x, |x| x * sigmoid(2.0 * gelu_inner(x).0)),
            Self::QuickGelu => map(x, |x| x * sigmoid(1.702 * x)),
            Self::Silu => map(x, |x| x * sigmoid(x)),
            Self::Tanh => map(x, tanh),
        }
    }

    /// Derivative at x times g.
    pub(super) fn slopes(self, x: &[f32], g: &[f32]) -> Vec<f32> {
        match self {
            Self::Gelu => map2(x, g, |x, g| g * gelu_slope(x)),
            Self::GeluTanh => map2(x, g, |x, g| {
                let (inner, slope) = gelu_inner(x);
                let s = sigmoid(2.0 * inner);
                g * (s + 2.0 * x * s * (1.0 - s) * slope)
            }),
            Self::QuickGelu => map2(x, g, |x, g| {
                let s = sigmoid(1.702 * x);
                g * s * (1.0 + 1.702 * x * (1.0 - s))
            }),
            Self::Silu => map2(x, g, |x, g| {
                let s = sigmoid(x);
                g * s * (1.0 + x * (1.0 - s))
            }),
            Self::Tanh => map2(x, g, |x, g| {
                let t = tanh(x);
                g * (1.0 - t * t)
            }),
        }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + vector::exp(-x))
}

/// Error function, absolute error below 2e-7 (Abramowitz and Stegun 7.1.26), and exp(-x^2), which it needs anyway.
#[inline(always)]
fn erf_and_gauss(x: f32) -> (f32, f32) {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let gauss = vector::exp(-a * a);
    let poly = ((((1.061_405_4 * t - 1.453_152_1) * t + 1.421_413_8) * t - 0.284_496_72) * t + 0.254_829_6) * t;
    ((1.0 - poly * gauss).copysign(x), gauss)
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    2.0 * sigmoid(2.0 * x) - 1.0
}

/// sqrt(2 / pi) (x + 0.044715 x^3) and its derivative; 0.5 (1 + tanh u) is sigmoid(2 u).
#[inline(always)]
fn gelu_inner(x: f32) -> (f32, f32) {
    const SCALE: f32 = 0.797_884_6;
    (SCALE * (x + 0.044_715 * x * x * x), SCALE * (1.0 + 3.0 * 0.044_715 * x * x))
}

/// d/dx of x Phi(x).
#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let (erf, gauss) = erf_and_gauss(x * std::f32::consts::FRAC_1_SQRT_2);
    // 1 / sqrt(2 pi)
    0.5 * (1.0 + erf) + x * gauss * 0.398_942_3
}

fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut y = vector::zeros(x.len());
    in_parts(&mut y, x, CHUNK, |y, x| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = f(x);
        }
    });
    y
}

fn map2(x: &[f32], g: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut y = vector::zeros(x.len());
    let part = |y: &mut [f32], x: &[f32], g: &[f32]| {
        for ((y, &x), &g) in y.iter_mut().zip(x).zip(g) {
            *y = f(x, g);
        }
    };
    if y.len() <= CHUNK {
        part(&mut y, x, g);
    } else {
        let all = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(g.par_chunks(CHUNK));
        all.for_each(|((y, x), g)| part(y, x, g));
    }
    y
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }
    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.values(values(x, lx)?)), lx.shape().clone()))
    }
    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values([x, &g.contiguous()?], |[x, g]| self.slopes(x, g))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// silu(gate) * up, element by element: the inner part of SwiGLU.
pub fn gated_silu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if is_fused(gate) && is_fused(up) {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, GatedSilu);
    }
    gate.silu()? * up
}

pub(super) fn gated_values(a: &[f32], b: &[f32]) -> Vec<f32> {
    map2(a, b, |a, b| a * sigmoid(a) * b)
}

/// Gradients of gate and up.
pub(super) fn gated_slopes(a: &[f32], b: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut da, mut db) = (vector::zeros(a.len()), vector::zeros(a.len()));
    da.par_chunks_mut(CHUNK)
        .zip(db.par_chunks_mut(CHUNK))
        .zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).zip(g.par_chunks(CHUNK)))
        .for_each(|((da, db), ((a, b), g))| {
            for i in 0..a.len() {
                let s = sigmoid(a[i]);
                db[i] = g[i] * a[i] * s;
                da[i] = g[i] * b[i] * s * (1.0 + a[i] * (1.0 - s));
            }
        });
    (da, db)
}

struct GatedSilu;

impl CustomOp2 for GatedSilu {
    fn name(&self) -> &'static str {
        "gated-silu"
    }
    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        if la.shape() != lb.shape() {
            candle_core::bail!("gated silu of shapes {:?} and {:?}", la.dims(), lb.dims());
        }
        Ok((CpuStorage::F32(gated_values(values(a, la)?, values(b, lb)?)), la.shape().clone()))
    }
    fn bwd(&self, a: &Tensor, b: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (da, db) = with_values([a, b, &g.contiguous()?], |[a, b, g]| gated_slopes(a, b, g))?;
        let t = |v| Tensor::from_vec(v, a.shape(), a.device());
        Ok((Some(t(da)?), Some(t(db)?)))
    }
}
