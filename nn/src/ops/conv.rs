//! Two-dimensional convolution: patches to columns, then one product; the columns are made again in the backward pass. In
//! bfloat16 there are no columns (conv_bf16.rs).

use super::linear::{Matrix, product};
#[cfg(target_arch = "x86_64")]
use super::{conv_bf16, linear::bf16_matmul};
use super::{is_fused, values, vector, with_values};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// x [batch, in, height, width] with kernels [out, in, kh, kw], zeros around: `padding` rows and columns on every side;
/// returns [batch, out, (height + 2 padding - kh) / stride + 1, ..].
pub fn conv2d(x: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Tensor> {
    if is_fused(x) && is_fused(weight) {
        return x.contiguous()?.apply_op2(&weight.contiguous()?, Conv { padding, stride });
    }
    x.conv2d(weight, padding, stride, 1, 1)
}

/// The same with a bias [out] added.
pub fn conv2d_biased(x: &Tensor, weight: &Tensor, bias: &Tensor, padding: usize, stride: usize) -> Result<Tensor> {
    if is_fused(x) && is_fused(weight) && is_fused(bias) && bias.dims().first() == weight.dims().first() {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Conv { padding, stride });
    }
    conv2d(x, weight, padding, stride)?.broadcast_add(&bias.reshape((1, (), 1, 1))?)
}

#[derive(Clone, Copy)]
struct Conv {
    padding: usize,
    stride: usize,
}

/// Sizes of one convolution.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    pub input: usize,
    pub h: usize,
    pub w: usize,
    pub output: usize,
    pub kh: usize,
    pub kw: usize,
    pub oh: usize,
    pub ow: usize,
    pub padding: usize,
    pub stride: usize,
}

impl Sizes {
    /// Values of a column: one patch.
    pub fn patch(&self) -> usize {
        self.input * self.kh * self.kw
    }
    pub fn cells(&self) -> usize {
        self.oh * self.ow
    }
    pub fn image(&self) -> usize {
        self.input * self.h * self.w
    }

    /// Output columns whose input column `at * stride + dx - padding` lies inside, as a range.
    fn inside(&self, cells: usize, size: usize, d: usize) -> std::ops::Range<usize> {
        let first = self.padding.saturating_sub(d).div_ceil(self.stride);
        let end = if size + self.padding > d { (size + self.padding - d).div_ceil(self.stride) } else { 0 };
        first.min(cells)..end.clamp(first.min(cells), cells)
    }

    /// One picture to columns [patch, cells].
    fn columns(&self, x: &[f32], out: &mut [f32]) {
        let plane = self.kh * self.kw * self.cells();
        out.par_chunks_mut(plane).zip(x.par_chunks(self.h * self.w)).for_each(|(out, x)| {
            for (k, row) in out.chunks_exact_mut(self.cells()).enumerate() {
                let (dy, dx) = (k / self.kw, k % self.kw);
                let columns = self.inside(self.ow, self.w, dx);
                let rows = self.inside(self.oh, self.h, dy);
                for (oy, line) in row.chunks_exact_mut(self.ow).enumerate() {
                    if !rows.contains(&oy) || columns.is_empty() {
                        line.fill(0.0);
                        continue;
                    }
                    let y = oy * self.stride + dy - self.padding;
                    let from = y * self.w + columns.start * self.stride + dx - self.padding;
                    line[..columns.start].fill(0.0);
                    line[columns.end..].fill(0.0);
                    let inner = &mut line[columns.clone()];
                    if self.stride == 1 {
                        inner.copy_from_slice(&x[from..from + inner.len()]);
                    } else {
                        for (o, v) in inner.iter_mut().zip(x[from..].iter().step_by(self.stride)) {
                            *o = *v;
                        }
                    }
                }
            }
        });
    }

    /// Sums columns [patch, cells] back into a picture: the transpose of [`Self::columns`].
    fn picture(&self, columns: &[f32], x: &mut [f32]) {
        let plane = self.kh * self.kw * self.cells();
        x.par_chunks_mut(self.h * self.w).zip(columns.par_chunks(plane)).for_each(|(x, all)| {
            x.fill(0.0);
            for (k, row) in all.chunks_exact(self.cells()).enumerate() {
                let (dy, dx) = (k / self.kw, k % self.kw);
                let columns = self.inside(self.ow, self.w, dx);
                if columns.is_empty() {
                    continue;
                }
                for oy in self.inside(self.oh, self.h, dy) {
                    let y = oy * self.stride + dy - self.padding;
                    let from = y * self.w + columns.start * self.stride + dx - self.padding;
                    let line = &row[oy * self.ow..][columns.clone()];
                    for (v, g) in x[from..].iter_mut().step_by(self.stride).zip(line) {
                        *v += g;
                    }
                }
            }
        });
    }

    fn forward(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        #[cfg(target_arch = "x86_64")]
        if bf16_matmul() {
            return conv_bf16::forward(self, x, weight);
        }
        let mut y = vector::zeros(self.batch * self.output * self.cells());
        let mut columns = vec![0f32; self.patch() * self.cells()];
        for (y, x) in y.chunks_exact_mut(self.output * self.cells()).zip(x.chunks_exact(self.image())) {
            self.columns(x, &mut columns);
            let (w, c) = (Matrix::rows(weight, self.patch()), Matrix::rows(&columns, self.cells()));
            product(self.output, self.cells(), self.patch(), w, c, y, false);
        }
        y
    }

    fn weight_gradient(&self, x: &[f32], g: &[f32]) -> Vec<f32> {
        #[cfg(target_arch = "x86_64")]
        if bf16_matmul() {
            return conv_bf16::weight_gradient(self, x, g);
        }
        let mut dw = vec![0f32; self.output * self.patch()];
        let mut columns = vec![0f32; self.patch() * self.cells()];
        for (g, x) in g.chunks_exact(self.output * self.cells()).zip(x.chunks_exact(self.image())) {
            self.columns(x, &mut columns);
            let (g, c) = (Matrix::rows(g, self.cells()), Matrix::rows(&columns, self.cells()).t());
            product(self.output, self.patch(), self.cells(), g, c, &mut dw, true);
        }
        dw
    }

    fn input_gradient(&self, weight: &[f32], g: &[f32]) -> Vec<f32> {
        #[cfg(target_arch = "x86_64")]
        if bf16_matmul() {
            return conv_bf16::input_gradient(self, weight, g);
        }
        let mut dx = vector::zeros(self.batch * self.image());
        let mut columns = vec![0f32; self.patch() * self.cells()];
        for (g, dx) in g.chunks_exact(self.output * self.cells()).zip(dx.chunks_exact_mut(self.image())) {
            let (w, g) = (Matrix::rows(weight, self.patch()).t(), Matrix::rows(g, self.cells()));
            product(self.patch(), self.cells(), self.output, w, g, &mut columns, false);
            self.picture(&columns, dx);
        }
        dx
    }
}

impl Conv {
    fn sizes(&self, x: &[usize], weight: &[usize]) -> Result<Sizes> {
        let (&[batch, input, h, w], &[output, i, kh, kw]) = (x, weight) else {
            candle_core::bail!("a convolution of {weight:?} over {x:?}: both need four dimensions");
        };
        let (ph, pw) = (h + 2 * self.padding, w + 2 * self.padding);
        if i != input || kh > ph || kw > pw || self.stride == 0 || kh * kw == 0 {
            candle_core::bail!("kernels {weight:?} do not fit an input of {x:?} with padding {}", self.padding);
        }
        let (oh, ow) = ((ph - kh) / self.stride + 1, (pw - kw) / self.stride + 1);
        let (padding, stride) = (self.padding, self.stride);
        Ok(Sizes { batch, input, h, w, output, kh, kw, oh, ow, padding, stride })
    }

    /// Gradients of input and kernels; what is held is not computed.
    fn grads(&self, x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let s = self.sizes(x.dims(), w.dims())?;
        with_values([x, w, g], |[xv, wv, g]| {
            let dx = x.track_op().then(|| s.input_gradient(wv, g));
            let dw = w.track_op().then(|| s.weight_gradient(xv, g));
            let tensor = |v: Option<Vec<f32>>, like: &Tensor| {
                v.map(|v| Tensor::from_vec(v, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dx, x)?, tensor(dw, w)?))
        })?
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }
    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let s = self.sizes(lx.dims(), lw.dims())?;
        let y = s.forward(values(x, lx)?, values(w, lw)?);
        Ok((CpuStorage::F32(y), Shape::from((s.batch, s.output, s.oh, s.ow))))
    }
    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.grads(x, w, &g.contiguous()?)
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d-bias"
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
        let s = self.sizes(lx.dims(), lw.dims())?;
        let mut y = s.forward(values(x, lx)?, values(w, lw)?);
        let b = values(b, lb)?;
        y.par_chunks_mut(s.cells().max(1)).enumerate().for_each(|(i, plane)| {
            let b = b[i % s.output];
            plane.iter_mut().for_each(|v| *v += b);
        });
        Ok((CpuStorage::F32(y), Shape::from((s.batch, s.output, s.oh, s.ow))))
    }
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let s = self.sizes(x.dims(), w.dims())?;
        let (dx, dw) = self.grads(x, w, &g)?;
        let db = with_values([&g], |[g]| {
            let mut db = vec![0f32; s.output];
            for (i, plane) in g.chunks_exact(s.cells().max(1)).enumerate() {
                db[i % s.output] += vector::sum(plane);
            }
            db
        })?;
        Ok((dx, dw, Some(Tensor::from_vec(db, s.output, b.device())?)))
    }
}

/// The largest of each window of `kernel` x `kernel`, `stride` apart, without padding: [batch, channels, height, width]
/// to (height - kernel) / stride + 1. Candle's own has wrong gradients; this one is two passes of element-wise maxima.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    let along = |x: &Tensor, dim: usize| -> Result<Tensor> {
        let size = x.dim(dim)?;
        if size < kernel || stride == 0 {
            candle_core::bail!("max_pool2d: a window of {kernel} in {size} pixels, stride {stride}");
        }
        let n = (size - kernel) / stride + 1;
        let mut best: Option<Tensor> = None;
        for k in 0..kernel {
            let rows: Vec<u32> = (0..n).map(|i| (i * stride + k) as u32).collect();
            let part = x.index_select(&Tensor::new(rows, x.device())?, dim)?;
            best = Some(match best {
                Some(b) => b.maximum(&part)?,
                None => part,
            });
        }
        best.ok_or_else(|| candle_core::Error::Msg("max_pool2d: a window of 0".into()))
    };
    along(&along(x, 2)?, 3)
}
