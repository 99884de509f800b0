//! Products of rows on AVX-512 with VNNI: sixteen float columns, or four byte columns of sixteen rows, an instruction.

use super::WeightType;
use super::inputs::Tile;
use std::arch::x86_64::*;

/// Most rows of inputs that [`blocks`] takes at once.
pub const TILE: usize = 12;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load<const T: u8>(p: *const u8) -> __m512 {
    // SAFETY: the caller has sixteen values at p.
    unsafe {
        if T == WeightType::F32 as u8 {
            _mm512_loadu_ps(p.cast())
        } else if T == WeightType::Bf16 as u8 {
            let words = _mm256_loadu_si256(p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16))
        } else {
            _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
        }
    }
}

super::float::float_products!(
    "avx512f,avx512bw,avx512vl", 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps,
    { 1 => 1, 2 => 2, 3 => 3, 4 | 7 | 8 => 4, 5 => 5, _ => 6 }
);

/// Four bytes of the inputs in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn four(q: *const i8, at: usize) -> __m512i {
    // SAFETY: the tile has a chunk there.
    unsafe { _mm512_set1_epi32(q.cast::<i32>().add(at).read_unaligned()) }
}

/// Bytes that a group's stream is read ahead.
const AHEAD: usize = 2048;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn ahead(p: *const u8, lines: usize) {
    for i in 0..lines {
        _mm_prefetch(p.wrapping_add(AHEAD + i * 64).cast(), _MM_HINT_T0);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn halves_to_floats(p: *const u8) -> __m512 {
    // SAFETY: sixteen float16 lie there.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn bytes_to_floats<const SIGNED: bool>(p: *const u8) -> __m512 {
    // SAFETY: sixteen bytes lie there.
    let b = unsafe { _mm_loadu_si128(p.cast()) };
    _mm512_cvtepi32_ps(if SIGNED { _mm512_cvtepi8_epi32(b) } else { _mm512_cvtepu8_epi32(b) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn group<const T: u8, const M: usize>(w: *const u8, k: usize, t: &Tile, out: *mut f32) {
    let mut acc = [_mm512_setzero_ps(); M];
    let (q, d) = (t.q.as_ptr(), t.d.as_ptr());
    let nibble = _mm512_set1_epi8(15);
    // SAFETY: the caller has a whole group of k columns at w, a tile of M rows and k columns, and a place for M x 16 sums.
    unsafe {
        // a run: up to eight blocks behind their scales, one stream of bytes
        let mut run = w;
        let mut b = 0;
        while b < k / 32 {
            let blocks = (k / 32 - b).min(8);
            let (head, size, block) = match T {
                t if t == WeightType::Q8_0 as u8 => (32 * blocks, 544 * blocks, 512),
                t if t == WeightType::Q4K as u8 => (320, 2368, 256),
                _ => (320, 3392, 384),
            };
            let (d0, dmin) = if T == WeightType::Q8_0 as u8 {
                (_mm512_setzero_ps(), _mm512_setzero_ps())
            } else {
                (halves_to_floats(run), halves_to_floats(run.add(32)))
            };
            ahead(run, head.div_ceil(64));
            for i in 0..blocks {
                let p = run.add(head + i * block);
                ahead(p, block / 64);
                let at = b + i;
                if T == WeightType::Q8_0 as u8 {
                    let scale = halves_to_floats(run.add(i * 32));
                    let mut s = [_mm512_setzero_si512(); M];
                    for j in 0..M {
                        s[j] = _mm512_set1_epi32(*t.offset.as_ptr().add(at * M + j));
                    }
                    for c in 0..8 {
                        let v = _mm512_loadu_si512(p.add(c * 64).cast());
                        for j in 0..M {
                            s[j] = _mm512_dpbusd_epi32(s[j], v, four(q, (at * 8 + c) * M + j));
                        }
                    }
                    for j in 0..M {
                        let scale = _mm512_mul_ps(scale, _mm512_set1_ps(*d.add(at * M + j)));
                        acc[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[j]), scale, acc[j]);
                    }
                } else if T == WeightType::Q4K as u8 {
                    let scale = _mm512_mul_ps(d0, bytes_to_floats::<false>(run.add(64 + i * 16)));
                    let min = _mm512_mul_ps(dmin, bytes_to_floats::<false>(run.add(192 + i * 16)));
                    let mut s = [_mm512_setzero_si512(); M];
                    for c in 0..4 {
                        let v = _mm512_loadu_si512(p.add(c * 64).cast());
                        let low = _mm512_and_si512(v, nibble);
                        let high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
                        for j in 0..M {
                            s[j] = _mm512_dpbusd_epi32(s[j], low, four(q, (at * 8 + c * 2) * M + j));
                            s[j] = _mm512_dpbusd_epi32(s[j], high, four(q, (at * 8 + c * 2 + 1) * M + j));
                        }
                    }
                    for j in 0..M {
                        let scale = _mm512_mul_ps(scale, _mm512_set1_ps(*d.add(at * M + j)));
                        acc[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[j]), scale, acc[j]);
                        acc[j] = _mm512_fnmadd_ps(min, _mm512_set1_ps(*t.sum.as_ptr().add(at * M + j)), acc[j]);
                    }
                } else {
                    let two = _mm512_set1_epi8(0x30);
                    for h in 0..2 {
                        let scale = _mm512_mul_ps(d0, bytes_to_floats::<true>(run.add(32 + (i * 2 + h) * 16)));
                        let bits = _mm512_loadu_si512(p.add(256 + h * 64).cast());
                        let mut s = [_mm512_setzero_si512(); M];
                        for j in 0..M {
                            s[j] = _mm512_set1_epi32(*t.halves.as_ptr().add((at * 2 + h) * M + j));
                        }
                        for c in 0..2 {
                            let v = _mm512_loadu_si512(p.add((h * 2 + c) * 64).cast());
                            // the chunk's two bits, moved above its nibble
                            let (b0, b1) = if c == 0 {
                                (_mm512_slli_epi16(bits, 4), _mm512_slli_epi16(bits, 2))
                            } else {
                                (bits, _mm512_srli_epi16(bits, 2))
                            };
                            let low = _mm512_or_si512(_mm512_and_si512(v, nibble), _mm512_and_si512(b0, two));
                            let high = _mm512_or_si512(
                                _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble),
                                _mm512_and_si512(b1, two),
                            );
                            for j in 0..M {
                                let place = at * 8 + h * 4 + c * 2;
                                s[j] = _mm512_dpbusd_epi32(s[j], low, four(q, place * M + j));
                                s[j] = _mm512_dpbusd_epi32(s[j], high, four(q, (place + 1) * M + j));
                            }
                        }
                        for j in 0..M {
                            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(*d.add(at * M + j)));
                            acc[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[j]), scale, acc[j]);
                        }
                    }
                }
            }
            run = run.add(size);
            b += blocks;
        }
        for i in 0..M {
            _mm512_storeu_ps(out.add(i * 16), acc[i]);
        }
    }
}

/// See [`super::Kernels::blocks`].
pub unsafe fn blocks(ty: WeightType, w: *const u8, k: usize, t: &Tile, out: *mut f32) {
    macro_rules! each {
        ($t:expr) => {
            match t.m {
                1 => group::<{ $t as u8 }, 1>(w, k, t, out),
                2 => group::<{ $t as u8 }, 2>(w, k, t, out),
                3 => group::<{ $t as u8 }, 3>(w, k, t, out),
                4 => group::<{ $t as u8 }, 4>(w, k, t, out),
                5 => group::<{ $t as u8 }, 5>(w, k, t, out),
                6 => group::<{ $t as u8 }, 6>(w, k, t, out),
                7 => group::<{ $t as u8 }, 7>(w, k, t, out),
                8 => group::<{ $t as u8 }, 8>(w, k, t, out),
                9 => group::<{ $t as u8 }, 9>(w, k, t, out),
                10 => group::<{ $t as u8 }, 10>(w, k, t, out),
                11 => group::<{ $t as u8 }, 11>(w, k, t, out),
                12 => group::<{ $t as u8 }, 12>(w, k, t, out),
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
