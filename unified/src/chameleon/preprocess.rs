//! How Chameleon sees a picture (the authors' rule): over white, shortest side resized by Lanczos, the other rounded, centre crop,
//! v / 255 x 2 - 1.

use crate::Result;
use candle_core::{Device, Tensor};
use qlip::resample::{Filter, resize_window_by};
use qlip::{Image, Pixels};

/// The square of a side that the image tokenizer reads.
pub fn square(img: &Image, side: usize) -> Image {
    let img = img.on_white();
    let (w, h) = (img.width() as f64, img.height() as f64);
    let scale = side as f64 / w.min(h);
    let resized = |n: f64| ((n * scale).round_ties_even() as usize).max(side);
    let (rw, rh) = (resized(w), resized(h));
    resize_window_by(Filter::Lanczos, &img, (rw, rh), ((rw - side) / 2, (rh - side) / 2), (side, side))
}

/// Pictures to pixels [pictures, 3, side, side].
pub fn pixels(images: &[Image], side: usize, device: &Device) -> Result<Pixels> {
    let plane = side * side;
    let mut values = vec![0f32; images.len() * 3 * plane];
    for (img, out) in images.iter().zip(values.chunks_exact_mut((3 * plane).max(1))) {
        for (i, px) in square(img, side).rgb().chunks_exact(3).enumerate() {
            for c in 0..3 {
                out[c * plane + i] = (f64::from(px[c]) / 255.0 * 2.0 - 1.0) as f32;
            }
        }
    }
    Ok(Pixels(Tensor::from_vec(values, (images.len(), 3, side, side), device)?))
}
