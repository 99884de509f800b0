//! Batches of photographs and scenes, from nothing but the seed and the number of the update.

use crate::photos::{MOST_PIXELS, augment};
use crate::scenes::{Scene, SceneRng, Split, caption, render};
use crate::{Error, Result};
use candle_core::Tensor;
use nn::ahead::Ahead;
use nn::train::{Progress, StepOutput, Summary, Trainer};
use nn::{checkpoint, rng};
use qlip::Image;
use qlip::data::Pictures;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

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
    fn batch(&self, n: usize, size: usize) -> Result<Vec<Shown>> {
        let draw = |i: usize| {
            let mut r = rng::keyed(self.seed, &[n as u64, i as u64]);
            if f64::from(rng::uniform(&mut r)) < self.scene_share {
                let mut s = SceneRng::new(Split::Train, self.seed, (n * size + i) as u64);
                let scene = Scene::random(&mut s, Split::Train, 1, self.scene_objects);
                return Ok(Shown { image: render(&scene, self.side), words: caption(&scene), class: None });
            }
            let (at, image) = self.photos.draw(&mut r)?;
            let image = augment(&image, self.side, self.smallest_crop, &mut r);
            Ok(Shown { image, words: self.photos.words_at(at, n), class: self.photos.class(at) })
        };
        (0..size).into_par_iter().map(draw).collect()
    }

    /// Runs a training on these pictures, each batch made while the step before it computes; `step` has the number of the
    /// update. Beside the model stands then which pictures could not be read.
    pub fn train(
        &self,
        trainer: &Trainer,
        mut step: impl FnMut(usize, Vec<Shown>) -> Result<StepOutput>,
        export: impl FnMut(&BTreeMap<String, Tensor>) -> Result<()>,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<Summary> {
        let c = &trainer.config;
        let make = |n: usize| self.batch(n, c.batch_size);
        let done = std::thread::scope(|scope| {
            let batches = Ahead::new(scope, c.steps, &make)?;
            trainer.run(|n| step(n, batches.take(n)?), export, progress)
        });
        name_broken(self.photos, trainer.out)?;
        done
    }
}

/// Share of the pictures that may be unreadable where a config does not say.
pub(super) fn broken() -> f64 {
    0.01
}

/// Smallest side of a crop where a config does not say: the photograph's.
pub(super) fn whole() -> f32 {
    1.0
}

/// Writes which pictures could not be read, if any, beside the model.
fn name_broken(photos: &Pictures, out: &Path) -> Result<()> {
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
