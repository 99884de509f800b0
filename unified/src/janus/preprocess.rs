//! How Janus sees a picture: whole, its longest side resized to the tower's, on a square of the mean's colour (VLMImageProcessor).

use crate::artifact::ModelFiles;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use qlip::resample::resize;
use qlip::{Image, Pixels};
use serde::Deserialize;

/// preprocessor_config.json; what it leaves out has the authors' values. A `do_normalize` of false, which the first release of
/// 1.3B carried by mistake, is not followed, as the authors' own correction says.
#[derive(Debug, Clone, PartialEq)]
pub struct JanusPreprocess {
    /// Pixels along the square's side.
    pub size: usize,
    /// Fewest pixels along a resized side.
    pub min_size: usize,
    /// Mean of each channel, of values in 0..1.
    pub mean: [f32; 3],
    /// Deviation of each channel.
    pub std: [f32; 3],
}

#[derive(Deserialize)]
struct File {
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    min_size: Option<usize>,
}

impl JanusPreprocess {
    /// The authors' values for a tower of this side.
    pub fn new(size: usize) -> Self {
        Self { size, min_size: 14, mean: [0.5; 3], std: [0.5; 3] }
    }

    /// Of a model's folder.
    pub fn of(files: &ModelFiles, size: usize) -> Result<Self> {
        const NAME: &str = "preprocessor_config.json";
        let mut this = Self::new(size);
        if files.has(NAME) {
            let bad = |e: serde_json::Error| Error::bad_file(files.path_of(NAME), e.to_string());
            let file: File = serde_json::from_str(&files.text(NAME)?).map_err(bad)?;
            this.mean = file.image_mean.unwrap_or(this.mean);
            this.std = file.image_std.unwrap_or(this.std);
            this.min_size = file.min_size.unwrap_or(this.min_size);
        }
        Ok(this)
    }

    /// The square picture.
    pub fn square(&self, img: &Image) -> Image {
        let (w, h, size) = (img.width(), img.height(), self.size);
        // as the authors: a double's quotient, truncated
        let side = |n: usize| ((n as f64 / w.max(h) as f64 * size as f64) as usize).max(self.min_size).min(size);
        let (rw, rh) = (side(w), side(h));
        let resized = resize(img, rw, rh);
        let colour = self.mean.map(|m| (m * 255.0) as u8);
        let mut rgb: Vec<u8> = std::iter::repeat_n(colour, size * size).flatten().collect();
        let (left, top) = ((size - rw) / 2, (size - rh) / 2);
        for y in 0..rh {
            let at = ((top + y) * size + left) * 3;
            rgb[at..at + rw * 3].copy_from_slice(&resized.rgb()[y * rw * 3..(y + 1) * rw * 3]);
        }
        Image::from_rgb(size, size, rgb)
    }

    /// Pictures to pixels [pictures, 3, size, size].
    pub fn pixels(&self, images: &[Image], device: &Device) -> Result<Pixels> {
        let plane = self.size * self.size;
        let mut values = vec![0f32; images.len() * 3 * plane];
        for (img, out) in images.iter().zip(values.chunks_exact_mut((3 * plane).max(1))) {
            for (i, px) in self.square(img).rgb().chunks_exact(3).enumerate() {
                for c in 0..3 {
                    out[c * plane + i] = (f32::from(px[c]) / 255.0 - self.mean[c]) / self.std[c];
                }
            }
        }
        Ok(Pixels(Tensor::from_vec(values, (images.len(), 3, self.size, self.size), device)?))
    }
}
