//! Drawings of a class-conditional LlamaGen as a classifier sees them, beside the test photographs.

use crate::frechet::Gaussian;
use crate::image::psnr;
use crate::{Error, Result};
use lm::draw::{DrawSettings, draw};
use lm::llamagen::{Condition, LlamaGen, ModelType};
use qlip::Image;
use qlip::data::Pictures;
use rayon::prelude::*;
use std::sync::Arc;
use std::time::Instant;
use unified::classifier::Classifier;
use unified::photos::centre;
use unified::visual::VisualTokenizer;

/// Test photographs that are reconstructed.
const RECONSTRUCTED: usize = 1000;

/// Right ones of a number.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Right.
    pub right: usize,
    /// Of so many.
    pub n: usize,
}

impl Tally {
    /// One more.
    pub fn add(&mut self, right: bool) {
        self.right += usize::from(right);
        self.n += 1;
    }

    /// In 0..1.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.n.max(1) as f64
    }
}

/// What a classifier finds in pictures of known classes.
#[derive(Debug, Default)]
pub struct Judged {
    /// Those whose class it finds.
    pub right: Tally,
    /// Its features of each.
    pub features: Vec<Vec<f32>>,
}

impl Judged {
    /// Looks at more of them, a class each.
    pub fn look(&mut self, classifier: &Classifier, images: &[Image], classes: &[usize]) -> Result<()> {
        for ((features, class), &wanted) in classifier.look(images)?.into_iter().zip(classes) {
            self.right.add(class == wanted);
            self.features.push(features);
        }
        Ok(())
    }
}

/// What draws, what it draws with, and what looks at it.
pub struct Studio<'a> {
    /// The decoder.
    pub model: &'a Arc<LlamaGen>,
    /// Its image tokenizer.
    pub visual: &'a VisualTokenizer,
    /// Who judges.
    pub classifier: &'a Classifier,
    /// The test photographs.
    pub photos: &'a Pictures,
}

/// How much is drawn, and how.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Drawings a class.
    pub per_class: usize,
    /// Drawings at once.
    pub batch: usize,
    /// Seed of the first drawing.
    pub seed: u64,
    /// Guidance and sampling.
    pub draw: DrawSettings,
}

/// Shares are in 0..1.
#[derive(Debug, Clone)]
pub struct Report {
    /// Test photographs whose class the classifier finds.
    pub classifier: Tally,
    /// Drawings that the classifier assigns to the asked class.
    pub asked_class: Tally,
    /// `feature_frechet@classifier`: distance of the classifier's features of drawings and test photographs.
    pub feature_frechet: f64,
    /// Drawings in that distance.
    pub drawings: usize,
    /// Photographs in that distance.
    pub photographs: usize,
    /// Seconds a picture, tokens alone.
    pub seconds: f64,
    /// Tokens of a picture, one after the other.
    pub tokens: usize,
    /// What the image tokenizer alone leaves: no drawing can be expected to be better.
    pub tokenizer: Reconstruction,
}

/// Test photographs through the image tokenizer and back.
#[derive(Debug, Clone)]
pub struct Reconstruction {
    /// Photographs reconstructed.
    pub n: usize,
    /// Mean PSNR in dB.
    pub psnr: f64,
    /// Reconstructions whose class the classifier finds.
    pub classified: Tally,
    /// `feature_frechet@classifier` of reconstructions and all test photographs.
    pub feature_frechet: f64,
}

/// Measures.
pub fn run(s: &Studio, sizes: &Sizes) -> Result<Report> {
    let c = &s.model.config;
    if sizes.batch == 0 || sizes.per_class == 0 {
        return Err(Error::invalid("a batch of 0, or 0 drawings a class"));
    }
    if c.model_type != ModelType::C2i {
        return Err(Error::invalid(
            "this model draws captions; the classes of a classifier need one that draws classes",
        ));
    }
    let classes = &s.classifier.config.classes;
    if *classes != s.photos.classes || classes.len() != c.num_classes {
        let (a, b, n) = (classes.len(), s.photos.classes.len(), c.num_classes);
        let other = classes.iter().zip(&s.photos.classes).find(|(a, b)| a != b);
        let names = other.map_or(String::new(), |(a, b)| format!("; `{a}` is not `{b}`"));
        return Err(Error::invalid(format!(
            "classifier, photographs and model have {a}, {b} and {n} classes{names}; train the classifier on the photographs \
             that the model was trained on"
        )));
    }
    let (classifier, real) = photographs(s.classifier, s.photos)?;
    let tokenizer = reconstruct(s, sizes.batch, &real)?;
    let wanted: Vec<usize> = (0..c.num_classes).flat_map(|c| std::iter::repeat_n(c, sizes.per_class)).collect();
    let (mut drawn, mut seconds) = (Judged::default(), 0.0);
    for (n, chunk) in wanted.chunks(sizes.batch).enumerate() {
        let first = sizes.seed.wrapping_add((n * sizes.batch) as u64);
        let seeds: Vec<u64> = (0..chunk.len() as u64).map(|i| first.wrapping_add(i)).collect();
        let classes = Condition::Classes(chunk.iter().map(|&c| c as u32).collect());
        let clock = Instant::now();
        let tokens = draw(s.model, &classes, &seeds, &sizes.draw, &mut |_| true)?;
        seconds += clock.elapsed().as_secs_f64();
        drawn.look(s.classifier, &s.visual.images(&tokens)?, chunk)?;
    }
    let features = Gaussian::of(&drawn.features)?;
    Ok(Report {
        classifier,
        asked_class: drawn.right,
        feature_frechet: features.distance(&real)?,
        drawings: features.n,
        photographs: real.n,
        seconds: seconds / wanted.len() as f64,
        tokens: c.block_size,
        tokenizer,
    })
}

/// Photographs whose class a classifier finds, and its features of all of them.
pub fn photographs(classifier: &Classifier, photos: &Pictures) -> Result<(Tally, Gaussian)> {
    let labels = photos.labels()?;
    let all: Vec<usize> = (0..photos.len()).collect();
    let mut judged = Judged::default();
    for (chunk, labels) in all.chunks(1000).zip(labels.chunks(1000)) {
        let images: Vec<Image> = chunk.par_iter().map(|&i| photos.image(i)).collect::<Result<_>>()?;
        judged.look(classifier, &images, labels)?;
    }
    Ok((judged.right, Gaussian::of(&judged.features)?))
}

fn reconstruct(s: &Studio, batch: usize, real: &Gaussian) -> Result<Reconstruction> {
    let side = s.visual.side();
    let labels = s.photos.labels()?;
    let some: Vec<usize> = (0..s.photos.len().min(RECONSTRUCTED)).collect();
    let (mut sum, mut judged) = (0.0, Judged::default());
    for (chunk, labels) in some.chunks(batch).zip(labels.chunks(batch)) {
        let images: Vec<Image> =
            chunk.par_iter().map(|&i| Ok(centre(&s.photos.image(i)?, side))).collect::<Result<_>>()?;
        let back = s.visual.images(&s.visual.tokens(&images)?)?;
        sum += images.iter().zip(&back).map(|(a, b)| psnr(a, b)).sum::<f64>();
        judged.look(s.classifier, &back, labels)?;
    }
    let n = some.len();
    let feature_frechet = Gaussian::of(&judged.features)?.distance(real)?;
    Ok(Reconstruction { n, psnr: sum / n.max(1) as f64, classified: judged.right, feature_frechet })
}
