//! Reductions and functions over slices in a form the compiler turns into vector instructions.

use rayon::prelude::*;
use std::mem::MaybeUninit;

const LANES: usize = 16;

/// Values that one thread sets to zero at a time.
const ZEROS: usize = 1 << 16;

/// A result's memory, zero. Memory that was used before has to be set, and one thread doing that for all was a sixth of the
/// wall time of a tokenizer's update (docs/decisions.md).
#[allow(unsafe_code)]
pub fn zeros(n: usize) -> Vec<f32> {
    if n < 4 * ZEROS {
        return vec![0f32; n];
    }
    let mut values = Vec::with_capacity(n);
    values.spare_capacity_mut()[..n].par_chunks_mut(ZEROS).for_each(|part| part.fill(MaybeUninit::new(0f32)));
    // SAFETY: the first n values were written above
    unsafe { values.set_len(n) };
    values
}

/// Sum of f(a_i, b_i).
#[inline(always)]
fn reduce2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut acc = [0f32; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = ca.remainder().iter().zip(cb.remainder()).map(|(&x, &y)| f(x, y)).sum();
    for (x, y) in ca.zip(cb) {
        for i in 0..LANES {
            acc[i] += f(x[i], y[i]);
        }
    }
    acc.iter().sum::<f32>() + tail
}

/// Dot product.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    reduce2(a, b, |x, y| x * y)
}

/// Sum.
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    reduce2(a, a, |x, _| x)
}

/// Sum of a (b - c).
#[inline(always)]
pub fn dot_dev(a: &[f32], b: &[f32], c: f32) -> f32 {
    reduce2(a, b, |x, y| x * (y - c))
}

/// Sum of squared distances to `c`.
#[inline(always)]
pub fn sum_sq_dev(a: &[f32], c: f32) -> f32 {
    reduce2(a, a, |x, _| (x - c) * (x - c))
}

/// Largest value, -inf for an empty slice.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut acc = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in chunks {
        for i in 0..LANES {
            acc[i] = if x[i] > acc[i] { x[i] } else { acc[i] };
        }
    }
    acc.iter().copied().fold(tail, f32::max)
}

/// e^x to about 1e-7 relative (Cephes polynomial); below -87 it is about 1e-38, above 88 it saturates.
#[inline(always)]
#[allow(clippy::excessive_precision, unsafe_code)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = (x - n * 0.693_359_375) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_15e-4;
    p = p * r + 1.398_199_950_7e-3;
    p = p * r + 8.333_451_907_3e-3;
    p = p * r + 4.166_579_589_4e-2;
    p = p * r + 1.666_666_545_9e-1;
    p = p * r + 5.000_000_120_1e-1;
    let y = p * r * r + r + 1.0;
    // SAFETY: n is finite and within [-126, 127] after the clamp; a NaN x has become NaN here, and the clamp keeps it,
    // so the conversion is guarded below.
    let n = if n.is_nan() { 0.0 } else { n };
    let i: i32 = unsafe { n.to_int_unchecked() };
    y * f32::from_bits(((i + 127) << 23) as u32)
}

/// e^((logit - top) / temperature) of each logit: what a softmax divides by their sum.
pub fn softmax_weights(logits: &[f32], top: f32, temperature: f32, out: &mut Vec<f32>) {
    out.clear();
    out.extend(logits.iter().map(|&l| {
        let x = (l - top) / temperature;
        // what is beyond the function's range is never drawn
        if x > -87.0 { exp(x) } else { 0.0 }
    }));
}

/// Softmax of one row, in place.
#[inline(always)]
pub fn softmax(row: &mut [f32]) {
    let m = max(row);
    for v in row.iter_mut() {
        *v = exp(*v - m);
    }
    let inv = 1.0 / sum(row);
    for v in row.iter_mut() {
        *v *= inv;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library() {
        let worst = (-8600..8700)
            .map(|i| {
                let x = i as f32 / 100.0;
                ((f64::from(exp(x)) - f64::from(x).exp()) / f64::from(x).exp()).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "{worst}");
        assert!(exp(f32::NAN).is_nan());
    }
}
