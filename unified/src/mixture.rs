//! Samples of the unified training: small talk, pictures to text, text to pictures, and both in one conversation, mixed
//! by shares that change over the first steps (the calm-down schedule of UM3 section 4.2).

use crate::Result;
use crate::corpus::{CHECK, DESCRIBE, DRAW, TALK, THEN_DESCRIBE};
use crate::documents::{Documents, DocumentsConfig};
use crate::photos::augment;
use crate::scenes::{self, Category, Scene, SceneRng, Split};
use crate::template::Marks;
use nn::rng::{self, Rng};
use qlip::Image;
use qlip::data::{Pictures, caption};
use serde::{Deserialize, Serialize};

/// Shares of the kinds of samples; they need not add up to one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    /// Text alone.
    pub text: f64,
    /// A picture, then words about it.
    pub image_to_text: f64,
    /// Words, then a picture.
    pub text_to_image: f64,
    /// A picture drawn on request, then words about it.
    pub interleaved: f64,
    /// A picture, an instruction that changes it, and the changed picture.
    #[serde(default)]
    pub edit: f64,
    /// A picture drawn on request, rightly or wrongly, and the question whether it is right; teaches the model to choose
    /// among its own drawings.
    #[serde(default)]
    pub check: f64,
}

/// Shares at the start and after the calm-down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixture {
    /// At step 0.
    pub start: Shares,
    /// From `calm_down_steps` on.
    pub end: Shares,
    /// Steps over which the shares move in a straight line.
    pub calm_down_steps: usize,
    /// Share of photographs among pictures.
    pub photos: f64,
    /// Share of drawing requests whose words are dropped, for guidance.
    pub condition_dropout: f64,
    /// Files of documents, each with shares of its own.
    #[serde(default)]
    pub documents: Vec<DocumentsConfig>,
}

/// Kinds of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text alone.
    Text,
    /// A picture, then words about it.
    ImageToText,
    /// Words, then a picture.
    TextToImage,
    /// A picture drawn on request, then words about it.
    Interleaved,
    /// A picture, an instruction that changes it, and the changed picture.
    Edit,
    /// A picture drawn on request, and whether it is right.
    Check,
    /// One from a file of documents.
    Document(usize),
}

impl Mixture {
    /// The share of each kind at a step.
    pub fn at(&self, step: usize) -> Vec<(Kind, f64)> {
        let t = (step as f64 / self.calm_down_steps.max(1) as f64).min(1.0);
        let mix = |a: f64, b: f64| a + (b - a) * t;
        let (a, b) = (&self.start, &self.end);
        let mut all = vec![
            (Kind::Text, mix(a.text, b.text)),
            (Kind::ImageToText, mix(a.image_to_text, b.image_to_text)),
            (Kind::TextToImage, mix(a.text_to_image, b.text_to_image)),
            (Kind::Interleaved, mix(a.interleaved, b.interleaved)),
            (Kind::Edit, mix(a.edit, b.edit)),
            (Kind::Check, mix(a.check, b.check)),
        ];
        all.extend(self.documents.iter().enumerate().map(|(i, d)| (Kind::Document(i), mix(d.start, d.end))));
        all
    }

    /// A kind drawn by the shares at a step.
    pub fn draw(&self, step: usize, r: &mut Rng) -> Kind {
        let kinds = self.at(step);
        let mut left = f64::from(rng::uniform(r)) * kinds.iter().map(|k| k.1).sum::<f64>();
        for &(kind, share) in &kinds {
            left -= share;
            if left < 0.0 {
                return kind;
            }
        }
        // rounding: the last kind that has a share
        kinds.iter().rev().find(|k| k.1 > 0.0).map_or(Kind::Text, |k| k.0)
    }

    /// Whether the model learns to judge its own drawings.
    pub fn checks(&self) -> bool {
        self.start.check > 0.0 || self.end.check > 0.0
    }

    /// Whether the shares can be drawn from.
    pub fn check(&self) -> Result<()> {
        for step in [0, self.calm_down_steps] {
            let shares = self.at(step);
            if shares.iter().any(|s| s.1.is_nan() || s.1 < 0.0) || shares.iter().all(|s| s.1 == 0.0) {
                return Err(crate::Error::invalid(format!(
                    "[mixture]: the shares at step {step} must not be negative, nor all be 0"
                )));
            }
        }
        Ok(())
    }
}

/// A piece of a conversation and whether it is learned.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Words.
    Text(String, bool),
    /// A picture.
    Image(Image, bool),
    /// A picture that was encoded before.
    Codes(Vec<u64>, bool),
}

/// Turns of a conversation, marks included, or a document.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// In order.
    pub pieces: Vec<Piece>,
    /// Whether what does not fit a row may be left out at the end.
    pub cut: bool,
}

impl Sample {
    /// Appends a piece.
    pub fn push(&mut self, piece: Piece) {
        self.pieces.push(piece);
    }
}

/// What samples are made from.
pub struct Source<'a> {
    /// Photographs.
    pub photos: Option<&'a Pictures>,
    /// Shares.
    pub mixture: &'a Mixture,
    /// The mixture's files of documents, opened.
    pub documents: &'a [Documents],
    /// The chat's marks.
    pub marks: &'a Marks,
    /// Pixels along a picture's side.
    pub side: usize,
    /// Seed.
    pub seed: u64,
}

impl Source<'_> {
    /// The sample of one place in the training: the same for the same seed, step and row.
    pub fn sample(&self, step: usize, row: usize) -> Result<Sample> {
        let mut r = rng::keyed(self.seed, &[step as u64, row as u64]);
        let item = ((step as u64) << 20) + row as u64;
        let mut s = SceneRng::new(Split::Train, self.seed ^ 0x55, item);
        let kind = self.mixture.draw(step, &mut r);
        match kind {
            Kind::Text => return Ok(self.talk(&mut r)),
            Kind::Edit => return Ok(self.editing(&mut r, &mut s)),
            Kind::Check => return self.checking(&mut r, &mut s),
            Kind::Document(i) => {
                let documents = &self.documents[i];
                return documents.sample(rng::below(&mut r, documents.len()), &self.marks.end, &mut r);
            }
            Kind::ImageToText | Kind::TextToImage | Kind::Interleaved => {}
        }
        let photo = f64::from(rng::uniform(&mut r)) < self.mixture.photos;
        let mut out = Sample::default();
        match (kind, photo) {
            (Kind::ImageToText, true) => {
                let (image, class) = self.photo(&mut r)?;
                self.photo_words(&mut out, Some(image), class, &mut r);
            }
            (Kind::ImageToText, false) => {
                let scene = Scene::random(&mut s, Split::Train, 1, 4);
                let image = scenes::render(&scene, self.side);
                self.scene_words(&mut out, Some(image), &scene, 6, &mut s);
            }
            (_, true) => {
                let (image, class) = self.photo(&mut r)?;
                self.drawing(&mut out, &caption(class), image, &mut r);
                if kind == Kind::Interleaved {
                    self.photo_words(&mut out, None, class, &mut r);
                }
            }
            (_, false) => {
                // two thirds as evaluated; the rest describe richer scenes
                let (words, scene) = if s.chance(0.8) {
                    let category = s.pick(&Category::PRACTICE);
                    let (p, scene) = scenes::prompt(&mut s, Split::Train, category);
                    (p.text, scene)
                } else {
                    let scene = Scene::random(&mut s, Split::Train, 1, 3);
                    (scenes::caption(&scene), scene)
                };
                let image = scenes::render(&scene, self.side);
                if kind == Kind::Interleaved && s.chance(0.5) {
                    self.drawn_and_described(&mut out, &words, image, &scene, &mut s);
                    return Ok(out);
                }
                self.drawing(&mut out, &words, image, &mut r);
                if kind == Kind::Interleaved {
                    self.scene_words(&mut out, None, &scene, 2, &mut s);
                }
            }
        }
        Ok(out)
    }

    fn photo(&self, r: &mut Rng) -> Result<(Image, &str)> {
        let photos =
            self.photos.ok_or_else(|| crate::Error::invalid("a share of photographs, but no folder of them"))?;
        let (at, image) = photos.draw(r)?;
        let class = photos.class(at).map_or("", |c| &photos.classes[c]);
        Ok((augment(&image, self.side, 0.85, r), class))
    }

    fn classes(&self) -> &[String] {
        self.photos.map_or(&[], |p| &p.classes)
    }

    fn talk(&self, r: &mut Rng) -> Sample {
        let (q, a) = TALK[rng::below(r, TALK.len())];
        let mut out = Sample::default();
        self.turn(&mut out, None, q, a);
        out
    }

    /// One question and its answer; the picture, if any, comes before the question.
    fn turn(&self, out: &mut Sample, image: Option<Image>, question: &str, answer: &str) {
        let m = self.marks;
        out.push(Piece::Text(m.user.clone(), false));
        if let Some(image) = image {
            out.push(Piece::Image(image, false));
        }
        out.push(Piece::Text(format!("{question}{}", m.assistant), false));
        out.push(Piece::Text(format!("{answer}{}", m.end), true));
    }

    fn drawing(&self, out: &mut Sample, words: &str, image: Image, r: &mut Rng) {
        let dropped = f64::from(rng::uniform(r)) < self.mixture.condition_dropout;
        let ask = if dropped { String::new() } else { format!("{}{words}", DRAW[rng::below(r, DRAW.len())]) };
        out.push(Piece::Text(self.marks.user.clone(), false));
        self.drawn(out, &ask, image, true);
    }

    /// The rest of a request, and the picture that answers it.
    fn drawn(&self, out: &mut Sample, ask: &str, image: Image, learn: bool) {
        let m = self.marks;
        out.push(Piece::Text(format!("{ask}{}", m.assistant), false));
        out.push(Piece::Image(image, learn));
        out.push(Piece::Text(m.end.clone(), learn));
    }

    /// One reply with a picture and words about it.
    fn drawn_and_described(&self, out: &mut Sample, words: &str, image: Image, scene: &Scene, s: &mut SceneRng) {
        let m = self.marks;
        let ask = format!("{}{words}{}", s.pick(DRAW), s.pick(THEN_DESCRIBE));
        out.push(Piece::Text(format!("{}{ask}{}", m.user, m.assistant), false));
        out.push(Piece::Image(image, true));
        out.push(Piece::Text(format!("{}{}", scenes::caption(scene), m.end), true));
    }

    /// A request, a picture that answers it or nearly does, and whether it is right. Wrong pictures are not learned.
    fn checking(&self, r: &mut Rng, s: &mut SceneRng) -> Result<Sample> {
        let mut out = Sample::default();
        let right = s.chance(0.5);
        out.push(Piece::Text(self.marks.user.clone(), false));
        if f64::from(rng::uniform(r)) < self.mixture.photos {
            let (image, class) = self.photo(r)?;
            let classes: Vec<&String> = self.classes().iter().filter(|c| *c != class).collect();
            let asked = if right || classes.is_empty() { class } else { classes[rng::below(r, classes.len())] };
            let ask = format!("{}{}", DRAW[rng::below(r, DRAW.len())], caption(asked));
            self.drawn(&mut out, &ask, image, asked == class);
            self.turn(&mut out, None, CHECK, yes_no(asked == class));
            return Ok(out);
        }
        if s.chance(0.25) {
            let (before, edit) = self.edit(s);
            out.push(Piece::Image(scenes::render(&before, self.side), false));
            let after = match right {
                true => edit.scene,
                false if s.chance(0.4) => before,
                // the same change to another object, or another change
                false => loop {
                    match scenes::edit(s, Split::Train, &before) {
                        Some(other) if other.scene != edit.scene => break other.scene,
                        _ if s.chance(0.1) => break before,
                        _ => {}
                    }
                },
            };
            self.drawn(&mut out, &edit.text, scenes::render(&after, self.side), right);
        } else {
            let category = s.pick(&Category::ALL);
            let (prompt, scene) = scenes::prompt(s, Split::Train, category);
            let scene = if right { scene } else { scenes::mistake(s, Split::Train, &prompt, &scene) };
            let ask = format!("{}{}", DRAW[rng::below(r, DRAW.len())], prompt.text);
            self.drawn(&mut out, &ask, scenes::render(&scene, self.side), right);
        }
        self.turn(&mut out, None, CHECK, yes_no(right));
        Ok(out)
    }

    fn edit(&self, s: &mut SceneRng) -> (Scene, scenes::Edit) {
        loop {
            // nothing can be removed from a scene of one object
            let least = if s.chance(0.7) { 2 } else { 1 };
            let scene = Scene::random(s, Split::Train, least, 3);
            if let Some(edit) = scenes::edit(s, Split::Train, &scene) {
                return (scene, edit);
            }
        }
    }

    /// A picture that was drawn on request or shown, an instruction, the changed picture, and a question about it.
    fn editing(&self, r: &mut Rng, s: &mut SceneRng) -> Sample {
        let (before, edit) = self.edit(s);
        let mut out = Sample::default();
        let m = self.marks;
        let picture = scenes::render(&before, self.side);
        if s.chance(0.6) {
            self.drawing(&mut out, &scenes::caption(&before), picture, r);
            out.push(Piece::Text(m.user.clone(), false));
        } else {
            out.push(Piece::Text(m.user.clone(), false));
            out.push(Piece::Image(picture, false));
        }
        self.drawn(&mut out, &edit.text, scenes::render(&edit.scene, self.side), true);
        self.scene_words(&mut out, None, &edit.scene, 1, s);
        out
    }

    fn scene_words(&self, out: &mut Sample, mut image: Option<Image>, scene: &Scene, turns: usize, s: &mut SceneRng) {
        for _ in 0..turns {
            if s.chance(0.25) {
                let ask = s.pick(DESCRIBE);
                self.turn(out, image.take(), ask, &scenes::caption(scene));
            } else {
                let q = if s.chance(0.6) { scenes::hard_question(s, scene) } else { scenes::question(s, scene) };
                self.turn(out, image.take(), &q.text, &q.answer);
            }
        }
    }

    fn photo_words(&self, out: &mut Sample, image: Option<Image>, class: &str, r: &mut Rng) {
        self.turn(out, image, DESCRIBE[rng::below(r, DESCRIBE.len())], &caption(class));
        let classes = self.classes();
        let other = &classes[rng::below(r, classes.len())];
        let asked = if rng::uniform(r) < 0.5 { class } else { other.as_str() };
        let answer = if asked == class { "yes" } else { "no" };
        self.turn(out, None, &format!("is this {}?", caption(asked).trim_start_matches("a photo of ")), answer);
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_calm_down_in_a_straight_line() {
        let shares =
            |text| Shares { text, image_to_text: 1.0, text_to_image: 3.0, interleaved: 0.0, edit: 0.0, check: 0.0 };
        let m = Mixture {
            start: shares(60.0),
            end: shares(12.0),
            calm_down_steps: 10_000,
            photos: 0.5,
            condition_dropout: 0.1,
            documents: Vec::new(),
        };
        // the paper's 60:1:3 to 12:1:3
        assert_eq!(m.at(0)[0], (Kind::Text, 60.0));
        assert_eq!(m.at(5_000)[0], (Kind::Text, 36.0));
        assert_eq!(m.at(50_000)[0], (Kind::Text, 12.0));
        let mut r = rng::keyed(1, &[]);
        let text = (0..4000).filter(|_| m.draw(20_000, &mut r) == Kind::Text).count() as f64 / 4000.0;
        assert!((text - 0.75).abs() < 0.03, "{text}");
    }
}
