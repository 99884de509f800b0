//! Group norm (Wu and He 2018): the channels of each picture in groups, each normed over its channels and places.

use super::norm::{Grads, layer_stats};
use super::{is_fused, values, vector, with_values};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// (x - mean) / sqrt(var + eps) * weight + bias; x [batch, channels, height, width], mean and variance of each of
/// `groups` runs of channels, weight and bias [channels].
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let shape = x.dims4()?;
    if groups == 0 || !shape.1.is_multiple_of(groups) || weight.dims() != [shape.1] || bias.dims() != [shape.1] {
        candle_core::bail!("{groups} groups, weight {:?} over {:?}", weight.dims(), x.dims());
    }
    if is_fused(x) {
        return x.contiguous()?.apply_op3(weight, bias, GroupNorm { groups, eps: eps as f32 });
    }
    let g = x.reshape((shape.0, groups, ()))?;
    let centred = g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?;
    let spread = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let y = centred.broadcast_div(&spread)?.reshape(shape)?;
    let row = |t: &Tensor| t.reshape((1, (), 1, 1));
    y.broadcast_mul(&row(weight)?)?.broadcast_add(&row(bias)?)
}

struct GroupNorm {
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    /// `plane` is the number of places.
    fn forward(&self, x: &[f32], w: &[f32], b: &[f32], plane: usize) -> Vec<f32> {
        let mut y = vector::zeros(x.len());
        let per = w.len() / self.groups;
        y.par_chunks_mut(per * plane).zip(x.par_chunks(per * plane)).enumerate().for_each(|(i, (y, x))| {
            let (mean, r) = layer_stats(x, self.eps);
            let first = i % self.groups * per;
            for (c, (y, x)) in y.chunks_exact_mut(plane).zip(x.chunks_exact(plane)).enumerate() {
                let (scale, shift) = (r * w[first + c], b[first + c]);
                for (y, x) in y.iter_mut().zip(x) {
                    // the mean first: beside a large one, x * scale would lose what is left
                    *y = (x - mean) * scale + shift;
                }
            }
        });
        y
    }

    /// Gradients of input, weight and bias.
    fn backward(&self, x: &[f32], w: &[f32], g: &[f32], plane: usize) -> Grads {
        let channels = w.len();
        let per = channels / self.groups;
        let mut dx = vector::zeros(x.len());
        // of each picture's channels
        let mut parts = vec![(0f32, 0f32); x.len() / plane.max(1)];
        dx.par_chunks_mut(per * plane)
            .zip(parts.par_chunks_mut(per))
            .zip(x.par_chunks(per * plane).zip(g.par_chunks(per * plane)))
            .enumerate()
            .for_each(|(i, ((dx, parts), (x, g)))| {
                let (mean, r) = layer_stats(x, self.eps);
                let w = &w[i % self.groups * per..][..per];
                let (mut of_norm, mut of_sum) = (0f32, 0f32);
                for (c, (x, g)) in x.chunks_exact(plane).zip(g.chunks_exact(plane)).enumerate() {
                    let db = vector::sum(g);
                    let dw = vector::dot_dev(g, x, mean) * r;
                    parts[c] = (dw, db);
                    of_norm += w[c] * dw;
                    of_sum += w[c] * db;
                }
                let n = x.len() as f32;
                // dx = r (g w - mean(g w) - norm mean(g w norm)), norm = (x - mean) r
                let slope = r * r * of_norm / n;
                let shift = r * of_sum / n;
                let planes = dx.chunks_exact_mut(plane).zip(x.chunks_exact(plane).zip(g.chunks_exact(plane)));
                for (c, (dx, (x, g))) in planes.enumerate() {
                    let scale = r * w[c];
                    for ((dx, x), g) in dx.iter_mut().zip(x).zip(g) {
                        *dx = g * scale - (x - mean) * slope - shift;
                    }
                }
            });
        let (mut dw, mut db) = (vec![0f32; channels], vec![0f32; channels]);
        for picture in parts.chunks_exact(channels) {
            for (c, part) in picture.iter().enumerate() {
                dw[c] += part.0;
                db[c] += part.1;
            }
        }
        (dx, dw, db)
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
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
        let plane = lx.dims()[2..].iter().product();
        let y = self.forward(values(x, lx)?, values(w, lw)?, values(b, lb)?, plane);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let plane = x.dims()[2..].iter().product();
        let (dx, dw, db) = with_values([x, w, &g.contiguous()?], |[x, w, g]| self.backward(x, w, g, plane))?;
        let t = |v, like: &Tensor| Tensor::from_vec(v, like.shape(), like.device()).map(Some);
        Ok((t(dx, x)?, t(dw, w)?, t(db, b)?))
    }
}
