//! Batches of pictures and scenes, from nothing but the seed and their places.

use crate::data::{self, DataConfig, DataKind};
use crate::photos::{MOST_PIXELS, augment};
use crate::scenes::{Scene, SceneRng, Split, caption, render};
use crate::{Error, Result};
use nn::rng;
use nn::train::Place;
use qlip::Image;
use qlip::data::Pictures;
use rayon::prelude::*;

/// The sources of a training on pictures.
pub(super) struct PictureSource {
    sources: Vec<(DataConfig, Option<Pictures>)>,
    shares: Vec<f64>,
    seed: u64,
    /// Pixels along the side.
    side: usize,
}

/// A picture and what is known about it.
pub(super) struct Shown {
    pub image: Image,
    /// Caption.
    pub words: String,
    /// A photograph's class.
    pub class: Option<usize>,
}

/// Most objects in a scene where a source does not say.
const OBJECTS: usize = 4;

/// What is added to the seed where samples are not trained on.
const HELD_OUT: u64 = 0x7661_6c69;

impl PictureSource {
    /// Opens the sources of pictures and scenes; `say` is told a line a source.
    pub fn open(
        all: &[DataConfig],
        (side, seed, held_out): (usize, u64, f64),
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        data::check(all, &[DataKind::Pictures, DataKind::Scenes])?;
        for d in all {
            d.must_not(&[
                ("template", d.template.is_some()),
                ("end", d.end.is_some()),
                ("loss_weight", d.loss_weight.is_some()),
            ])?;
        }
        let mut sources = Vec::new();
        for d in all.iter().filter(|d| d.is_used()) {
            let pictures = match d.kind {
                DataKind::Pictures => {
                    let (pictures, line) = d.pictures(held_out)?;
                    say(&line);
                    Some(pictures)
                }
                _ => None,
            };
            sources.push((d.clone(), pictures));
        }
        let shares = sources.iter().map(|s| s.0.start).collect();
        Ok(Self { sources, shares, seed, side })
    }

    /// The pictures of the only source, for a training that learns its classes or captions.
    pub fn only(&self) -> Result<&Pictures> {
        match self.sources.as_slice() {
            [(_, Some(pictures))] => Ok(pictures),
            _ => Err(Error::invalid("[[data]]: this training takes one source, of kind = \"pictures\"")),
        }
    }

    /// An error where a source of pictures has neither words nor classes.
    pub fn needs_words(&self) -> Result<()> {
        for (config, pictures) in &self.sources {
            if let Some(p) = pictures {
                p.needs_words(&config.place()?)?;
            }
        }
        Ok(())
    }

    /// The first pictures that are not trained on.
    pub fn held_out(&self, n: usize) -> Result<Vec<Shown>> {
        self.batch(&Place { step: 0, rows: 0..n, batch_size: n, held_out: true })
    }

    /// The pictures of a place.
    pub fn batch(&self, place: &Place) -> Result<Vec<Shown>> {
        let seed = if place.held_out { self.seed ^ HELD_OUT } else { self.seed };
        let draw = |i: usize| {
            let mut r = rng::keyed(seed, &[place.step as u64, i as u64]);
            let (config, pictures) = &self.sources[data::draw(&self.shares, &mut r)];
            let Some(pictures) = pictures else {
                let item = (place.step * place.batch_size + i) as u64;
                let mut s = SceneRng::new(Split::Train, seed, item);
                let scene = Scene::random(&mut s, Split::Train, 1, config.objects.unwrap_or(OBJECTS));
                return Ok(Shown { image: render(&scene, self.side), words: caption(&scene), class: None });
            };
            let (at, image) = pictures.draw(&mut r, place.held_out)?;
            let image = augment(&image, self.side, config.smallest_crop.unwrap_or(1.0), &mut r);
            Ok(Shown { image, words: pictures.words_at(at, place.step), class: pictures.class(at) })
        };
        place.rows.clone().into_par_iter().map(draw).collect()
    }

    /// What could not be read so far.
    pub fn broken(&self) -> Vec<String> {
        self.sources.iter().filter_map(|s| s.1.as_ref()).flat_map(Pictures::broken).collect()
    }
}

/// Whether pictures of a training can have so many pixels along their side.
pub(super) fn image_size(side: usize) -> Result<()> {
    if (1..=MOST_PIXELS).contains(&side) {
        return Ok(());
    }
    Err(Error::invalid(format!("image_size = {side}: write 1 to {MOST_PIXELS}")))
}

/// Parts of at most `run.micro_batch` rows, each with its share of the whole batch's `all`.
pub(super) fn shares<T>(rows: Vec<T>, micro: Option<usize>, all: usize) -> Vec<(Vec<T>, f64)> {
    let mut rows = rows.into_iter().peekable();
    let size = micro.unwrap_or(usize::MAX);
    let mut out = Vec::new();
    while rows.peek().is_some() {
        let part: Vec<T> = rows.by_ref().take(size).collect();
        let share = part.len() as f64 / all as f64;
        out.push((part, share));
    }
    out
}
