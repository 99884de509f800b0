//! Half and double resolution: the mean of squares of four, and each value four times. Each is the other's gradient.

use super::{is_fused, values, vector, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Each value four times: [batch, channels, height, width] to twice the height and width.
pub fn double(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if is_fused(x) {
        return x.contiguous()?.apply_op1(Double);
    }
    // candle's upsampling replaces a gradient that x already has instead of adding to it
    x.reshape((b, c, h, 1, w, 1))?.broadcast_as((b, c, h, 2, w, 2))?.reshape((b, c, 2 * h, 2 * w))
}

/// The mean of each square of four: [batch, channels, height, width], both even, to half of each.
pub fn halve(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if !h.is_multiple_of(2) || !w.is_multiple_of(2) {
        candle_core::bail!("half of {h} x {w}: both must be even");
    }
    if is_fused(x) {
        return x.contiguous()?.apply_op1(Halve);
    }
    x.avg_pool2d(2)
}

struct Double;
struct Halve;

/// The last two dimensions, and the shape with these in their place.
fn resized(dims: &[usize], size: impl Fn(usize) -> usize) -> (usize, Shape) {
    let mut out = dims.to_vec();
    let n = out.len();
    out[n - 2..].iter_mut().for_each(|d| *d = size(*d));
    (dims[n - 1], Shape::from(out))
}

/// Rows of `width` values, each value four times and multiplied.
fn spread(x: &[f32], width: usize, factor: f32) -> Vec<f32> {
    let mut y = vector::zeros(4 * x.len());
    if width > 0 {
        y.par_chunks_mut(4 * width).zip(x.par_chunks(width)).for_each(|(y, x)| {
            let (above, below) = y.split_at_mut(2 * width);
            for (pair, x) in above.chunks_exact_mut(2).zip(x) {
                pair.fill(x * factor);
            }
            below.copy_from_slice(above);
        });
    }
    y
}

/// Sums of squares of four values, multiplied; rows of `width` values.
fn gather(x: &[f32], width: usize, factor: f32) -> Vec<f32> {
    let mut y = vector::zeros(x.len() / 4);
    if width > 0 {
        y.par_chunks_mut(width / 2).zip(x.par_chunks(2 * width)).for_each(|(y, x)| {
            let (above, below) = x.split_at(width);
            for ((y, a), b) in y.iter_mut().zip(above.chunks_exact(2)).zip(below.chunks_exact(2)) {
                *y = (a[0] + a[1] + b[0] + b[1]) * factor;
            }
        });
    }
    y
}

impl CustomOp1 for Double {
    fn name(&self) -> &'static str {
        "double"
    }
    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (width, shape) = resized(l.dims(), |d| 2 * d);
        Ok((CpuStorage::F32(spread(values(x, l)?, width, 1.0)), shape))
    }
    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let width = 2 * x.dim(candle_core::D::Minus1)?;
        let dx = with_values([&g.contiguous()?], |[g]| gather(g, width, 1.0))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

impl CustomOp1 for Halve {
    fn name(&self) -> &'static str {
        "halve"
    }
    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (width, shape) = resized(l.dims(), |d| d / 2);
        Ok((CpuStorage::F32(gather(values(x, l)?, width, 0.25)), shape))
    }
    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dim(candle_core::D::Minus1)? / 2;
        let dx = with_values([&g.contiguous()?], |[g]| spread(g, width, 0.25))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
