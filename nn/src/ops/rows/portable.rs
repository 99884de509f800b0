//! Products of rows in plain Rust, for processors without the instructions of the other files, and to test those against.

use super::WeightType;
use super::inputs::Tile;
use super::layout::{GROUP, places};
use half::f16;

/// Most rows of inputs that [`blocks`] takes at once.
pub const TILE: usize = 4;

/// One value of a float weight.
#[inline(always)]
pub unsafe fn value(ty: u8, p: *const u8) -> f32 {
    // SAFETY: the caller has a value of this type there.
    unsafe {
        if ty == WeightType::F32 as u8 {
            p.cast::<f32>().read_unaligned()
        } else if ty == WeightType::Bf16 as u8 {
            f32::from_bits(u32::from(p.cast::<u16>().read_unaligned()) << 16)
        } else {
            f16::from_bits(p.cast::<u16>().read_unaligned()).to_f32()
        }
    }
}

/// See [`super::Kernels::float`].
pub unsafe fn float_rows(ty: WeightType, w: *const u8, rows: usize, x: *const f32, m: usize, k: usize, out: *mut f32) {
    let size = if ty == WeightType::F32 { 4 } else { 2 };
    // SAFETY: the caller has `rows` rows of k values at w, m rows at x and a place for m rows of four sums at out.
    unsafe {
        let mut row = vec![0f32; k];
        for r in 0..rows {
            for (c, v) in row.iter_mut().enumerate() {
                *v = value(ty as u8, w.add((r * k + c) * size));
            }
            for i in 0..m {
                let x = std::slice::from_raw_parts(x.add(i * k), k);
                *out.add(i * 4 + r) = super::super::vector::dot(x, &row);
            }
        }
    }
}

/// See [`super::Kernels::blocks`].
pub unsafe fn blocks(ty: WeightType, w: *const u8, k: usize, t: &Tile, out: *mut f32) {
    // SAFETY: the caller has a whole group there, and a place for m x 16 sums.
    let (w, out) =
        unsafe { (std::slice::from_raw_parts(w, ty.unit_bytes(k)), std::slice::from_raw_parts_mut(out, t.m * GROUP)) };
    out.fill(0.0);
    let half = |at: usize| f16::from_le_bytes([w[at], w[at + 1]]).to_f32();
    for b in 0..k / 32 {
        let (head, quants) = places(ty, k, b);
        for i in 0..t.m {
            let q = |c: usize| -> &[i8] { &t.q[((b * 8 + c) * t.m + i) * 4..][..4] };
            let d = t.d[b * t.m + i];
            for r in 0..GROUP {
                let y = &mut out[i * GROUP + r];
                match ty {
                    WeightType::Q8_0 => {
                        let quants = quants + r * 4;
                        let mut s = t.offset[b * t.m + i];
                        for c in 0..8 {
                            for (j, &x) in q(c).iter().enumerate() {
                                s += i32::from(w[quants + c * 64 + j]) * i32::from(x);
                            }
                        }
                        *y += s as f32 * (half(head + r * 2) * d);
                    }
                    WeightType::Q4K => {
                        let quants = quants + r * 4;
                        let mut s = 0;
                        for c in 0..8 {
                            for (j, &x) in q(c).iter().enumerate() {
                                let v = w[quants + c / 2 * 64 + j] >> (c % 2 * 4) & 15;
                                s += i32::from(v) * i32::from(x);
                            }
                        }
                        let scale = half(head + r * 2) * f32::from(w[head + 64 + b % 8 * GROUP + r]);
                        let min = half(head + 32 + r * 2) * f32::from(w[head + 192 + b % 8 * GROUP + r]);
                        *y += s as f32 * (scale * d) - min * t.sum[b * t.m + i];
                    }
                    _ => {
                        let quants = quants + r * 4;
                        for h in 0..2 {
                            let mut s = t.halves[(b * 2 + h) * t.m + i];
                            for c in h * 4..h * 4 + 4 {
                                for (j, &x) in q(c).iter().enumerate() {
                                    let low = w[quants + c / 2 * 64 + j] >> (c % 2 * 4) & 15;
                                    let high = w[quants + 256 + c / 4 * 64 + j] >> (c % 4 * 2) & 3;
                                    s += i32::from(low | high << 4) * i32::from(x);
                                }
                            }
                            let scale = f32::from(w[head + 32 + (b % 8 * 2 + h) * GROUP + r] as i8);
                            *y += s as f32 * (half(head + r * 2) * scale * d);
                        }
                    }
                }
            }
        }
    }
}
