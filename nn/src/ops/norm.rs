//! Layer norm and root-mean-square norm over the last dimension.

use super::{in_parts, is_fused, rows_per_task, values, vector, with_values};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// (x - mean) / sqrt(var + eps) * weight + bias over the last dimension; x [.., d], weight and bias [d].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if is_fused(x) {
        return x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps: eps as f32 });
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(var + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension; x [.., d], weight [d].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if is_fused(x) {
        return x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 });
    }
    let ms = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(ms + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// Gradients of input, weight and bias.
pub(super) type Grads = (Vec<f32>, Vec<f32>, Vec<f32>);

/// Mean and reciprocal deviation of a row.
pub(super) fn layer_stats(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = vector::sum(row) / n;
    (mean, 1.0 / (vector::sum_sq_dev(row, mean) / n + eps).sqrt())
}

/// Reciprocal root mean square of a row.
fn rms_scale(row: &[f32], eps: f32) -> f32 {
    1.0 / (vector::dot(row, row) / row.len() as f32 + eps).sqrt()
}

/// Layer norm of every row of `w.len()` values where a bias is given, root-mean-square norm otherwise.
pub(super) fn forward(x: &[f32], w: &[f32], b: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let d = w.len();
    let mut y = vector::zeros(x.len());
    let rows = rows_per_task(x.len() / d, d);
    in_parts(&mut y, x, rows * d, |y, x| {
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            match b {
                Some(b) => {
                    let (mean, r) = layer_stats(x, eps);
                    for i in 0..d {
                        y[i] = (x[i] - mean) * r * w[i] + b[i];
                    }
                }
                None => {
                    let r = rms_scale(x, eps);
                    for i in 0..d {
                        y[i] = x[i] * r * w[i];
                    }
                }
            }
        }
    });
    y
}

/// Backward of [`forward`]; `layer` says which norm it was.
pub(super) fn backward(x: &[f32], w: &[f32], layer: bool, eps: f32, g: &[f32]) -> Grads {
    let d = w.len();
    if layer {
        return by_row(x, g, d, |x, g, dx, dw, db| {
            let (mean, r) = layer_stats(x, eps);
            for i in 0..d {
                dx[i] = g[i] * w[i];
                dw[i] += g[i] * (x[i] - mean) * r;
                db[i] += g[i];
            }
            let s1 = vector::sum(dx);
            let s2 = (vector::dot(dx, x) - s1 * mean) * r;
            let (s1, s2) = (s1 / d as f32, s2 / d as f32);
            for i in 0..d {
                dx[i] = r * (dx[i] - s1 - (x[i] - mean) * r * s2);
            }
        });
    }
    by_row(x, g, d, |x, g, dx, dw, _| {
        let r = rms_scale(x, eps);
        for i in 0..d {
            dw[i] += g[i] * x[i] * r;
            dx[i] = g[i] * w[i];
        }
        let s = vector::dot(dx, x) * r * r / d as f32;
        for i in 0..d {
            dx[i] = r * (dx[i] - x[i] * s);
        }
    })
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (values(x, lx)?, values(w, lw)?, values(b, lb)?);
        check(lx, w.len())?;
        Ok((CpuStorage::F32(forward(x, w, Some(b), self.eps)), lx.shape().clone()))
    }
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, db) = with_values([x, w, &g.contiguous()?], |[x, w, g]| backward(x, w, true, self.eps, g))?;
        let dev = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), dev)?),
            Some(Tensor::from_vec(dw, w.shape(), dev)?),
            Some(Tensor::from_vec(db, b.shape(), dev)?),
        ))
    }
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }
    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, lx)?, values(w, lw)?);
        check(lx, w.len())?;
        Ok((CpuStorage::F32(forward(x, w, None, self.eps)), lx.shape().clone()))
    }
    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = with_values([x, w, &g.contiguous()?], |[x, w, g]| backward(x, w, false, self.eps, g))?;
        let dev = x.device();
        Ok((Some(Tensor::from_vec(dx, x.shape(), dev)?), Some(Tensor::from_vec(dw, w.shape(), dev)?)))
    }
}

fn check(lx: &Layout, width: usize) -> Result<()> {
    match lx.dims().last() {
        Some(&d) if d == width && d > 0 => Ok(()),
        _ => candle_core::bail!("norm of width {width} given an input of shape {:?}", lx.dims()),
    }
}

/// Runs `row(x, g, dx, dw, db)` over all rows on all threads and adds up the threads' dw and db.
fn by_row(
    x: &[f32],
    g: &[f32],
    d: usize,
    row: impl Fn(&[f32], &[f32], &mut [f32], &mut [f32], &mut [f32]) + Sync,
) -> Grads {
    let mut dx = vector::zeros(x.len());
    let rows = rows_per_task(x.len() / d, d);
    let partial: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(rows * d)
        .zip(x.par_chunks(rows * d))
        .zip(g.par_chunks(rows * d))
        .map(|((dx, x), g)| {
            let (mut dw, mut db) = (vec![0f32; d], vec![0f32; d]);
            for ((dx, x), g) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(g.chunks_exact(d)) {
                row(x, g, dx, &mut dw, &mut db);
            }
            (dw, db)
        })
        .collect();
    let (mut dw, mut db) = (vec![0f32; d], vec![0f32; d]);
    for (w, b) in partial {
        for i in 0..d {
            dw[i] += w[i];
            db[i] += b[i];
        }
    }
    (dx, dw, db)
}
