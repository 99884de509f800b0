//! Softmax attention, with grouped key-value heads and masks that are ranges of keys.
//!
//! Every mask a decoder or an encoder here needs lets query i see one run of keys, so a mask is two numbers a query
//! and whole blocks of hidden keys are never computed.
#![allow(unsafe_code)]

use super::{is_fused, values, vector, with_values};
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Which keys a query sees.
#[derive(Debug, Clone)]
pub enum Mask {
    /// All of them.
    Full,
    /// Those up to itself; with more keys than queries, the queries are the last positions.
    Causal,
    /// Those from the given position up to itself, [batch * queries]: packed sequences and left padding.
    CausalFrom(Arc<[u32]>),
}

impl Mask {
    /// Keys that query `i` of sequence `b` sees.
    fn keys(&self, b: usize, i: usize, queries: usize, keys: usize) -> Range<usize> {
        match self {
            Mask::Full => 0..keys,
            Mask::Causal => 0..keys - queries + i + 1,
            Mask::CausalFrom(first) => first[b * queries + i] as usize..keys - queries + i + 1,
        }
    }

    pub(super) fn check(&self, batch: usize, queries: usize, keys: usize) -> Result<()> {
        if !matches!(self, Mask::Full) && keys < queries {
            candle_core::bail!("causal attention of {queries} queries over {keys} keys");
        }
        if let Mask::CausalFrom(first) = self {
            if first.len() != batch * queries {
                candle_core::bail!("{} mask rows for {} queries", first.len(), batch * queries);
            }
            for (i, &f) in first.iter().enumerate() {
                if f as usize > keys - queries + i % queries {
                    candle_core::bail!("a query that sees no key: position {i} starts at {f}");
                }
            }
        }
        Ok(())
    }
}

/// softmax(scale q k^T) v; q [b, tq, h, d], k and v [b, tk, kv, d] with h a multiple of kv; returns [b, tq, h, d].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    let (b, tq, h, _) = q.dims4()?;
    let (_, tk, kv, _) = k.dims4()?;
    if k.dims() != v.dims() || !h.is_multiple_of(kv) || k.dims()[0] != b || k.dims()[3] != q.dims()[3] {
        candle_core::bail!("attention of q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    }
    mask.check(b, tq, tk)?;
    if is_fused(q) && is_fused(k) && is_fused(v) {
        let op = Attention { scale, mask: mask.clone() };
        return q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    #[cfg(feature = "flash-attn")]
    if is_flash(q, k, v, mask) {
        let causal = matches!(mask, Mask::Causal);
        return candle_flash_attn::flash_attn(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, scale, causal);
    }
    composed(q, k, v, scale, mask)
}

/// Whether flash attention computes this: half precision on a GPU, heads of 64 or 128, no gradient (it has none).
#[cfg(feature = "flash-attn")]
fn is_flash(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask) -> bool {
    let half = matches!(q.dtype(), candle_core::DType::F16 | candle_core::DType::BF16);
    let trained = q.track_op() || k.track_op() || v.track_op();
    let head = q.dims().last().is_some_and(|d| [64, 128].contains(d));
    half && head && !trained && q.device().is_cuda() && !matches!(mask, Mask::CausalFrom(_))
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    let (b, tq, h, d) = q.dims4()?;
    let (_, tk, kv, _) = k.dims4()?;
    let group = h / kv;
    // [b, kv, group * tq, d] against [b, kv, tk, d]
    let q =
        q.reshape((b, tq, kv, group, d))?.permute((0, 2, 3, 1, 4))?.contiguous()?.reshape((b, kv, group * tq, d))?;
    let (k, v) = (k.transpose(1, 2)?.contiguous()?, v.transpose(1, 2)?.contiguous()?);
    let scores = (q.matmul(&k.t()?)? * f64::from(scale))?;
    let hidden: Vec<f32> = (0..b)
        .flat_map(|i| (0..tq).map(move |j| (i, j)))
        .flat_map(|(i, j)| {
            let see = mask.keys(i, j, tq, tk);
            (0..tk).map(move |n| if see.contains(&n) { 0.0 } else { -1e9 })
        })
        .collect();
    let hidden = Tensor::from_vec(hidden, (b, 1, 1, tq, tk), q.device())?.to_dtype(q.dtype())?;
    let scores = scores.reshape((b, kv, group, tq, tk))?.broadcast_add(&hidden)?;
    let scores = if scores.dtype() == DType::F64 { scores } else { scores.to_dtype(DType::F32)? };
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(q.dtype())?;
    let out = p.reshape((b, kv, group * tq, tk))?.matmul(&v)?;
    out.reshape((b, kv, group, tq, d))?.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape((b, tq, h, d))
}

/// Queries that are worked on together.
const BLOCK: usize = 64;

pub(super) struct Attention {
    pub scale: f32,
    pub mask: Mask,
}

/// Sizes of one call.
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub b: usize,
    pub tq: usize,
    pub tk: usize,
    pub h: usize,
    pub kv: usize,
    pub d: usize,
}

impl Dims {
    fn new(q: &[usize], k: &[usize]) -> Self {
        Self { b: q[0], tq: q[1], h: q[2], d: q[3], tk: k[1], kv: k[2] }
    }
    /// Offset of (batch, token, head) among queries or keys.
    fn q(&self, b: usize, t: usize, h: usize) -> usize {
        ((b * self.tq + t) * self.h + h) * self.d
    }
    fn k(&self, b: usize, t: usize, h: usize) -> usize {
        ((b * self.tk + t) * self.kv + h) * self.d
    }
}

/// A strided matrix for the product below.
#[derive(Clone, Copy)]
struct Mat(*const f32, usize, usize);

/// dst [m, n] (row stride given) = or += alpha * a [m, k] b [k, n], on this thread.
///
/// # Safety
/// The pointers with their strides stay inside their allocations, and nobody else writes to dst.
unsafe fn mul(dims: (usize, usize, usize), dst: *mut f32, ld: usize, add: bool, a: Mat, b: Mat, alpha: f32) {
    let (m, n, k) = dims;
    // SAFETY: passed on.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            ld as isize,
            add,
            a.0,
            a.2 as isize,
            a.1 as isize,
            b.0,
            b.2 as isize,
            b.1 as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A pointer that tasks share; each writes to a part of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: every use below writes to ranges that belong to one (batch, head) only.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}
impl Shared {
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller keeps the offset inside the allocation.
        unsafe { self.0.add(offset) }
    }
}

impl Attention {
    /// Probabilities of a block of queries over the keys `see` (the union of what they see), row-major.
    fn probabilities(
        &self,
        n: Dims,
        b: usize,
        head: usize,
        rows: Range<usize>,
        q: &[f32],
        k: &[f32],
        p: &mut Vec<f32>,
    ) -> Range<usize> {
        let mut see = self.mask.keys(b, rows.start, n.tq, n.tk);
        for i in rows.clone() {
            let r = self.mask.keys(b, i, n.tq, n.tk);
            see = see.start.min(r.start)..see.end.max(r.end);
        }
        let (m, w) = (rows.len(), see.len());
        p.clear();
        p.resize(m * w, 0.0);
        let kv = head / (n.h / n.kv);
        // SAFETY: rows and keys are within the tensors, whose lengths the shapes give.
        unsafe {
            let a = Mat(q.as_ptr().add(n.q(b, rows.start, head)), n.h * n.d, 1);
            let bt = Mat(k.as_ptr().add(n.k(b, see.start, kv)), 1, n.kv * n.d);
            mul((m, w, n.d), p.as_mut_ptr(), w, false, a, bt, self.scale);
        }
        for (i, row) in rows.zip(p.chunks_exact_mut(w)) {
            let r = self.mask.keys(b, i, n.tq, n.tk);
            let (lo, hi) = (r.start - see.start, r.end - see.start);
            row[..lo].fill(0.0);
            row[hi..].fill(0.0);
            vector::softmax(&mut row[lo..hi]);
        }
        see
    }

    pub(super) fn forward(&self, n: Dims, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let mut out = vector::zeros(q.len());
        let dst = Shared(out.as_mut_ptr());
        (0..n.b * n.h).into_par_iter().for_each_init(Vec::new, |p, i| {
            let (b, head) = (i / n.h, i % n.h);
            let kv = head / (n.h / n.kv);
            for start in (0..n.tq).step_by(BLOCK) {
                let rows = start..(start + BLOCK).min(n.tq);
                let see = self.probabilities(n, b, head, rows.clone(), q, k, p);
                // SAFETY: this (batch, head) writes only to its own columns of the output.
                unsafe {
                    let vals = Mat(v.as_ptr().add(n.k(b, see.start, kv)), n.kv * n.d, 1);
                    let probs = Mat(p.as_ptr(), see.len(), 1);
                    let at = dst.at(n.q(b, start, head));
                    mul((rows.len(), n.d, see.len()), at, n.h * n.d, false, probs, vals, 1.0);
                }
            }
        });
        out
    }

    pub(super) fn backward(&self, n: Dims, q: &[f32], k: &[f32], v: &[f32], out: &[f32], g: &[f32]) -> [Vec<f32>; 3] {
        let (mut dq, mut dk, mut dv) = (vector::zeros(q.len()), vector::zeros(k.len()), vector::zeros(v.len()));
        let (pq, pk, pv) = (Shared(dq.as_mut_ptr()), Shared(dk.as_mut_ptr()), Shared(dv.as_mut_ptr()));
        let group = n.h / n.kv;
        (0..n.b * n.kv).into_par_iter().for_each_init(
            || (Vec::new(), Vec::new()),
            |(p, ds), i| {
                let (b, kv) = (i / n.kv, i % n.kv);
                for head in kv * group..(kv + 1) * group {
                    for start in (0..n.tq).step_by(BLOCK) {
                        let rows = start..(start + BLOCK).min(n.tq);
                        let see = self.probabilities(n, b, head, rows.clone(), q, k, p);
                        let (m, w) = (rows.len(), see.len());
                        ds.clear();
                        ds.resize(m * w, 0f32);
                        let (qo, ko) = (n.q(b, start, head), n.k(b, see.start, kv));
                        let (qs, ks) = (n.h * n.d, n.kv * n.d);
                        // SAFETY: queries of this head and keys of this group belong to this task alone.
                        unsafe {
                            let go = Mat(g.as_ptr().add(qo), qs, 1);
                            // ds = g v^T, then p * (ds - sum(g * out)) * scale
                            let vt = Mat(v.as_ptr().add(ko), 1, ks);
                            mul((m, w, n.d), ds.as_mut_ptr(), w, false, go, vt, 1.0);
                            mul((w, n.d, m), pv.at(ko), ks, true, Mat(p.as_ptr(), 1, w), go, 1.0);
                            for (r, (ds, p)) in ds.chunks_exact_mut(w).zip(p.chunks_exact(w)).enumerate() {
                                let o = qo + r * qs;
                                let delta = vector::dot(&g[o..o + n.d], &out[o..o + n.d]);
                                for (ds, p) in ds.iter_mut().zip(p) {
                                    *ds = p * (*ds - delta) * self.scale;
                                }
                            }
                            let keys = Mat(k.as_ptr().add(ko), ks, 1);
                            mul((m, n.d, w), pq.at(qo), qs, false, Mat(ds.as_ptr(), w, 1), keys, 1.0);
                            let queries = Mat(q.as_ptr().add(qo), qs, 1);
                            mul((w, n.d, m), pk.at(ko), ks, true, Mat(ds.as_ptr(), 1, w), queries, 1.0);
                        }
                    }
                }
            },
        );
        [dq, dk, dv]
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.forward(Dims::new(lq.dims(), lk.dims()), values(q, lq)?, values(k, lk)?, values(v, lv)?);
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }
    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let n = Dims::new(q.dims(), k.dims());
        let [dq, dk, dv] =
            with_values([q, k, v, out, &g.contiguous()?], |[q, k, v, out, g]| self.backward(n, q, k, v, out, g))?;
        let dev = q.device();
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), dev)?),
            Some(Tensor::from_vec(dk, k.shape(), dev)?),
            Some(Tensor::from_vec(dv, v.shape(), dev)?),
        ))
    }
}
