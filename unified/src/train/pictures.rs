//! Batches of photographs and scenes, from nothing but the seed and the number of the update.

use crate::photos::augment;
use crate::scenes::{Scene, SceneRng, Split, caption, render};
use crate::{Error, Result};
use nn::{checkpoint, rng};
use qlip::Image;
use qlip::data::Pictures;
use rayon::prelude::*;
use std::path::Path;

/// More pixels along a side than any training here can hold.
const MOST_PIXELS: usize = 4096;

/// How pictures of a batch are drawn.
pub(super) struct PictureSource<'a> {
    pub photos: &'a Pictures,
    pub seed: u64,
    /// Share of scenes among the pictures.
    pub scene_share: f64,
    /// Most objects in a scene.
    pub scene_objects: usize,
    /// Smallest side of a random crop, as a share of the photograph.
    pub smallest_crop: f32,
    /// Pixels along the side.
    pub side: usize,
}

/// A picture and what is known about it.
pub(super) struct Shown {
    pub image: Image,
    /// Caption.
    pub words: String,
    /// A photograph's class.
    pub class: Option<usize>,
}

impl PictureSource<'_> {
    /// Pictures of update `n`.
    pub fn batch(&self, n: usize, size: usize) -> Result<Vec<Shown>> {
        let draw = |i: usize| {
            let mut r = rng::keyed(self.seed, &[n as u64, i as u64]);
            if f64::from(rng::uniform(&mut r)) < self.scene_share {
                let mut s = SceneRng::new(Split::Train, self.seed, (n * size + i) as u64);
                let scene = Scene::random(&mut s, Split::Train, 1, self.scene_objects);
                return Ok(Shown { image: render(&scene, self.side), words: caption(&scene), class: None });
            }
            let (at, image) = self.photos.draw(&mut r)?;
            let image = augment(&image, self.side, self.smallest_crop, &mut r);
            Ok(Shown { image, words: self.photos.words(at), class: self.photos.class(at) })
        };
        (0..size).into_par_iter().map(draw).collect()
    }
}

/// Writes which pictures could not be read, if any, beside the model.
pub(super) fn name_broken(photos: &Pictures, out: &Path) -> Result<()> {
    let broken = photos.broken();
    if broken.is_empty() {
        return Ok(());
    }
    checkpoint::write_atomic(&out.join("broken.txt"), (broken.join("\n") + "\n").as_bytes())
}

/// Whether pictures of a training can have so many pixels along their side.
pub(super) fn image_size(side: usize) -> Result<()> {
    if (1..=MOST_PIXELS).contains(&side) {
        return Ok(());
    }
    Err(Error::invalid(format!("image_size = {side}: write 1 to {MOST_PIXELS}")))
}

/// Whether a number in a config is a share.
pub(super) fn share(key: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{key} = {value}: write a share from 0 to 1")))
}
