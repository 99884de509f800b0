//! The two residual branches of a transformer block as one operation each: x + attention(norm x), x + mlp(norm x).
//!
//! A chain of a dozen small operations is right but slow: the graph zeroes, adds and keeps a gradient of every inner
//! tensor. Here the inner tensors stay inside the operation, which keeps what its backward needs. All parameters of a
//! branch travel as one flat vector, because an operation has at most three inputs.

use super::activation::{gated_slopes, gated_values};
use super::attention::{Attention, Dims};
use super::linear::{Matrix, column_sums, forward as project, product};
use super::rows::{WeightType, as_floats};
use super::{Activation, Mask, Positions, Rope, norm, values, vector, with_values};
use crate::exec::Exec;
use crate::weight::Packed;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Parameters of a branch in one vector, in the order they were added.
#[derive(Default)]
pub struct Flat {
    tensors: Vec<Tensor>,
    len: usize,
}

impl Flat {
    fn add(&mut self, t: &Tensor) -> Result<Range<usize>> {
        let start = self.len;
        self.len += t.elem_count();
        self.tensors.push(t.flatten_all()?);
        Ok(start..self.len)
    }

    /// A norm's weight and, for a layer norm, bias.
    pub fn norm(&mut self, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<NormAt> {
        Ok(NormAt { weight: self.add(weight)?, bias: bias.map(|b| self.add(b)).transpose()?, eps: eps as f32 })
    }

    /// A projection's weight [out, in] and bias.
    pub fn linear(&mut self, weight: &Tensor, bias: Option<&Tensor>) -> Result<LinearAt> {
        let (n, k) = weight.dims2()?;
        let weight = Source::Here(self.add(weight)?);
        Ok(LinearAt { weight, bias: bias.map(|b| self.add(b)).transpose()?, n, k })
    }

    /// A held weight with its adapters A [rank, in] and B [out, rank].
    pub(crate) fn adapted(
        &mut self,
        held: &Packed,
        a: &Tensor,
        b: &Tensor,
        scale: f64,
        bias: Option<&Tensor>,
    ) -> Result<LinearAt> {
        let ((n, k), rank) = (held.shape(), a.dim(0)?);
        let (a, b) = (self.add(a)?, self.add(b)?);
        let weight = Source::Held { held: held.clone(), rows: 0..n, a, b, rank, scale: scale as f32 };
        Ok(LinearAt { weight, bias: bias.map(|b| self.add(b)).transpose()?, n, k })
    }
}

/// Where a norm's parameters are.
#[derive(Clone)]
pub struct NormAt {
    weight: Range<usize>,
    bias: Option<Range<usize>>,
    eps: f32,
}

impl NormAt {
    fn forward(&self, p: &[f32], x: &[f32]) -> Vec<f32> {
        norm::forward(x, &p[self.weight.clone()], self.bias.clone().map(|b| &p[b]), self.eps)
    }
    fn backward(&self, p: &[f32], x: &[f32], g: &[f32], dp: &mut [f32]) -> Vec<f32> {
        let (dx, dw, db) = norm::backward(x, &p[self.weight.clone()], self.bias.is_some(), self.eps, g);
        dp[self.weight.clone()].copy_from_slice(&dw);
        if let Some(b) = &self.bias {
            dp[b.clone()].copy_from_slice(&db);
        }
        dx
    }
}

/// Where a projection's parameters are.
#[derive(Clone)]
pub struct LinearAt {
    weight: Source,
    bias: Option<Range<usize>>,
    n: usize,
    k: usize,
}

#[derive(Clone)]
enum Source {
    /// Among the branch's parameters.
    Here(Range<usize>),
    /// Rows of a weight without gradient, and adapters that have one: W + scale B A, never made as a whole.
    Held { held: Packed, rows: Range<usize>, a: Range<usize>, b: Range<usize>, rank: usize, scale: f32 },
}

impl LinearAt {
    /// The same as several projections, as many outputs each.
    pub fn split<const N: usize>(self, outputs: [usize; N]) -> [Self; N] {
        let mut from = 0;
        outputs.map(|n| {
            let part = |r: &Range<usize>, width: usize| r.start + from * width..r.start + (from + n) * width;
            let weight = match &self.weight {
                Source::Here(r) => Source::Here(part(r, self.k)),
                Source::Held { held, rows, a, b, rank, scale } => Source::Held {
                    held: held.clone(),
                    rows: part(rows, 1),
                    a: a.clone(),
                    b: part(b, *rank),
                    rank: *rank,
                    scale: *scale,
                },
            };
            let bias = self.bias.as_ref().map(|r| part(r, 1));
            from += n;
            Self { weight, bias, n, k: self.k }
        })
    }

    fn forward(&self, p: &[f32], x: &[f32]) -> Vec<f32> {
        let bias = self.bias.clone().map(|b| &p[b]);
        match &self.weight {
            Source::Here(w) => project(x, &p[w.clone()], bias, self.n, self.k),
            Source::Held { held, rows, a, b, rank, scale } => {
                let m = x.len() / self.k;
                let mut y = vector::zeros(m * self.n);
                held_product(m, held, rows, x, &mut y);
                let low = project(x, &p[a.clone()], None, *rank, self.k);
                let mut change = project(&low, &p[b.clone()], None, self.n, *rank);
                change.iter_mut().for_each(|v| *v *= scale);
                add_into(&mut y, &change);
                if let Some(bias) = bias {
                    y.chunks_exact_mut(self.n).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
                }
                y
            }
        }
    }

    /// Parameter gradients onto `dp` (zero at first), input gradient into (or onto) `dx`.
    fn backward(&self, p: &[f32], x: &[f32], g: &[f32], dp: &mut [f32], dx: &mut [f32], add: bool) {
        let (n, k, m) = (self.n, self.k, x.len() / self.k);
        if let Some(b) = &self.bias {
            dp[b.clone()].copy_from_slice(&column_sums(g, n));
        }
        match &self.weight {
            Source::Here(w) => {
                product(n, k, m, Matrix::rows(g, n).t(), Matrix::rows(x, k), &mut dp[w.clone()], false);
                product(m, k, n, Matrix::rows(g, n), Matrix::rows(&p[w.clone()], k), dx, add);
            }
            Source::Held { held, rows, a, b, rank, scale } => {
                held_gradient(m, held, rows, g, dx, add);
                let g: Vec<f32> = g.iter().map(|v| v * scale).collect();
                let low = project(x, &p[a.clone()], None, *rank, k);
                product(n, *rank, m, Matrix::rows(&g, n).t(), Matrix::rows(&low, *rank), &mut dp[b.clone()], true);
                let mut d_low = vector::zeros(m * rank);
                product(m, *rank, n, Matrix::rows(&g, n), Matrix::rows(&p[b.clone()], *rank), &mut d_low, false);
                product(*rank, k, m, Matrix::rows(&d_low, *rank).t(), Matrix::rows(x, k), &mut dp[a.clone()], true);
                product(m, k, *rank, Matrix::rows(&d_low, *rank), Matrix::rows(&p[a.clone()], k), dx, true);
            }
        }
    }
}

/// Rows of a held weight that are widened together for the products of a training.
const HELD_ROWS: usize = 512;

/// y [m, rows] = x [m, k] W^T, some rows of W at a time as float32.
fn held_product(m: usize, held: &Packed, rows: &Range<usize>, x: &[f32], y: &mut [f32]) {
    let (k, n) = (held.shape().1, rows.len());
    held_parts(held, rows, |at, w| {
        let count = w.len() / k;
        let mut part = vector::zeros(m * count);
        product(m, count, k, Matrix::rows(x, k), Matrix::rows(w, k).t(), &mut part, false);
        if count == n {
            y.copy_from_slice(&part);
            return;
        }
        for (y, part) in y.chunks_exact_mut(n).zip(part.chunks_exact(count)) {
            y[at..at + count].copy_from_slice(part);
        }
    });
}

/// dx [m, k] = or += g [m, rows] W, some rows of W at a time as float32.
fn held_gradient(m: usize, held: &Packed, rows: &Range<usize>, g: &[f32], dx: &mut [f32], add: bool) {
    let (k, n) = (held.shape().1, rows.len());
    let mut add = add;
    held_parts(held, rows, |at, w| {
        let count = w.len() / k;
        let mut part = Vec::with_capacity(m * count);
        g.chunks_exact(n).for_each(|g| part.extend_from_slice(&g[at..at + count]));
        product(m, k, count, Matrix::rows(&part, count), Matrix::rows(w, k), dx, add);
        add = true;
    });
}

fn held_parts(held: &Packed, rows: &Range<usize>, mut f: impl FnMut(usize, &[f32])) {
    let k = held.shape().1;
    // float32 rows on the machine's order and alignment are used where they lie
    if held.ty() == WeightType::F32
        && let Some(all) = as_floats(held.bytes())
    {
        return f(0, &all[rows.start * k..rows.end * k]);
    }
    let mut w = vec![0f32; HELD_ROWS.min(rows.len()) * k];
    for from in (0..rows.len()).step_by(HELD_ROWS) {
        let count = HELD_ROWS.min(rows.len() - from);
        w[..count * k].par_chunks_exact_mut(k).enumerate().for_each(|(i, out)| held.row(rows.start + from + i, out));
        f(from, &w[..count * k]);
    }
}

/// y = x W^T + b of a held float32 weight, by the library's product.
pub fn linear_held(x: &Tensor, held: &Packed, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = held.shape();
    let mut shape = x.dims().to_vec();
    if shape.last() != Some(&k) {
        candle_core::bail!("a linear layer of weight [{n}, {k}] given an input of shape {shape:?}");
    }
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    let bias = bias.map(Tensor::flatten_all).transpose()?;
    let run = |x: &[f32], bias: Option<&[f32]>| {
        let m = x.len() / k.max(1);
        let mut y = vector::zeros(m * n);
        held_product(m, held, &(0..n), x, &mut y);
        if let Some(bias) = bias {
            y.par_chunks_mut(n.max(1) * 64).for_each(|rows| {
                rows.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            });
        }
        y
    };
    let y = match &bias {
        Some(bias) => with_values([&x.contiguous()?, bias], |[x, bias]| run(x, Some(bias)))?,
        None => with_values([&x.contiguous()?], |[x]| run(x, None))?,
    };
    Tensor::from_vec(y, shape, x.device())
}

fn add_into(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(16 * 1024).zip(y.par_chunks(16 * 1024)).for_each(|(x, y)| {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    });
}

/// x + attention(norm x).
pub struct AttentionBranch {
    /// Norm of the input.
    pub norm: NormAt,
    /// Query, key and value projections.
    pub projections: [LinearAt; 3],
    /// Output projection.
    pub out: LinearAt,
    /// Norm of each head's queries and keys.
    pub qk_norm: Option<(NormAt, NormAt)>,
    /// Norm of the merged heads before the output projection.
    pub inner_norm: Option<NormAt>,
    /// Heads, key-value heads, width of a head.
    pub heads: (usize, usize, usize),
    /// Rotary table and positions.
    pub rope: Option<(Rope, Positions)>,
    /// Which keys a query sees.
    pub mask: Mask,
}

/// x + down(norm(act(gate, up)))(norm x).
pub struct MlpBranch {
    /// Norm of the input.
    pub norm: NormAt,
    /// Gate, where there is one.
    pub gate: Option<LinearAt>,
    /// Up projection.
    pub up: LinearAt,
    /// Activation of a network without gate.
    pub act: Activation,
    /// Norm of the inner values.
    pub inner_norm: Option<NormAt>,
    /// Down projection.
    pub down: LinearAt,
}

/// Applies a branch to x [batch, tokens, width].
pub fn branch(x: &Tensor, flat: &Flat, op: impl Branch + 'static) -> Result<Tensor> {
    op.check(x)?;
    let p = Tensor::cat(&flat.tensors, 0)?;
    x.contiguous()?.apply_op2(&p, Saving { op, saved: Mutex::new(None) })
}

/// A branch's forward and backward over slices.
pub trait Branch: Send + Sync {
    /// Tensors that backward needs.
    type Saved: Send;
    /// Whether positions and mask fit the input.
    fn check(&self, x: &Tensor) -> Result<()>;
    /// Output, and what backward needs.
    fn forward(&self, batch: usize, x: &[f32], p: &[f32]) -> (Vec<f32>, Self::Saved);
    /// Gradients of the input (the residual path included) and of the parameters.
    fn backward(&self, batch: usize, x: &[f32], p: &[f32], s: Self::Saved, g: &[f32]) -> (Vec<f32>, Vec<f32>);
}

struct Saving<B: Branch> {
    op: B,
    saved: Mutex<Option<B::Saved>>,
}

impl<B: Branch> Saving<B> {
    fn take(&self) -> Option<B::Saved> {
        self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

impl<B: Branch> CustomOp2 for Saving<B> {
    fn name(&self) -> &'static str {
        "residual-branch"
    }
    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, p: &CpuStorage, lp: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, saved) = self.op.forward(lx.dims()[0], values(x, lx)?, values(p, lp)?);
        if !Exec::now().recompute {
            *self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(saved);
        }
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }
    fn bwd(&self, x: &Tensor, p: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let batch = x.dim(0)?;
        let (dx, dp) = with_values([x, p, &g.contiguous()?], |[xv, pv, g]| {
            // a second backward over the same graph computes the tensors again, as does the first where memory is saved
            let saved = self.take().unwrap_or_else(|| self.op.forward(batch, xv, pv).1);
            self.op.backward(batch, xv, pv, saved, g)
        })?;
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), Some(Tensor::from_vec(dp, p.shape(), p.device())?)))
    }
}

/// Inner tensors of the attention branch.
pub struct AttentionSaved {
    normed: Vec<f32>,
    /// Before the head norms, where there are any.
    raw: Option<(Vec<f32>, Vec<f32>)>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    merged: Vec<f32>,
    inner: Option<Vec<f32>>,
}

impl AttentionBranch {
    fn dims(&self, batch: usize, tokens: usize) -> Dims {
        let (h, kv, d) = self.heads;
        Dims { b: batch, tq: tokens, tk: tokens, h, kv, d }
    }
    fn attention(&self) -> Attention {
        Attention { scale: (self.heads.2 as f64).powf(-0.5) as f32, mask: self.mask.clone() }
    }
    fn rotate(&self, x: &mut [f32], tokens: usize, heads: usize, inverse: bool) {
        if let Some((rope, positions)) = &self.rope {
            rope.rotate(x, tokens, heads, positions, inverse);
        }
    }
}

impl Branch for AttentionBranch {
    type Saved = AttentionSaved;

    fn check(&self, x: &Tensor) -> Result<()> {
        let (b, t, _) = x.dims3()?;
        self.mask.check(b, t, t)?;
        self.rope.as_ref().map_or(Ok(()), |(rope, at)| rope.check(at, b, t))
    }

    fn forward(&self, batch: usize, x: &[f32], p: &[f32]) -> (Vec<f32>, AttentionSaved) {
        let ([to_q, to_k, to_v], out) = (&self.projections, &self.out);
        let (h, kv, _) = self.heads;
        let tokens = x.len() / to_q.k / batch;
        let normed = self.norm.forward(p, x);
        let (mut q, mut k, v) = (to_q.forward(p, &normed), to_k.forward(p, &normed), to_v.forward(p, &normed));
        let mut raw = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let normed = (q_norm.forward(p, &q), k_norm.forward(p, &k));
            raw = Some((std::mem::replace(&mut q, normed.0), std::mem::replace(&mut k, normed.1)));
        }
        self.rotate(&mut q, tokens, h, false);
        self.rotate(&mut k, tokens, kv, false);
        let merged = self.attention().forward(self.dims(batch, tokens), &q, &k, &v);
        let inner = self.inner_norm.as_ref().map(|n| n.forward(p, &merged));
        let mut y = out.forward(p, inner.as_deref().unwrap_or(&merged));
        add_into(&mut y, x);
        (y, AttentionSaved { normed, raw, q, k, v, merged, inner })
    }

    fn backward(&self, batch: usize, x: &[f32], p: &[f32], s: AttentionSaved, g: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let ([to_q, to_k, to_v], out) = (&self.projections, &self.out);
        let (h, kv, _) = self.heads;
        let tokens = x.len() / to_q.k / batch;
        let mut dp = vector::zeros(p.len());
        let mut d_merged = vector::zeros(s.merged.len());
        out.backward(p, s.inner.as_deref().unwrap_or(&s.merged), g, &mut dp, &mut d_merged, false);
        if let Some(n) = &self.inner_norm {
            d_merged = n.backward(p, &s.merged, &d_merged, &mut dp);
        }
        let n = self.dims(batch, tokens);
        let [mut dq, mut dk, dv] = self.attention().backward(n, &s.q, &s.k, &s.v, &s.merged, &d_merged);
        self.rotate(&mut dq, tokens, h, true);
        self.rotate(&mut dk, tokens, kv, true);
        if let (Some((q_norm, k_norm)), Some((q, k))) = (&self.qk_norm, &s.raw) {
            dq = q_norm.backward(p, q, &dq, &mut dp);
            dk = k_norm.backward(p, k, &dk, &mut dp);
        }
        let mut d_normed = vector::zeros(s.normed.len());
        to_q.backward(p, &s.normed, &dq, &mut dp, &mut d_normed, false);
        to_k.backward(p, &s.normed, &dk, &mut dp, &mut d_normed, true);
        to_v.backward(p, &s.normed, &dv, &mut dp, &mut d_normed, true);
        let mut dx = self.norm.backward(p, x, &d_normed, &mut dp);
        add_into(&mut dx, g);
        (dx, dp)
    }
}

/// Inner tensors of the feed-forward branch.
pub struct MlpSaved {
    normed: Vec<f32>,
    gate: Option<Vec<f32>>,
    up: Vec<f32>,
    active: Vec<f32>,
    inner: Option<Vec<f32>>,
}

impl Branch for MlpBranch {
    type Saved = MlpSaved;

    fn check(&self, _x: &Tensor) -> Result<()> {
        Ok(())
    }

    fn forward(&self, _batch: usize, x: &[f32], p: &[f32]) -> (Vec<f32>, MlpSaved) {
        let normed = self.norm.forward(p, x);
        let gate = self.gate.as_ref().map(|l| l.forward(p, &normed));
        let up = self.up.forward(p, &normed);
        let active = match &gate {
            Some(gate) => gated_values(gate, &up),
            None => self.act.values(&up),
        };
        let inner = self.inner_norm.as_ref().map(|n| n.forward(p, &active));
        let mut y = self.down.forward(p, inner.as_deref().unwrap_or(&active));
        add_into(&mut y, x);
        (y, MlpSaved { normed, gate, up, active, inner })
    }

    fn backward(&self, _batch: usize, x: &[f32], p: &[f32], s: MlpSaved, g: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut dp = vector::zeros(p.len());
        let mut d_active = vector::zeros(s.active.len());
        self.down.backward(p, s.inner.as_deref().unwrap_or(&s.active), g, &mut dp, &mut d_active, false);
        if let Some(n) = &self.inner_norm {
            d_active = n.backward(p, &s.active, &d_active, &mut dp);
        }
        let mut d_normed = vector::zeros(s.normed.len());
        match (&self.gate, &s.gate) {
            (Some(gate), Some(a)) => {
                let (da, db) = gated_slopes(a, &s.up, &d_active);
                gate.backward(p, &s.normed, &da, &mut dp, &mut d_normed, false);
                self.up.backward(p, &s.normed, &db, &mut dp, &mut d_normed, true);
            }
            _ => {
                let d_up = self.act.slopes(&s.up, &d_active);
                self.up.backward(p, &s.normed, &d_up, &mut dp, &mut d_normed, false);
            }
        }
        let mut dx = self.norm.backward(p, x, &d_normed, &mut dp);
        add_into(&mut dx, g);
        (dx, dp)
    }
}
