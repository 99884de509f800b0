//! Rotary position embedding from a table of angles.

use super::{is_fused, rows_per_task, values};
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Which dimensions turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours (2i, 2i + 1): QLIP, LlamaGen, the original Llama files.
    Interleaved,
    /// Halves (i, i + d/2): Llama in the Hugging Face layout.
    Halves,
}

/// Table row of each token.
#[derive(Debug, Clone)]
pub enum Positions {
    /// Token t of every sequence is at row `start + t`.
    From(usize),
    /// One row for each token, [batch * tokens].
    Each(Arc<[u32]>),
}

/// A table of rotations [rows, head_dim / 2].
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    half: usize,
    style: RopeStyle,
}

impl Rope {
    /// From cosines and sines, row-major [rows, head_dim / 2]; rows of (1, 0) leave a token as it is.
    pub fn new(cos: Vec<f32>, sin: Vec<f32>, head_dim: usize, style: RopeStyle) -> Self {
        assert!(cos.len() == sin.len() && cos.len().is_multiple_of(head_dim / 2), "rope table shape");
        Self { cos: cos.into(), sin: sin.into(), half: head_dim / 2, style }
    }

    /// From angles in float64, row-major [rows, head_dim / 2].
    pub fn from_angles(angles: &[f64], head_dim: usize, style: RopeStyle) -> Self {
        let cos = angles.iter().map(|a| a.cos() as f32).collect();
        let sin = angles.iter().map(|a| a.sin() as f32).collect();
        Self::new(cos, sin, head_dim, style)
    }

    /// The table as pairs (cosine, sine), row-major [rows, head_dim / 2, 2].
    pub fn table(&self) -> Vec<f32> {
        self.cos.iter().zip(&*self.sin).flat_map(|(c, s)| [*c, *s]).collect()
    }

    /// Number of positions in the table.
    pub fn rows(&self) -> usize {
        self.cos.len() / self.half
    }

    pub(super) fn check(&self, positions: &Positions, b: usize, t: usize) -> Result<()> {
        let last = match positions {
            Positions::From(start) => start + t,
            Positions::Each(p) if p.len() != b * t => {
                candle_core::bail!("{} rope positions for {} tokens", p.len(), b * t)
            }
            Positions::Each(p) => p.iter().max().map_or(0, |&m| m as usize + 1),
        };
        if last > self.rows() {
            candle_core::bail!("position {} is beyond the {} positions of the model", last - 1, self.rows());
        }
        Ok(())
    }

    /// Rotates x [batch, tokens, heads, head_dim].
    pub fn apply(&self, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        let (b, t, _, d) = x.dims4()?;
        if d != 2 * self.half {
            candle_core::bail!("rope table for head_dim {} given head_dim {d}", 2 * self.half);
        }
        self.check(positions, b, t)?;
        if is_fused(x) {
            let op = Rotate { rope: self.clone(), positions: positions.clone(), inverse: false };
            return x.contiguous()?.apply_op1(op);
        }
        self.apply_composed(x, positions)
    }

    /// Rotates [batch, tokens, heads, head_dim] in place, forward or back.
    pub(super) fn rotate(&self, x: &mut [f32], tokens: usize, heads: usize, positions: &Positions, inverse: bool) {
        let (half, d) = (self.half, 2 * self.half);
        let sign = if inverse { -1.0 } else { 1.0 };
        let width = heads * d;
        let per = rows_per_task(x.len() / width.max(1), width);
        let part = |chunk: usize, x: &mut [f32]| {
            for (i, x) in x.chunks_exact_mut(width).enumerate() {
                let token = chunk * per + i;
                let r = self.row(positions, token / tokens, token % tokens, tokens) * half;
                let (cos, sin) = (&self.cos[r..r + half], &self.sin[r..r + half]);
                for x in x.chunks_exact_mut(d) {
                    match self.style {
                        RopeStyle::Interleaved => {
                            for j in 0..half {
                                let (c, s) = (cos[j], sin[j] * sign);
                                let (a, b) = (x[2 * j], x[2 * j + 1]);
                                x[2 * j] = a * c - b * s;
                                x[2 * j + 1] = b * c + a * s;
                            }
                        }
                        RopeStyle::Halves => {
                            let (xa, xb) = x.split_at_mut(half);
                            for j in 0..half {
                                let (c, s) = (cos[j], sin[j] * sign);
                                let (a, b) = (xa[j], xb[j]);
                                xa[j] = a * c - b * s;
                                xb[j] = b * c + a * s;
                            }
                        }
                    }
                }
            }
        };
        if x.len() <= per * width {
            part(0, x);
        } else {
            x.par_chunks_mut(per * width).enumerate().for_each(|(chunk, x)| part(chunk, x));
        }
    }

    fn row(&self, positions: &Positions, b: usize, t: usize, tokens: usize) -> usize {
        match positions {
            Positions::From(start) => start + t,
            Positions::Each(p) => p[b * tokens + t] as usize,
        }
    }

    fn apply_composed(&self, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        let (b, t, h, d) = x.dims4()?;
        let gather = |table: &[f32]| -> Result<Tensor> {
            let mut rows = Vec::with_capacity(b * t * self.half);
            for i in 0..b {
                for j in 0..t {
                    let r = self.row(positions, i, j, t);
                    rows.extend_from_slice(&table[r * self.half..(r + 1) * self.half]);
                }
            }
            Tensor::from_vec(rows, (b, t, 1, self.half), x.device())?.to_dtype(x.dtype())
        };
        let (cos, sin) = (gather(&self.cos)?, gather(&self.sin)?);
        let turn = |a: &Tensor, c: &Tensor| -> Result<(Tensor, Tensor)> {
            Ok(((a.broadcast_mul(&cos)? - c.broadcast_mul(&sin)?)?, (c.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?))
        };
        match self.style {
            RopeStyle::Halves => {
                let (a, c) = turn(&x.narrow(3, 0, self.half)?, &x.narrow(3, self.half, self.half)?)?;
                Tensor::cat(&[a, c], 3)
            }
            RopeStyle::Interleaved => {
                let pairs = x.reshape((b, t, h, self.half, 2))?;
                let (a, c) = turn(&pairs.narrow(4, 0, 1)?.squeeze(4)?, &pairs.narrow(4, 1, 1)?.squeeze(4)?)?;
                Tensor::stack(&[a, c], D::Minus1)?.reshape((b, t, h, d))
            }
        }
    }
}

struct Rotate {
    rope: Rope,
    positions: Positions,
    inverse: bool,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let &[_, tokens, heads, _] = lx.dims() else {
            candle_core::bail!("rope needs [batch, tokens, heads, head_dim]")
        };
        let mut y = values(x, lx)?.to_vec();
        self.rope.rotate(&mut y, tokens, heads, &self.positions, self.inverse);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }
    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let back = Rotate { rope: self.rope.clone(), positions: self.positions.clone(), inverse: !self.inverse };
        Ok(Some(g.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}
