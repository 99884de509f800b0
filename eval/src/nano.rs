//! The nano suite: reconstruction and zero-shot accuracy on photographs, questions and drawings on held-out scenes.

use crate::bench::scenes::Suite;
use crate::image::{psnr, ssim};
use crate::{Error, Result};
use qlip::Image;
use qlip::data::{Pictures, caption};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use unified::config::Generation;
use unified::photos::centre;
use unified::runner::Unified;
use unified::scenes::{self, Category, Checker, Scene};

/// Sizes of the suite; the defaults are what README quotes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sizes {
    /// Photographs for reconstruction and zero-shot accuracy; 0 for all.
    pub photos: usize,
    /// Scenes whose reconstruction is read by the checker.
    pub scenes: usize,
    /// Questions about scenes.
    pub questions: usize,
    /// Instructions that change a picture, and follow-up questions about a picture that was drawn before.
    pub edits: usize,
    /// Drawings for each category of prompts.
    pub drawings: usize,
    /// Drawn photographs for each class.
    pub drawn_photos: usize,
    /// Drawings for each picture, of which the model keeps the one it finds right most surely.
    pub best_of: usize,
    /// Pictures that are worked on at once.
    pub batch: usize,
    /// Seed of the test items.
    pub seed: u64,
}

/// Right ones of a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
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

    fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        all.into_iter().fold(Self::default(), |a, b| Self { right: a.right + b.right, n: a.n + b.n })
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1}% of {}", 100.0 * self.share(), self.n)
    }
}

type ByKind = BTreeMap<String, Tally>;

/// Shares are in 0..1.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Photographs measured.
    pub photos: usize,
    /// Pixels along the side at which they were measured; CIFAR-10's 32 are enlarged to it.
    pub side: usize,
    /// Mean PSNR in dB.
    pub psnr: f64,
    /// Mean `ssim@gauss11`.
    pub ssim: f64,
    /// Zero-shot accuracy on the photographs' classes.
    pub zero_shot: f64,
    /// Scenes that the checker reads unchanged after reconstruction.
    pub scenes_kept: Tally,
    /// Questions answered right.
    pub questions: Tally,
    /// The same for each kind of question.
    pub by_kind: ByKind,
    /// What the commonest answer to each kind would reach without a look at the picture.
    pub blind: f64,
    /// Questions about the picture of an earlier turn, after another question and its answer.
    pub follow_ups: Tally,
    /// Drawing and editing, with one drawing a picture and with as many as the model's config says.
    pub drawing: Vec<Drawing>,
}

/// Drawing, with the best of so many drawings for each picture by the model's own judgement.
#[derive(Debug, Clone, Serialize)]
pub struct Drawing {
    /// Drawings for each picture.
    pub best_of: usize,
    /// Drawings that pass the strict check, by category.
    pub strict: ByKind,
    /// Share of asked things that are there, by category.
    pub soft: BTreeMap<String, f64>,
    /// Changed pictures that show exactly the changed scene, every object in its place; by kind of instruction.
    pub edits: ByKind,
    /// Drawn photographs that the model's own zero-shot head assigns to the asked class.
    pub drawn_photos: Tally,
}

impl Drawing {
    /// Edits of all kinds.
    pub fn edits(&self) -> Tally {
        Tally::sum(self.edits.values())
    }
}

/// Runs the suite; `tell` hears what is being measured.
pub fn run(model: &Unified, photos: &Pictures, s: &Sizes, tell: &mut dyn FnMut(&str)) -> Result<Report> {
    if s.batch == 0 {
        return Err(Error::invalid("a batch of 0"));
    }
    tell("photographs");
    let n = if s.photos == 0 { photos.len() } else { s.photos.min(photos.len()) };
    let (psnr, ssim, zero_shot) = photographs(model, photos, n, s.batch)?;
    tell("scenes");
    let scenes_kept = preserved(model, s)?;
    tell("questions");
    let (by_kind, blind) = questions(model, s)?;
    let follow_ups = follow_ups(model, s)?;
    let mut tries = vec![1, s.best_of];
    tries.dedup();
    let mut drawing = Vec::new();
    for best_of in tries {
        let g = Generation { best_of, ..model.config.generation };
        let s = Sizes { batch: (s.batch / best_of).max(1), ..*s };
        tell(&format!("edits, best of {best_of}"));
        let edits = edits(model, &g, &s)?;
        let (mut strict, mut soft) = (BTreeMap::new(), BTreeMap::new());
        for category in Category::ALL {
            tell(&format!("{}, best of {best_of}", category.name()));
            let (a, b) = drawings(model, category, &g, &s)?;
            strict.insert(category.name().to_owned(), a);
            soft.insert(category.name().to_owned(), b);
        }
        tell(&format!("drawn photographs, best of {best_of}"));
        let drawn_photos = drawn_photographs(model, &photos.classes, &g, &s)?;
        drawing.push(Drawing { best_of, strict, soft, edits, drawn_photos });
    }
    let side = model.eyes.side();
    let questions = Tally::sum(by_kind.values());
    Ok(Report { photos: n, side, psnr, ssim, zero_shot, scenes_kept, questions, by_kind, blind, follow_ups, drawing })
}

fn photographs(model: &Unified, photos: &Pictures, n: usize, batch: usize) -> Result<(f64, f64, f64)> {
    let eyes = &model.eyes;
    let side = eyes.side();
    let labels = eyes.class_vectors(&photos.classes)?;
    let classes = photos.labels()?;
    let (mut db, mut similar, mut right) = (0.0, 0.0, 0usize);
    for start in (0..n).step_by(batch) {
        let end = (start + batch).min(n);
        let images: Vec<Image> =
            (start..end).into_par_iter().map(|i| Ok(centre(&photos.image(i)?, side))).collect::<Result<_>>()?;
        let back = eyes.decode(&eyes.encode(&images)?)?;
        let scores: Vec<(f64, f64)> =
            images.par_iter().zip(&back).map(|(a, b)| (psnr(a, b), ssim(a, b).unwrap_or(f64::NAN))).collect();
        db += scores.iter().map(|s| s.0).sum::<f64>();
        similar += scores.iter().map(|s| s.1).sum::<f64>();
        for (row, label) in eyes.classify(&images, &labels)?.iter().zip(&classes[start..end]) {
            right += usize::from(lm::sample::argmax(row) == *label);
        }
    }
    let n = n.max(1) as f64;
    Ok((db / n, similar / n, right as f64 / n))
}

/// The items, as this model is shown them.
fn suite(model: &Unified, s: &Sizes) -> Suite {
    Suite { seed: s.seed, side: model.eyes.side() }
}

fn preserved(model: &Unified, s: &Sizes) -> Result<Tally> {
    let side = model.eyes.side();
    let checker = Checker::new(side);
    let all: Vec<Scene> = (0..s.scenes).map(|i| suite(model, s).scene(i)).collect();
    let mut kept = Tally::default();
    for chunk in all.chunks(s.batch) {
        let images: Vec<Image> = chunk.iter().map(|c| scenes::render(c, side)).collect();
        let back = model.eyes.decode(&model.eyes.encode(&images)?)?;
        kept.right += back.par_iter().zip(chunk).filter(|(b, c)| checker.shows(b, c)).count();
        kept.n += chunk.len();
    }
    Ok(kept)
}

/// Right answers by kind, and the share that the commonest answer to each kind would get right.
fn questions(model: &Unified, s: &Sizes) -> Result<(ByKind, f64)> {
    let suite = suite(model, s);
    let mut by_kind = ByKind::new();
    let mut answers: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    let all: Vec<usize> = (0..s.questions).collect();
    for chunk in all.chunks(s.batch) {
        let mut asked = Vec::new();
        let mut contexts = Vec::new();
        for &i in chunk {
            let (scene, q) = suite.question(i);
            asked.push(q.clone());
            contexts.push(model.context(&suite.asked((scene, q)))?);
        }
        for (q, answer) in asked.iter().zip(model.answer_batch(&contexts, 16)?) {
            by_kind.entry(q.kind.to_owned()).or_default().add(answer.trim() == q.answer);
            *answers.entry(q.kind).or_default().entry(q.answer.clone()).or_default() += 1;
        }
    }
    let commonest: usize = answers.values().filter_map(|a| a.values().max()).sum();
    Ok((by_kind, commonest as f64 / s.questions.max(1) as f64))
}

/// Changed pictures that show exactly the changed scene, and all of them, by kind of instruction.
fn edits(model: &Unified, g: &Generation, s: &Sizes) -> Result<ByKind> {
    let suite = suite(model, s);
    let checker = Checker::new(suite.side);
    let mut by_kind = ByKind::new();
    let all: Vec<usize> = (0..s.edits).collect();
    for chunk in all.chunks(s.batch) {
        let (mut contexts, mut wanted) = (Vec::new(), Vec::new());
        for &i in chunk {
            let (scene, edit) = suite.change(i);
            contexts.push(model.context_to_draw(&suite.asked_to_change(i, &scene, &edit))?);
            wanted.push(edit);
        }
        let seeds: Vec<u64> = chunk.iter().map(|&i| s.seed.wrapping_add(i as u64)).collect();
        let codes = model.draw_images(&contexts, &seeds, g, &mut |_| true)?;
        for (image, edit) in model.decode(&codes)?.iter().zip(&wanted) {
            by_kind.entry(edit.kind.to_owned()).or_default().add(checker.shows(image, &edit.scene));
        }
    }
    Ok(by_kind)
}

/// Questions about a picture of the turn before, which was about something else.
fn follow_ups(model: &Unified, s: &Sizes) -> Result<Tally> {
    let suite = suite(model, s);
    let all: Vec<usize> = (0..s.edits).collect();
    let mut tally = Tally::default();
    for chunk in all.chunks(s.batch) {
        let (mut contexts, mut asked) = (Vec::new(), Vec::new());
        for &i in chunk {
            let (scene, before, q) = suite.follow_up(i);
            asked.push(q.clone());
            contexts.push(model.context(&suite.asked_later((scene, before, q)))?);
        }
        let answers = model.answer_batch(&contexts, 16)?;
        asked.iter().zip(answers).for_each(|(q, a)| tally.add(a.trim() == q.answer));
    }
    Ok(tally)
}

/// Strict and soft score of a category.
fn drawings(model: &Unified, category: Category, g: &Generation, s: &Sizes) -> Result<(Tally, f64)> {
    let checker = Checker::new(model.eyes.side());
    let (mut strict, mut soft) = (Tally::default(), 0.0);
    let all: Vec<usize> = (0..s.drawings).collect();
    for chunk in all.chunks(s.batch) {
        let prompts: Vec<_> = chunk.iter().map(|&i| suite(model, s).prompt(category, i)).collect();
        let contexts = prompts.iter().map(|p| model.drawing_context(&p.text)).collect::<Result<Vec<_>>>()?;
        let seeds: Vec<u64> = chunk.iter().map(|&i| s.seed.wrapping_add(i as u64)).collect();
        let codes = model.draw_images(&contexts, &seeds, g, &mut |_| true)?;
        for (image, prompt) in model.decode(&codes)?.iter().zip(&prompts) {
            let v = checker.check(image, prompt);
            strict.add(v.strict);
            soft += v.soft;
        }
    }
    Ok((strict, soft / s.drawings.max(1) as f64))
}

fn drawn_photographs(model: &Unified, classes: &[String], g: &Generation, s: &Sizes) -> Result<Tally> {
    let labels = model.eyes.class_vectors(classes)?;
    let mut tally = Tally::default();
    for (label, class) in classes.iter().enumerate() {
        let context = model.drawing_context(&caption(class))?;
        let seeds: Vec<u64> =
            (0..s.drawn_photos as u64).map(|i| s.seed.wrapping_add(1000 * label as u64 + i)).collect();
        for chunk in seeds.chunks(s.batch) {
            let contexts = vec![context.clone(); chunk.len()];
            let codes = model.draw_images(&contexts, chunk, g, &mut |_| true)?;
            let rows = model.eyes.classify(&model.decode(&codes)?, &labels)?;
            rows.iter().for_each(|row| tally.add(lm::sample::argmax(row) == label));
        }
    }
    Ok(tally)
}
