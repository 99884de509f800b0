//! Pillow's antialiased bicubic resize, with its fixed-point sums and 8-bit intermediate (Resample.c), so that pixels
//! equal those the published checkpoints were trained on.

use crate::image::Image;
use rayon::prelude::*;

const BITS: u32 = 32 - 8 - 2;

/// Keys' cubic with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// First input pixel and fixed-point weights of each output pixel in `from..from + count` of a row of `output` pixels.
fn weights(input: usize, output: usize, from: usize, count: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = input as f64 / output as f64;
    let filter_scale = scale.max(1.0);
    let support = 2.0 * filter_scale;
    (from..from + count)
        .map(|x| {
            let centre = (x as f64 + 0.5) * scale;
            let lo = (centre - support + 0.5).max(0.0) as usize;
            let hi = ((centre + support + 0.5) as usize).min(input);
            let raw: Vec<f64> = (lo..hi).map(|i| bicubic((i as f64 - centre + 0.5) / filter_scale)).collect();
            let sum: f64 = raw.iter().sum();
            let fixed = raw
                .iter()
                .map(|w| {
                    let w = if sum == 0.0 { *w } else { w / sum } * f64::from(1u32 << BITS);
                    (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
                })
                .collect();
            (lo, fixed)
        })
        .collect()
}

fn clip8(sum: i64) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Resizes to `width` x `height` and keeps the window at (`left`, `top`) of size `crop`, computing nothing outside it.
pub fn resize_window(img: &Image, (width, height): (usize, usize), (left, top): (usize, usize), crop: (usize, usize)) -> Image {
    let (cw, ch) = crop;
    let ys = weights(img.height(), height, top, ch);
    let (first, last) = if height == img.height() {
        (top, top + ch)
    } else {
        let first = ys.iter().map(|(lo, _)| *lo).min().unwrap_or(0);
        (first, ys.iter().map(|(lo, w)| lo + w.len()).max().unwrap_or(0))
    };
    let row_bytes = img.width() * 3;
    let source = img.rgb();
    // horizontally, only the rows that the vertical pass reads
    let mut middle = vec![0u8; (last - first) * cw * 3];
    if width == img.width() {
        for (row, out) in middle.chunks_exact_mut((cw * 3).max(1)).enumerate() {
            let at = (first + row) * row_bytes + left * 3;
            out.copy_from_slice(&source[at..at + cw * 3]);
        }
    } else {
        let xs = weights(img.width(), width, left, cw);
        middle.par_chunks_mut((cw * 3).max(1)).enumerate().for_each(|(row, out)| {
            let src = &source[(first + row) * row_bytes..][..row_bytes];
            for (out, (lo, w)) in out.chunks_exact_mut(3).zip(&xs) {
                let mut sum = [1i64 << (BITS - 1); 3];
                for (px, &w) in src[lo * 3..].chunks_exact(3).zip(w) {
                    for c in 0..3 {
                        sum[c] += i64::from(px[c]) * i64::from(w);
                    }
                }
                for c in 0..3 {
                    out[c] = clip8(sum[c]);
                }
            }
        });
    }
    if height == img.height() {
        return Image::from_rgb(cw, ch, middle);
    }
    let mut out = vec![0u8; cw * ch * 3];
    out.par_chunks_mut((cw * 3).max(1)).zip(&ys).for_each(|(out, (lo, w))| {
        for (x, out) in out.iter_mut().enumerate() {
            let mut sum = 1i64 << (BITS - 1);
            for (i, &w) in w.iter().enumerate() {
                sum += i64::from(middle[(lo - first + i) * cw * 3 + x]) * i64::from(w);
            }
            *out = clip8(sum);
        }
    });
    Image::from_rgb(cw, ch, out)
}

/// Resizes a whole picture.
pub fn resize(img: &Image, width: usize, height: usize) -> Image {
    resize_window(img, (width, height), (0, 0), (width, height))
}
