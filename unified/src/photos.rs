//! Photographs with class names as training material: captions, questions, augmentation.

use nn::rng::{self, Rng};
use nn::{Error, Result};
use qlip::data::{LabelledImages, read_parquet};
use qlip::resample::{resize, resize_window};
use qlip::{Image, image};
use std::path::{Path, PathBuf};

/// Labelled photographs.
pub struct Photos(pub LabelledImages);

impl Photos {
    /// All files `SPLIT-*.parquet` of a folder in the Hugging Face layout.
    pub fn open(dir: &Path, split: &str) -> Result<Self> {
        let entries = std::fs::read_dir(dir).map_err(Error::io(dir))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|e| e.ok().map(|e| e.path()))
            .filter(|p| {
                let name = p.file_name().and_then(|n| n.to_str()).unwrap_or("");
                name.starts_with(&format!("{split}-")) && name.ends_with(".parquet")
            })
            .collect();
        files.sort();
        if files.is_empty() {
            return Err(Error::bad_file(dir, format!("no file {split}-*.parquet")));
        }
        let data = read_parquet(&files)?;
        if data.images.is_empty() {
            return Err(Error::bad_file(dir, "the files hold no pictures"));
        }
        if data.classes.is_empty() || data.labels.iter().any(|&l| l >= data.classes.len()) {
            return Err(Error::bad_file(dir, "the files name no classes, or a label has no class"));
        }
        Ok(Self(data))
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.0.images.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.images.is_empty()
    }

    /// "a photo of a dog"
    pub fn caption(class: &str) -> String {
        let article = if class.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        format!("a photo of {article} {class}")
    }
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
