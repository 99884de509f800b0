//! Pillow's antialiased bicubic resize, with its fixed-point sums and 8-bit intermediate (Resample.c), so that pixels
//! equal those the published checkpoints were trained on.

use crate::image::Image;
use rayon::prelude::*;
use std::f64::consts::PI;

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

/// Pillow's filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Over two pixels each way.
    Bicubic,
    /// Over three.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        if self == Self::Bicubic { 2.0 } else { 3.0 }
    }

    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            Self::Bicubic => bicubic(x),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// First input pixel and fixed-point weights of each output pixel in `from..from + count` of a row of `output` pixels.
fn weights(filter: Filter, input: usize, output: usize, from: usize, count: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = input as f64 / output as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    (from..from + count)
        .map(|x| {
            let centre = (x as f64 + 0.5) * scale;
            let lo = (centre - support + 0.5).max(0.0) as usize;
            let hi = ((centre + support + 0.5) as usize).min(input);
            let raw: Vec<f64> = (lo..hi).map(|i| filter.at((i as f64 - centre + 0.5) / filter_scale)).collect();
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

/// Bytes of a part of a picture.
struct Part {
    width: usize,
    rgb: Vec<u8>,
}

/// Output columns `left..left + count` of `rows` (three bytes a pixel, `input` pixels a row) resized to `output` columns.
fn horizontal(filter: Filter, rows: &Part, output: usize, left: usize, count: usize) -> Part {
    let input = rows.width;
    let mut out = vec![0u8; rows.rgb.len() / (input * 3) * count * 3];
    let lines = out.par_chunks_mut(count * 3).zip(rows.rgb.par_chunks(input * 3));
    if input == output {
        lines.for_each(|(out, src)| out.copy_from_slice(&src[left * 3..(left + count) * 3]));
    } else {
        let xs = weights(filter, input, output, left, count);
        lines.for_each(|(out, src)| {
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
    Part { width: count, rgb: out }
}

/// Output rows `top..top + count` of `part`, whose `input` rows are resized to `output` rows.
fn vertical(filter: Filter, part: &Part, input: usize, output: usize, top: usize, count: usize) -> Part {
    let line = part.width * 3;
    let mut out = vec![0u8; count * line];
    if input == output {
        out.copy_from_slice(&part.rgb[top * line..(top + count) * line]);
    } else {
        let ys = weights(filter, input, output, top, count);
        out.par_chunks_mut(line).zip(&ys).for_each(|(out, (lo, w))| {
            for (x, out) in out.iter_mut().enumerate() {
                let mut sum = 1i64 << (BITS - 1);
                for (i, &w) in w.iter().enumerate() {
                    sum += i64::from(part.rgb[(lo + i) * line + x]) * i64::from(w);
                }
                *out = clip8(sum);
            }
        });
    }
    Part { width: part.width, rgb: out }
}

/// Resizes to `width` x `height` and keeps the window at (`left`, `top`) of size `crop`.
///
/// Pillow resizes columns first unless that leaves more to do: measured on Pillow 13, rows come first where the height
/// shrinks by more than twice what the width does.
pub fn resize_window(img: &Image, size: (usize, usize), at: (usize, usize), crop: (usize, usize)) -> Image {
    resize_window_by(Filter::Bicubic, img, size, at, crop)
}

/// The same by another filter.
pub fn resize_window_by(
    filter: Filter,
    img: &Image,
    (width, height): (usize, usize),
    (left, top): (usize, usize),
    crop: (usize, usize),
) -> Image {
    let (cw, ch) = crop;
    let (iw, ih) = (img.width(), img.height());
    let whole = Part { width: iw, rgb: img.rgb().to_vec() };
    let out = if ih.saturating_sub(height) > 2 * iw.saturating_sub(width) {
        horizontal(filter, &vertical(filter, &whole, ih, height, top, ch), width, left, cw)
    } else {
        vertical(filter, &horizontal(filter, &whole, width, left, cw), ih, height, top, ch)
    };
    Image::from_rgb(cw, ch, out.rgb)
}

/// Resizes a whole picture.
pub fn resize(img: &Image, width: usize, height: usize) -> Image {
    resize_window(img, (width, height), (0, 0), (width, height))
}
