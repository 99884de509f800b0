//! y = x W^T + b, and the two products of its backward pass.
#![allow(unsafe_code)]

use super::gemm_bf16::{bf16_available, gemm_bf16};
use super::{is_fused, values, vector, with_values};
use crate::exec::Exec;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Whether products round their inputs now.
pub(super) fn bf16_matmul() -> bool {
    Exec::now().bf16 && bf16_available()
}

/// x [.., k] times the transpose of weight [n, k], plus bias [n]; returns [.., n].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if shape.last() != Some(&k) {
        candle_core::bail!("a linear layer of weight [{n}, {k}] given an input of shape {shape:?}");
    }
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    if is_fused(x) && is_fused(weight) {
        let (x, weight) = (x.contiguous()?, weight.contiguous()?);
        return match bias {
            Some(b) => x.apply_op3(&weight, b, Linear),
            None => x.apply_op2(&weight, Linear),
        };
    }
    let y = x.flatten_to(candle_core::D::Minus2)?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(b) => y.broadcast_add(b)?,
        None => y,
    };
    y.reshape(shape)
}

/// A matrix in memory: element (row, col) is at `row * row_stride + col * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> Matrix<'a> {
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row_stride: width, col_stride: 1 }
    }
    pub fn t(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// c [m, n] = (or +=) a [m, k] b [k, n], in bfloat16 where that is allowed and pays.
pub(crate) fn product(m: usize, n: usize, k: usize, a: Matrix, b: Matrix, c: &mut [f32], add: bool) {
    assert!(c.len() == m * n && a.data.len() >= m * k && b.data.len() >= k * n);
    if m == 0 || n == 0 {
        return;
    }
    if bf16_matmul() && m >= 16 && n >= 16 && k >= 16 {
        return gemm_bf16(m, n, k, a, b, c, add);
    }
    // SAFETY: the assertion above bounds every index that the strides can reach, and c is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

/// Up to this many rows a product is bound by reading the weight: one pass of dot products over it.
const FEW_ROWS: usize = 6;

fn few_rows(x: &[f32], w: &[f32], bias: Option<&[f32]>, m: usize, n: usize, k: usize) -> Vec<f32> {
    let mut by_column = vector::zeros(n * m);
    let columns = (32 * 1024 / k.max(1)).max(1);
    by_column.par_chunks_mut(columns * m).zip(w.par_chunks(columns * k)).for_each(|(y, w)| {
        for (y, w) in y.chunks_exact_mut(m).zip(w.chunks_exact(k)) {
            for i in 0..m {
                y[i] = vector::dot(&x[i * k..(i + 1) * k], w);
            }
        }
    });
    let mut y = vector::zeros(m * n);
    for i in 0..m {
        for j in 0..n {
            y[i * n + j] = by_column[j * m + i] + bias.map_or(0.0, |b| b[j]);
        }
    }
    y
}

pub(super) fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, n: usize, k: usize) -> Vec<f32> {
    let m = x.len() / k;
    if m <= FEW_ROWS {
        return few_rows(x, w, bias, m, n, k);
    }
    let mut y = vector::zeros(m * n);
    product(m, n, k, Matrix::rows(x, k), Matrix::rows(w, k).t(), &mut y, false);
    if let Some(b) = bias {
        y.par_chunks_mut(n * 64).for_each(|rows| {
            for row in rows.chunks_exact_mut(n) {
                for (y, b) in row.iter_mut().zip(b) {
                    *y += b;
                }
            }
        });
    }
    y
}

pub(super) fn column_sums(g: &[f32], n: usize) -> Vec<f32> {
    let add = |mut a: Vec<f32>, b: &[f32]| {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    };
    let rows = (g.len() / n).div_ceil(2 * rayon::current_num_threads()).max(64);
    let parts: Vec<Vec<f32>> =
        g.par_chunks(n * rows).map(|rows| rows.chunks_exact(n).fold(vec![0f32; n], add)).collect();
    parts.iter().fold(vec![0f32; n], |a, b| add(a, b))
}

struct Linear;

impl Linear {
    fn run(&self, x: &[f32], lx: &Layout, w: &[f32], lw: &Layout, b: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let &[n, k] = lw.dims() else { candle_core::bail!("a linear weight must have two dimensions") };
        if b.is_some_and(|b| b.len() != n) {
            candle_core::bail!("a bias of another length than the {n} outputs");
        }
        let mut shape = lx.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        Ok((CpuStorage::F32(forward(x, w, b, n, k)), Shape::from(shape)))
    }

    /// Gradients of input and weight; what is frozen (not tracked by the graph) is not computed.
    fn grads(&self, x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, k) = w.dims2()?;
        let m = x.elem_count() / k;
        let g = g.contiguous()?;
        let dx = if x.track_op() {
            let dx = with_values([w, &g], |[w, g]| {
                let mut dx = vector::zeros(m * k);
                product(m, k, n, Matrix::rows(g, n), Matrix::rows(w, k), &mut dx, false);
                dx
            })?;
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        } else {
            None
        };
        let dw = if w.track_op() {
            let dw = with_values([x, &g], |[x, g]| {
                let mut dw = vector::zeros(n * k);
                product(n, k, m, Matrix::rows(g, n).t(), Matrix::rows(x, k), &mut dw, false);
                dw
            })?;
            Some(Tensor::from_vec(dw, w.shape(), w.device())?)
        } else {
            None
        };
        Ok((dx, dw))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(values(x, lx)?, lx, values(w, lw)?, lw, None)
    }
    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.grads(x, w, g)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-bias"
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
        self.run(values(x, lx)?, lx, values(w, lw)?, lw, Some(values(b, lb)?))
    }
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.grads(x, w, g)?;
        let db = if b.track_op() {
            let db = with_values([&g.contiguous()?], |[g]| column_sums(g, b.elem_count()))?;
            Some(Tensor::from_vec(db, b.shape(), b.device())?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}
