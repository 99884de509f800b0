//! Attention over a paged cache: each query sees all keys of its sequence up to itself. Flash attention's running maximum and
//! sum (Dao et al. 2022, algorithm 1), page by page in the order of the tokens, so that a query's result does not depend on
//! the queries beside it.
//!
//! A page holds, for each head of keys, the keys turned over, [head_dim][64], and the values, [64][head_dim]: scores of 64
//! keys are sums over head_dim of vectors without a sum across a vector, for one query or for several.
#![allow(unsafe_code)]

use super::{pool, vector};
use std::ops::Range;

/// Tokens of a page.
pub const PAGE: usize = 64;

/// Queries that go over a page together.
const QUERIES: usize = 4;

/// Most width of a head that the kernel keeps on its stack.
pub const MAX_HEAD: usize = 256;

/// Sizes of a layer's part of a page.
#[derive(Debug, Clone, Copy)]
pub struct PageShape {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl PageShape {
    /// Values of one layer in a page.
    pub fn layer_len(self) -> usize {
        2 * self.kv_heads * self.head_dim * PAGE
    }
}

/// A sequence of a batch.
pub struct Sequence<'a> {
    /// The layer's part of each of its pages.
    pub pages: Vec<&'a [f32]>,
    /// Tokens before the new ones.
    pub before: usize,
    /// Rows of the new tokens among the queries.
    pub rows: Range<usize>,
}

/// Puts a token's keys and values [kv_heads, head_dim] at place `at` of a page.
pub fn write_token(shape: PageShape, page: &mut [f32], at: usize, k: &[f32], v: &[f32]) {
    let d = shape.head_dim;
    let (keys, values) = page.split_at_mut(shape.kv_heads * d * PAGE);
    for head in 0..shape.kv_heads {
        for i in 0..d {
            keys[(head * d + i) * PAGE + at] = k[head * d + i];
        }
        values[(head * PAGE + at) * d..][..d].copy_from_slice(&v[head * d..(head + 1) * d]);
    }
}

#[derive(Clone, Copy)]
struct Out(*mut f32);
// SAFETY: every task writes to queries of its own.
unsafe impl Send for Out {}
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// The place lies within the allocation.
    unsafe fn at(self, place: usize) -> *mut f32 {
        // SAFETY: passed on.
        unsafe { self.0.add(place) }
    }
}

/// q [tokens, heads, head_dim] of all sequences, one after the other, to the same shape.
pub fn attend_pages(shape: PageShape, heads: usize, sequences: &[Sequence], q: &[f32], scale: f32) -> Vec<f32> {
    let (d, kv) = (shape.head_dim, shape.kv_heads);
    assert!(d <= MAX_HEAD && heads.is_multiple_of(kv), "attention heads of {d} values at most {MAX_HEAD}");
    for s in sequences {
        let pages = (s.before + s.rows.len()).div_ceil(PAGE);
        assert!(s.rows.end * heads * d <= q.len() && s.pages.len() >= pages, "attention rows");
        assert!(s.pages.iter().all(|p| p.len() == shape.layer_len()), "attention pages");
    }
    let mut out = vec![0f32; q.len()];
    let dst = Out(out.as_mut_ptr());
    let group = heads / kv;
    // a task: a head of keys of a sequence, and some of its queries
    let per_task = (64 / group).max(1);
    let mut tasks = Vec::new();
    for s in sequences {
        for head in 0..kv {
            for first in s.rows.clone().step_by(per_task) {
                tasks.push((s, head, first..(first + per_task).min(s.rows.end)));
            }
        }
    }
    let work: usize = sequences.iter().map(|s| s.rows.len() * (s.before + s.rows.len()) * heads * d).sum();
    let one = |n: usize| {
        let (s, head, rows) = &tasks[n];
        // (row, head) pairs that share these keys, QUERIES at a time
        let all: Vec<(usize, usize)> =
            rows.clone().flat_map(|r| (0..group).map(move |g| (r, head * group + g))).collect();
        for part in all.chunks(QUERIES) {
            let (q0, n) = ([[0f32; MAX_HEAD]; QUERIES], part.len());
            let mut over = Over { shape, head: *head, pages: &s.pages, q: q0, n, see: [0; QUERIES] };
            for (i, &(row, head)) in part.iter().enumerate() {
                let from = (row * heads + head) * d;
                for j in 0..d {
                    over.q[i][j] = q[from + j] * scale;
                }
                over.see[i] = s.before + row - s.rows.start + 1;
            }
            let mut sums = [[0f32; MAX_HEAD]; QUERIES];
            over_pages(&over, &mut sums);
            for (i, &(row, head)) in part.iter().enumerate() {
                // SAFETY: the assertions bound the row; no other task has it.
                unsafe {
                    let to = dst.at((row * heads + head) * d);
                    std::ptr::copy_nonoverlapping(sums[i].as_ptr(), to, d);
                }
            }
        }
    };
    // a few microseconds of work are not worth waking anybody
    if work < 1 << 15 {
        (0..tasks.len()).for_each(one);
    } else {
        pool::run(tasks.len(), one);
    }
    out
}

type Rows = [[f32; MAX_HEAD]; QUERIES];

/// Up to QUERIES queries of heads that share keys.
struct Over<'a> {
    shape: PageShape,
    /// The head of keys.
    head: usize,
    pages: &'a [&'a [f32]],
    /// Queries, scaled, and how many there are.
    q: Rows,
    n: usize,
    /// Keys that each sees.
    see: [usize; QUERIES],
}

fn over_pages(over: &Over, out: &mut Rows) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: each is called where the processor has its instructions.
        match super::rows::kernels().name {
            "avx512" => return unsafe { over_pages_avx512(over, out) },
            "avx2" => return unsafe { over_pages_avx2(over, out) },
            _ => {}
        }
    }
    pages_of::<false>(over, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn over_pages_avx512(over: &Over, out: &mut Rows) {
    pages_of::<true>(over, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn over_pages_avx2(over: &Over, out: &mut Rows) {
    pages_of::<true>(over, out);
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn pages_of<const FMA: bool>(over: &Over, out: &mut Rows) {
    match over.n {
        1 => some::<FMA, 1>(over, out),
        2 => some::<FMA, 2>(over, out),
        3 => some::<FMA, 3>(over, out),
        _ => some::<FMA, 4>(over, out),
    }
}

/// Values of a head that one pass over the page's probabilities sums up.
const STRIP: usize = 64;

#[inline(always)]
fn some<const FMA: bool, const N: usize>(over: &Over, out: &mut Rows) {
    let Over { shape, head, pages, q, see, .. } = over;
    let d = shape.head_dim;
    let mut top = [f32::NEG_INFINITY; N];
    let mut total = [0f32; N];
    let last = see[..N].iter().copied().max().unwrap_or(0);
    for (p, page) in pages.iter().enumerate().take(last.div_ceil(PAGE)) {
        let keys = &page[head * d * PAGE..(head + 1) * d * PAGE];
        let values = &page[(shape.kv_heads + head) * d * PAGE..][..d * PAGE];
        let mut scores = [[0f32; PAGE]; N];
        for (i, keys) in keys.chunks_exact(PAGE).enumerate() {
            for n in 0..N {
                let q = q[n][i];
                for j in 0..PAGE {
                    scores[n][j] = multiply_add::<FMA>(q, keys[j], scores[n][j]);
                }
            }
        }
        let mut seen = 0;
        for n in 0..N {
            let count = see[n].saturating_sub(p * PAGE).min(PAGE);
            seen = seen.max(count);
            if count == 0 {
                scores[n] = [0.0; PAGE];
                continue;
            }
            for j in count..PAGE {
                scores[n][j] = f32::NEG_INFINITY;
            }
            let new = vector::max(&scores[n]);
            let new = if new > top[n] { new } else { top[n] };
            // where every score is minus infinity or none is a number, the sum shows it
            let shrink = if top[n] == f32::NEG_INFINITY { 0.0 } else { vector::exp(top[n] - new) };
            for j in 0..PAGE {
                scores[n][j] = vector::exp(scores[n][j] - new);
            }
            for j in count..PAGE {
                scores[n][j] = 0.0;
            }
            total[n] = total[n] * shrink + vector::sum(&scores[n]);
            top[n] = new;
            if p > 0 {
                out[n][..d].iter_mut().for_each(|v| *v *= shrink);
            }
        }
        let mut from = 0;
        while from < d {
            let width = STRIP.min(d - from);
            if width == STRIP {
                let mut acc = [[0f32; STRIP]; N];
                for n in 0..N {
                    acc[n].copy_from_slice(&out[n][from..from + STRIP]);
                }
                for j in 0..seen {
                    let row: &[f32; STRIP] = values[j * d + from..][..STRIP].try_into().unwrap_or(&[0.0; STRIP]);
                    for n in 0..N {
                        let w = scores[n][j];
                        for i in 0..STRIP {
                            acc[n][i] = multiply_add::<FMA>(w, row[i], acc[n][i]);
                        }
                    }
                }
                for n in 0..N {
                    out[n][from..from + STRIP].copy_from_slice(&acc[n]);
                }
            } else {
                for j in 0..seen {
                    let row = &values[j * d + from..][..width];
                    for n in 0..N {
                        let w = scores[n][j];
                        for (o, v) in out[n][from..from + width].iter_mut().zip(row) {
                            *o = multiply_add::<FMA>(w, *v, *o);
                        }
                    }
                }
            }
            from += width;
        }
    }
    for n in 0..N {
        let inv = 1.0 / total[n];
        out[n][..d].iter_mut().for_each(|v| *v *= inv);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, key: u64) -> Vec<f32> {
        (0..n as u64).map(|i| (crate::rng::mix(i ^ key << 32) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// Sequences of different lengths against softmax(scale q k^T) v in float64, for odd and even head widths.
    #[test]
    fn ragged_attention_is_the_formula() {
        for (heads, kv, d) in [(4, 2, 16), (6, 2, 64), (3, 3, 72), (8, 1, 128)] {
            let shape = PageShape { kv_heads: kv, head_dim: d };
            let cases = [(0usize, 5usize), (63, 2), (130, 1), (0, 70), (64, 64)];
            let mut at = 0;
            let mut rows = Vec::new();
            for &(_, new) in &cases {
                rows.push(at..at + new);
                at += new;
            }
            let q = random(at * heads * d, 5);
            let mut stores = Vec::new();
            let mut raw = Vec::new();
            for (c, &(before, new)) in cases.iter().enumerate() {
                let n = before + new;
                let (k, v) = (random(n * kv * d, 10 + c as u64), random(n * kv * d, 20 + c as u64));
                let mut pages = vec![vec![f32::NAN; shape.layer_len()]; n.div_ceil(PAGE)];
                // what no token has written to is zero, as in a cache
                pages.iter_mut().for_each(|p| p.fill(0.0));
                for t in 0..n {
                    let at = t * kv * d..(t + 1) * kv * d;
                    write_token(shape, &mut pages[t / PAGE], t % PAGE, &k[at.clone()], &v[at]);
                }
                stores.push(pages);
                raw.push((k, v));
            }
            let sequences: Vec<Sequence> = cases
                .iter()
                .zip(&rows)
                .zip(&stores)
                .map(|((&(before, _), rows), pages)| Sequence {
                    pages: pages.iter().map(Vec::as_slice).collect(),
                    before,
                    rows: rows.clone(),
                })
                .collect();
            let scale = (d as f32).powf(-0.5);
            let got = attend_pages(shape, heads, &sequences, &q, scale);
            for (c, s) in sequences.iter().enumerate() {
                let (k, v) = &raw[c];
                for (i, row) in s.rows.clone().enumerate() {
                    for h in 0..heads {
                        let g = h / (heads / kv);
                        let query = &q[(row * heads + h) * d..][..d];
                        let scores: Vec<f64> = (0..s.before + i + 1)
                            .map(|t| {
                                let key = &k[(t * kv + g) * d..][..d];
                                query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                                    * f64::from(scale)
                            })
                            .collect();
                        let top = scores.iter().copied().fold(f64::MIN, f64::max);
                        let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                        for j in 0..d {
                            let want: f64 = scores
                                .iter()
                                .enumerate()
                                .map(|(t, s)| (s - top).exp() / total * f64::from(v[(t * kv + g) * d + j]))
                                .sum();
                            let y = f64::from(got[(row * heads + h) * d + j]);
                            assert!((y - want).abs() < 2e-6, "{heads} {kv} {d}, case {c}, row {i}: {y} for {want}");
                        }
                    }
                }
            }
            // a query alone has the same bits as among others
            let s = &sequences[4];
            let one = Sequence { pages: s.pages.clone(), before: s.before + 9, rows: 0..1 };
            let row = s.rows.start + 9;
            let part = row * heads * d..(row + 1) * heads * d;
            assert_eq!(attend_pages(shape, heads, &[one], &q[part.clone()], scale), got[part]);
        }
    }
}
