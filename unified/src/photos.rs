//! Photographs as training material: the size that a model takes, and chance.

use nn::rng::{self, Rng};
use qlip::resample::{resize, resize_window};
use qlip::{Image, image};

/// Most pixels along a side that a training may ask for.
pub const MOST_PIXELS: usize = 4096;

/// Longest side that is seen, in shortest ones: a strip of one pixel would be enlarged without bound.
const LONGEST: usize = 100;

/// An error for a picture that is hardly wider than a line.
pub(crate) fn not_too_long(img: &Image) -> crate::Result<()> {
    let (w, h) = (img.width(), img.height());
    if w.max(h) <= LONGEST * w.min(h) {
        return Ok(());
    }
    Err(crate::Error::invalid(format!(
        "a picture of {w} x {h} pixels: one side is more than {LONGEST} times the other; cut it"
    )))
}

/// A picture at `side` pixels, as evaluation sees it.
pub fn centre(img: &Image, side: usize) -> Image {
    image::Preprocess::clip(side).crop(img)
}

/// A random crop of at least `smallest` of each side, mirrored half of the time, at `side` pixels.
pub fn augment(img: &Image, side: usize, smallest: f32, r: &mut Rng) -> Image {
    let short = img.width().min(img.height()) as f32;
    let keep = (short * (smallest + (1.0 - smallest) * rng::uniform(r))).round().clamp(1.0, short) as usize;
    let (left, top) = (rng::below(r, img.width() - keep + 1), rng::below(r, img.height() - keep + 1));
    let cut = resize_window(img, (img.width(), img.height()), (left, top), (keep, keep));
    let out = resize(&cut, side, side);
    if rng::uniform(r) < 0.5 { out.flipped() } else { out }
}
