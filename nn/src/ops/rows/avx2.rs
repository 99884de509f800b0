//! Products of rows on AVX2 with FMA and F16C: eight float columns, or four byte columns of eight rows, an instruction.

use super::WeightType;
use super::inputs::Tile;
use super::layout::places;
use std::arch::x86_64::*;

/// Most rows of inputs that [`blocks`] takes at once.
pub const TILE: usize = 4;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load<const T: u8>(p: *const u8) -> __m256 {
    // SAFETY: the caller has eight values at p.
    unsafe {
        if T == WeightType::F32 as u8 {
            _mm256_loadu_ps(p.cast())
        } else if T == WeightType::Bf16 as u8 {
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), 16))
        } else {
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn total(v: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)))
}

super::float::float_products!(
    "avx2,fma,f16c", 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_fmadd_ps, total,
    { 1 => 1, 2 | 4 => 2, _ => 3 }
);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves_to_floats(p: *const u8) -> __m256 {
    // SAFETY: eight float16 lie there.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bytes_to_floats<const SIGNED: bool>(p: *const u8) -> __m256 {
    // SAFETY: eight bytes lie there.
    let b = unsafe { _mm_loadl_epi64(p.cast()) };
    _mm256_cvtepi32_ps(if SIGNED { _mm256_cvtepi8_epi32(b) } else { _mm256_cvtepu8_epi32(b) })
}

/// Sums of four products a lane, of unsigned bytes and signed ones; neighbours must not exceed 16 bits together.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot(sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(unsigned, signed);
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// H times eight rows of a group, from row 8 h0 on.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group<const T: u8, const M: usize, const H: usize>(
    w: *const u8,
    h0: usize,
    k: usize,
    t: &Tile,
    out: *mut f32,
) {
    let mut acc = [[_mm256_setzero_ps(); M]; H];
    let (q, d) = (t.q.as_ptr(), t.d.as_ptr());
    let nibble = _mm256_set1_epi8(15);
    // SAFETY: the caller has a whole group of k columns at w, a tile of M rows and k columns, and a place for M x 16 sums.
    unsafe {
        let four = |at: usize| _mm256_set1_epi32(q.cast::<i32>().add(at).read_unaligned());
        let finish = |acc: &mut [__m256; M], s: [__m256i; M], scale: __m256, b: usize| {
            for i in 0..M {
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(*d.add(b * M + i)));
                acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i]), scale, acc[i]);
            }
        };
        if T == WeightType::Q8_0 as u8 {
            let middle = _mm256_set1_epi8(-128);
            for b in 0..k / 32 {
                let (scales, quants) = places(WeightType::Q8_0, k, b);
                let p = w.add(quants);
                for line in 0..8 {
                    _mm_prefetch(p.wrapping_add(1024 + line * 64).cast(), _MM_HINT_T0);
                }
                for h in 0..H {
                    let at = (h0 + h) * 8;
                    let mut s = [_mm256_setzero_si256(); M];
                    for c in 0..8 {
                        let v = _mm256_xor_si256(_mm256_loadu_si256(p.add(c * 64 + at * 4).cast()), middle);
                        let size = _mm256_abs_epi8(v);
                        for i in 0..M {
                            s[i] = dot(s[i], size, _mm256_sign_epi8(four((b * 8 + c) * M + i), v));
                        }
                    }
                    finish(&mut acc[h], s, halves_to_floats(w.add(scales + at * 2)), b);
                }
            }
        } else if T == WeightType::Q4K as u8 {
            for b in 0..k / 32 {
                let (head, quants) = places(WeightType::Q4K, k, b);
                let (head, p) = (w.add(head), w.add(quants));
                for line in 0..4 {
                    _mm_prefetch(p.wrapping_add(1024 + line * 64).cast(), _MM_HINT_T0);
                }
                for h in 0..H {
                    let at = (h0 + h) * 8;
                    let mut s = [_mm256_setzero_si256(); M];
                    for c in 0..4 {
                        let v = _mm256_loadu_si256(p.add(c * 64 + at * 4).cast());
                        let low = _mm256_and_si256(v, nibble);
                        let high = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
                        for i in 0..M {
                            // both stay far below 16 bits: 15 x 127 x 4
                            let pairs = _mm256_add_epi16(
                                _mm256_maddubs_epi16(low, four((b * 8 + c * 2) * M + i)),
                                _mm256_maddubs_epi16(high, four((b * 8 + c * 2 + 1) * M + i)),
                            );
                            s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                        }
                    }
                    let scale = _mm256_mul_ps(
                        halves_to_floats(head.add(at * 2)),
                        bytes_to_floats::<false>(head.add(64 + b % 8 * 16 + at)),
                    );
                    let min = _mm256_mul_ps(
                        halves_to_floats(head.add(32 + at * 2)),
                        bytes_to_floats::<false>(head.add(192 + b % 8 * 16 + at)),
                    );
                    finish(&mut acc[h], s, scale, b);
                    for i in 0..M {
                        acc[h][i] = _mm256_fnmadd_ps(min, _mm256_set1_ps(*t.sum.as_ptr().add(b * M + i)), acc[h][i]);
                    }
                }
            }
        } else {
            let two = _mm256_set1_epi8(0x30);
            for b in 0..k / 32 {
                let (head, quants) = places(WeightType::Q6K, k, b);
                let (head, p) = (w.add(head), w.add(quants));
                for line in 0..6 {
                    _mm_prefetch(p.wrapping_add(1024 + line * 64).cast(), _MM_HINT_T0);
                }
                for h in 0..H {
                    let at = (h0 + h) * 8;
                    for half in 0..2 {
                        let bits = _mm256_loadu_si256(p.add(256 + half * 64 + at * 4).cast());
                        let mut s = [_mm256_setzero_si256(); M];
                        for i in 0..M {
                            s[i] = _mm256_set1_epi32(*t.halves.as_ptr().add((b * 2 + half) * M + i));
                        }
                        for c in 0..2 {
                            let v = _mm256_loadu_si256(p.add((half * 2 + c) * 64 + at * 4).cast());
                            let (b0, b1) = if c == 0 {
                                (_mm256_slli_epi16(bits, 4), _mm256_slli_epi16(bits, 2))
                            } else {
                                (bits, _mm256_srli_epi16(bits, 2))
                            };
                            let low = _mm256_or_si256(_mm256_and_si256(v, nibble), _mm256_and_si256(b0, two));
                            let high = _mm256_or_si256(
                                _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble),
                                _mm256_and_si256(b1, two),
                            );
                            let place = b * 8 + half * 4 + c * 2;
                            for i in 0..M {
                                s[i] = dot(s[i], low, four(place * M + i));
                                s[i] = dot(s[i], high, four((place + 1) * M + i));
                            }
                        }
                        let scale = _mm256_mul_ps(
                            halves_to_floats(head.add(at * 2)),
                            bytes_to_floats::<true>(head.add(32 + (b % 8 * 2 + half) * 16 + at)),
                        );
                        finish(&mut acc[h], s, scale, b);
                    }
                }
            }
        }
        for h in 0..H {
            for i in 0..M {
                _mm256_storeu_ps(out.add(i * 16 + (h0 + h) * 8), acc[h][i]);
            }
        }
    }
}

/// See [`super::Kernels::blocks`].
pub unsafe fn blocks(ty: WeightType, w: *const u8, k: usize, t: &Tile, out: *mut f32) {
    macro_rules! each {
        ($t:expr) => {
            match t.m {
                1 => group::<{ $t as u8 }, 1, 2>(w, 0, k, t, out),
                2 => group::<{ $t as u8 }, 2, 2>(w, 0, k, t, out),
                3 => (0..2).for_each(|h| group::<{ $t as u8 }, 3, 1>(w, h, k, t, out)),
                4 => (0..2).for_each(|h| group::<{ $t as u8 }, 4, 1>(w, h, k, t, out)),
                m => unreachable!("a tile of {m} rows"),
            }
        };
    }
    // SAFETY: this level is only chosen on processors that have the instructions; the rest is passed on.
    unsafe {
        match ty {
            WeightType::Q8_0 => each!(WeightType::Q8_0),
            WeightType::Q4K => each!(WeightType::Q4K),
            _ => each!(WeightType::Q6K),
        }
    }
}
