//! The nano suite: reconstruction and zero-shot accuracy on photographs, questions and drawings on held-out scenes.

use crate::image::{psnr, ssim};
use crate::{Error, Result};
use qlip::Image;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use unified::conversation::{Content, Message, Role};
use unified::photos::{Photos, centre};
use unified::runner::Unified;
use unified::scenes::{self, Category, Checker, Scene, SceneRng, Split};

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
    /// Pictures that are worked on at once.
    pub batch: usize,
    /// Seed of the test items.
    pub seed: u64,
}

/// Shares are in 0..1.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Photographs measured.
    pub photos: usize,
    /// Mean PSNR in dB of photographs at the model's side.
    pub psnr: f64,
    /// Mean `ssim@gauss11`.
    pub ssim: f64,
    /// Zero-shot accuracy on the photographs' classes.
    pub zero_shot: f64,
    /// Share of scenes that the checker reads unchanged after reconstruction.
    pub scene_preservation: f64,
    /// Questions asked.
    pub questions: usize,
    /// Share answered right.
    pub questions_right: f64,
    /// The same for each kind of question.
    pub by_kind: BTreeMap<String, f64>,
    /// Instructions given, half of them about a picture that the person showed.
    pub edits: usize,
    /// Share of changed pictures that show exactly the changed scene, every object in its place.
    pub edits_right: f64,
    /// The same for each kind of instruction.
    pub edits_by_kind: BTreeMap<String, f64>,
    /// Share of right answers to questions about the picture of an earlier turn.
    pub follow_ups_right: f64,
    /// Drawings a category.
    pub drawings: usize,
    /// Share of drawings that pass the strict check, by category.
    pub strict: BTreeMap<String, f64>,
    /// Share of asked things that are there, by category.
    pub soft: BTreeMap<String, f64>,
    /// Drawn photographs a class.
    pub drawn_photos: usize,
    /// Share of them that the model's own zero-shot head assigns to the asked class.
    pub drawn_photos_right: f64,
}

/// Runs the suite; `tell` hears what is being measured.
pub fn run(model: &Unified, photos: &Photos, s: &Sizes, tell: &mut dyn FnMut(&str)) -> Result<Report> {
    if s.batch == 0 {
        return Err(Error::invalid("a batch of 0"));
    }
    tell("photographs");
    let n = if s.photos == 0 { photos.len() } else { s.photos.min(photos.len()) };
    let (psnr, ssim, zero_shot) = photographs(model, photos, n, s.batch)?;
    tell("scenes");
    let scene_preservation = preserved(model, s)?;
    tell("questions");
    let by_kind = questions(model, s)?;
    let asked: usize = by_kind.values().map(|v| v.1).sum();
    let right: usize = by_kind.values().map(|v| v.0).sum();
    tell("edits");
    let edits = edits(model, s)?;
    let follow_ups = follow_ups(model, s)?;
    let (mut strict, mut soft) = (BTreeMap::new(), BTreeMap::new());
    for category in Category::ALL {
        tell(category.name());
        let (a, b) = drawings(model, category, s)?;
        strict.insert(category.name().to_owned(), a);
        soft.insert(category.name().to_owned(), b);
    }
    tell("drawn photographs");
    let drawn_photos_right = drawn_photographs(model, &photos.0.classes, s)?;
    Ok(Report {
        photos: n,
        psnr,
        ssim,
        zero_shot,
        scene_preservation,
        questions: asked,
        questions_right: right as f64 / asked.max(1) as f64,
        by_kind: shares(by_kind),
        edits: s.edits,
        edits_right: edits.values().map(|v| v.0).sum::<usize>() as f64 / s.edits.max(1) as f64,
        edits_by_kind: shares(edits),
        follow_ups_right: follow_ups as f64 / s.edits.max(1) as f64,
        drawings: s.drawings,
        strict,
        soft,
        drawn_photos: s.drawn_photos,
        drawn_photos_right,
    })
}

const TEMPLATES: &[&str] = &["a photo of a {}"];

fn photographs(model: &Unified, photos: &Photos, n: usize, batch: usize) -> Result<(f64, f64, f64)> {
    let eyes = &model.eyes;
    let side = eyes.side();
    let labels = eyes.label_vectors(&photos.0.classes, TEMPLATES)?;
    let (mut db, mut similar, mut right) = (0.0, 0.0, 0usize);
    for start in (0..n).step_by(batch) {
        let end = (start + batch).min(n);
        let images: Vec<Image> = photos.0.images[start..end].par_iter().map(|i| centre(i, side)).collect();
        let back = eyes.decode(&eyes.encode(&images)?)?;
        let scores: Vec<(f64, f64)> =
            images.par_iter().zip(&back).map(|(a, b)| (psnr(a, b), ssim(a, b).unwrap_or(f64::NAN))).collect();
        db += scores.iter().map(|s| s.0).sum::<f64>();
        similar += scores.iter().map(|s| s.1).sum::<f64>();
        for (row, label) in eyes.classify(&images, &labels)?.iter().zip(&photos.0.labels[start..end]) {
            right += usize::from(lm::sample::argmax(row) == *label);
        }
    }
    let n = n.max(1) as f64;
    Ok((db / n, similar / n, right as f64 / n))
}

fn item(s: &Sizes, what: u64, i: usize) -> SceneRng {
    SceneRng::new(Split::Test, s.seed, (what << 32) + i as u64)
}

fn preserved(model: &Unified, s: &Sizes) -> Result<f64> {
    let side = model.eyes.side();
    let checker = Checker::new(side);
    let all: Vec<Scene> = (0..s.scenes).map(|i| Scene::random(&mut item(s, 1, i), Split::Test, 1, 4)).collect();
    let mut kept = 0;
    for chunk in all.chunks(s.batch) {
        let images: Vec<Image> = chunk.iter().map(|c| scenes::render(c, side)).collect();
        let back = model.eyes.decode(&model.eyes.encode(&images)?)?;
        kept += back.par_iter().zip(chunk).filter(|(b, c)| checker.shows(b, c)).count();
    }
    Ok(kept as f64 / s.scenes.max(1) as f64)
}

fn questions(model: &Unified, s: &Sizes) -> Result<BTreeMap<String, (usize, usize)>> {
    let side = model.eyes.side();
    let mut by_kind: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let all: Vec<usize> = (0..s.questions).collect();
    for chunk in all.chunks(s.batch) {
        let mut asked = Vec::new();
        let mut contexts = Vec::new();
        for &i in chunk {
            let mut rng = item(s, 2, i);
            let scene = Scene::random(&mut rng, Split::Test, 1, 4);
            let q = scenes::question(&mut rng, &scene);
            contexts.push(model.context(&[Message::user_with_image(scenes::render(&scene, side), q.text.clone())])?);
            asked.push(q);
        }
        for (q, answer) in asked.iter().zip(model.answer_batch(&contexts, 16)?) {
            let entry = by_kind.entry(q.kind.to_owned()).or_default();
            entry.0 += usize::from(answer.trim() == q.answer);
            entry.1 += 1;
        }
    }
    Ok(by_kind)
}

fn shares(counts: BTreeMap<String, (usize, usize)>) -> BTreeMap<String, f64> {
    counts.into_iter().map(|(k, (right, n))| (k, right as f64 / n.max(1) as f64)).collect()
}

/// A picture from an earlier turn: drawn on request (even items) or shown.
fn earlier(i: usize, scene: &Scene, image: Image) -> Vec<Message> {
    if i % 2 == 1 {
        return vec![Message { role: Role::User, content: vec![Content::Image(image)] }];
    }
    let asked = Message::user(format!("draw {}", scenes::caption(scene)));
    vec![asked, Message { role: Role::Assistant, content: vec![Content::Image(image)] }]
}

/// Changed pictures that show exactly the changed scene, and all of them, by kind of instruction.
fn edits(model: &Unified, s: &Sizes) -> Result<BTreeMap<String, (usize, usize)>> {
    let side = model.eyes.side();
    let checker = Checker::new(side);
    let mut by_kind: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let all: Vec<usize> = (0..s.edits).collect();
    for chunk in all.chunks(s.batch) {
        let (mut contexts, mut wanted) = (Vec::new(), Vec::new());
        for &i in chunk {
            let mut rng = item(s, 20, i);
            let (scene, edit) = loop {
                let scene = Scene::random(&mut rng, Split::Test, 1, 3);
                if let Some(edit) = scenes::edit(&mut rng, Split::Test, &scene) {
                    break (scene, edit);
                }
            };
            let mut messages = earlier(i, &scene, scenes::render(&scene, side));
            match messages.last_mut().filter(|m| m.role == Role::User) {
                Some(m) => m.content.push(Content::Text(edit.text.clone())),
                None => messages.push(Message::user(edit.text.clone())),
            }
            let mut context = model.context(&messages)?;
            context.push(model.config.vocabulary.begin_image);
            contexts.push(context);
            wanted.push(edit);
        }
        let seeds: Vec<u64> = chunk.iter().map(|&i| s.seed.wrapping_add(i as u64)).collect();
        let codes = model.draw_images(&contexts, &seeds, &model.config.generation, &mut |_| true)?;
        for (image, edit) in model.decode(&codes)?.iter().zip(&wanted) {
            let entry = by_kind.entry(edit.kind.to_owned()).or_default();
            entry.0 += usize::from(checker.shows(image, &edit.scene));
            entry.1 += 1;
        }
    }
    Ok(by_kind)
}

/// Right answers to questions about the picture that the model was asked to draw one turn earlier.
fn follow_ups(model: &Unified, s: &Sizes) -> Result<usize> {
    let side = model.eyes.side();
    let all: Vec<usize> = (0..s.edits).collect();
    let mut right = 0;
    for chunk in all.chunks(s.batch) {
        let (mut contexts, mut asked) = (Vec::new(), Vec::new());
        for &i in chunk {
            let mut rng = item(s, 21, i);
            let scene = Scene::random(&mut rng, Split::Test, 1, 3);
            let q = scenes::question(&mut rng, &scene);
            let mut messages = earlier(0, &scene, scenes::render(&scene, side));
            messages.push(Message::user(q.text.clone()));
            contexts.push(model.context(&messages)?);
            asked.push(q);
        }
        let answers = model.answer_batch(&contexts, 16)?;
        right += asked.iter().zip(answers).filter(|(q, a)| a.trim() == q.answer).count();
    }
    Ok(right)
}

/// Strict and soft score of a category.
fn drawings(model: &Unified, category: Category, s: &Sizes) -> Result<(f64, f64)> {
    let checker = Checker::new(model.eyes.side());
    let (mut strict, mut soft) = (0usize, 0.0);
    let all: Vec<usize> = (0..s.drawings).collect();
    for chunk in all.chunks(s.batch) {
        let prompts: Vec<_> = chunk
            .iter()
            .map(|&i| scenes::prompt(&mut item(s, 3 + category as u64, i), Split::Test, category).0)
            .collect();
        let contexts = prompts.iter().map(|p| model.drawing_context(&p.text)).collect::<Result<Vec<_>>>()?;
        let seeds: Vec<u64> = chunk.iter().map(|&i| s.seed.wrapping_add(i as u64)).collect();
        let codes = model.draw_images(&contexts, &seeds, &model.config.generation, &mut |_| true)?;
        for (image, prompt) in model.decode(&codes)?.iter().zip(&prompts) {
            let v = checker.check(image, prompt);
            strict += usize::from(v.strict);
            soft += v.soft;
        }
    }
    let n = s.drawings.max(1) as f64;
    Ok((strict as f64 / n, soft / n))
}

fn drawn_photographs(model: &Unified, classes: &[String], s: &Sizes) -> Result<f64> {
    let labels = model.eyes.label_vectors(classes, TEMPLATES)?;
    let mut right = 0usize;
    for (label, class) in classes.iter().enumerate() {
        let context = model.drawing_context(&Photos::caption(class))?;
        let seeds: Vec<u64> =
            (0..s.drawn_photos as u64).map(|i| s.seed.wrapping_add(1000 * label as u64 + i)).collect();
        for chunk in seeds.chunks(s.batch) {
            let contexts = vec![context.clone(); chunk.len()];
            let codes = model.draw_images(&contexts, chunk, &model.config.generation, &mut |_| true)?;
            let rows = model.eyes.classify(&model.decode(&codes)?, &labels)?;
            right += rows.iter().filter(|row| lm::sample::argmax(row) == label).count();
        }
    }
    Ok(right as f64 / (classes.len() * s.drawn_photos).max(1) as f64)
}
