//! Samples of the unified training: small talk, pictures to text, text to pictures, and both in one conversation, from the sources of
//! `[[data]]` by shares that change over the first steps (the calm-down schedule of UM3 section 4.2).

use crate::corpus::{CHECK, DESCRIBE, DRAW, TALK, THEN_DESCRIBE};
use crate::data::{self, DataConfig, DataKind, HeldOut, SampleTemplate};
use crate::documents::Documents;
use crate::photos::augment;
use crate::scenes::{self, Category, Scene, SceneRng, Split};
use crate::template::Marks;
use crate::train::conversations::{self, Entry, IMAGE_MARK, learned_turns};
use crate::{Error, Result};
use nn::rng::{self, Rng};
use qlip::Image;
use qlip::data::{Broken, Pictures, caption};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Section `[mixture]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Mixture {
    /// Steps over which the shares of the sources move from start to end in a straight line.
    pub calm_down_steps: usize,
    /// Share of drawing requests whose words are dropped, for guidance.
    pub condition_dropout: f64,
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
#[derive(Debug, Clone)]
pub struct Sample {
    /// In order.
    pub pieces: Vec<Piece>,
    /// Whether what does not fit a row may be left out at the end.
    pub cut: bool,
    /// What each of its targets counts in the loss.
    pub weight: f32,
}

impl Default for Sample {
    fn default() -> Self {
        Self { pieces: Vec::new(), cut: false, weight: 1.0 }
    }
}

impl Sample {
    /// Appends a piece.
    pub fn push(&mut self, piece: Piece) {
        self.pieces.push(piece);
    }
}

/// A source that is open.
enum Open {
    Talk,
    Scenes,
    Pictures(Pictures),
    Documents(Documents),
    Conversations(Conversations),
}

/// Conversations with their folder of pictures.
struct Conversations {
    entries: Vec<Entry>,
    images: PathBuf,
    broken: Broken,
    held_out: HeldOut,
}

/// What samples are made from.
pub struct Source<'a> {
    /// Shares.
    mixture: Mixture,
    sources: Vec<(DataConfig, Open)>,
    /// The chat's marks.
    marks: &'a Marks,
    /// Pixels along a picture's side.
    side: usize,
    seed: u64,
}

/// Kinds of sources that a unified training takes.
pub const TAKES: [DataKind; 5] =
    [DataKind::Pictures, DataKind::Scenes, DataKind::Documents, DataKind::Conversations, DataKind::Text];

/// Part of a photograph that is left by a crop where a source does not say.
const SMALLEST_CROP: f32 = 0.85;

/// What samples are for.
pub struct Frame<'a> {
    /// Section `[mixture]`.
    pub mixture: Mixture,
    /// The chat's marks.
    pub marks: &'a Marks,
    /// Pixels along a picture's side.
    pub side: usize,
    /// Bits and grid of the image tokenizer, for codes that were made before.
    pub codes: (usize, usize),
    /// Seed.
    pub seed: u64,
    /// Share that is never trained on.
    pub held_out: f64,
}

impl<'a> Source<'a> {
    /// Opens what has a share; `say` is told a line a source.
    pub fn open(all: &[DataConfig], frame: &Frame<'a>, say: &mut dyn FnMut(&str)) -> Result<Self> {
        data::check(all, &TAKES)?;
        let mut sources = Vec::new();
        for config in all.iter().filter(|d| d.is_used()) {
            if matches!(config.kind, DataKind::Pictures | DataKind::Scenes) && config.template.is_none() {
                let why = "template is missing; write describe, draw, draw_then_describe, check, or edit (scenes)";
                return Err(Error::invalid(format!("[[data]] {}: {why}", config.name())));
            }
            let open = match (config.kind, &config.path) {
                (DataKind::Scenes, _) => Open::Scenes,
                (DataKind::Text, None) => Open::Talk,
                (DataKind::Pictures, _) => {
                    let (pictures, line) = config.pictures(frame.held_out)?;
                    say(&line);
                    pictures.needs_words(&config.place()?)?;
                    Open::Pictures(pictures)
                }
                (DataKind::Documents | DataKind::Text, _) => {
                    let documents = Documents::open(config, frame.codes.0, frame.codes.1)?;
                    say(&format!("{}: {}", config.place()?.display(), documents.summary()));
                    Open::Documents(documents.hold_out(frame.held_out)?)
                }
                (DataKind::Conversations, _) => {
                    let (entries, images, _) = conversations::open(config, say)?;
                    let held_out = HeldOut::of(frame.held_out, entries.len())?;
                    Open::Conversations(Conversations {
                        entries,
                        images,
                        broken: Broken::allowing(config.broken()),
                        held_out,
                    })
                }
            };
            sources.push((config.clone(), open));
        }
        Ok(Self { mixture: frame.mixture, sources, marks: frame.marks, side: frame.side, seed: frame.seed })
    }

    /// What could not be read so far.
    pub fn broken(&self) -> Vec<String> {
        let of = |(_, open): &(DataConfig, Open)| match open {
            Open::Pictures(p) => p.broken(),
            Open::Documents(d) => d.broken(),
            Open::Conversations(c) => c.broken.list(),
            Open::Talk | Open::Scenes => Vec::new(),
        };
        self.sources.iter().flat_map(of).collect()
    }

    /// The sample of one place in the training: the same for the same seed, step and row.
    pub fn sample(&self, step: usize, row: usize, held_out: bool) -> Result<Sample> {
        let stream = if held_out { 0x7661_6c69 } else { 0 };
        let mut r = rng::keyed(self.seed ^ stream, &[step as u64, row as u64]);
        let item = ((step as u64) << 20) + row as u64;
        let mut s = SceneRng::new(Split::Train, self.seed ^ 0x55 ^ stream, item);
        let at = if held_out { usize::MAX } else { step };
        let shares: Vec<f64> = self.sources.iter().map(|s| s.0.share(at, self.mixture.calm_down_steps)).collect();
        let (config, open) = &self.sources[data::draw(&shares, &mut r)];
        let template = config.template.unwrap_or(SampleTemplate::Describe);
        let sample = match open {
            Open::Talk => Ok(self.talk(&mut r)),
            Open::Documents(d) => d.draw(&self.marks.end, &mut r, held_out),
            Open::Conversations(c) => self.conversation(c, &mut r, held_out),
            Open::Scenes => self.of_scene(template, &mut r, &mut s),
            Open::Pictures(p) => {
                let smallest = config.smallest_crop.unwrap_or(SMALLEST_CROP);
                let (n, image) = p.draw(&mut r, held_out)?;
                let image = augment(&image, self.side, smallest, &mut r);
                let class = p.class(n).map(|c| p.classes[c].as_str()).filter(|_| !p.has_words(n));
                let shown = Photo { words: p.words_at(n, step), class, classes: &p.classes, image };
                self.of_photo(template, shown, &mut r, &mut s)
            }
        };
        Ok(Sample { weight: config.loss_weight.unwrap_or(1.0), ..sample? })
    }

    fn of_scene(&self, template: SampleTemplate, r: &mut Rng, s: &mut SceneRng) -> Result<Sample> {
        let mut out = Sample::default();
        match template {
            SampleTemplate::Edit => return Ok(self.editing(r, s)),
            SampleTemplate::Check => return self.checking(r, s),
            SampleTemplate::Describe => {
                let scene = Scene::random(s, Split::Train, 1, 4);
                let image = scenes::render(&scene, self.side);
                self.scene_words(&mut out, Some(image), &scene, 6, s);
            }
            SampleTemplate::Draw | SampleTemplate::DrawThenDescribe => {
                let describe = template == SampleTemplate::DrawThenDescribe;
                if !describe && s.chance(0.35) {
                    // a drawing that came before and has nothing to do with the next: else every second picture is a change of the first
                    let before = Scene::random(s, Split::Train, 1, 3);
                    self.drawing(&mut out, &scenes::caption(&before), scenes::render(&before, self.side), r);
                }
                // most as evaluated; the rest describe richer scenes
                let (words, scene) = if s.chance(0.8) {
                    let category = s.pick(&Category::PRACTICE);
                    let (p, scene) = scenes::prompt(s, Split::Train, category);
                    (p.text, scene)
                } else {
                    let scene = Scene::random(s, Split::Train, 1, 3);
                    (scenes::caption(&scene), scene)
                };
                let image = scenes::render(&scene, self.side);
                if describe && s.chance(0.5) {
                    self.drawn_and_described(&mut out, &words, image, &scene, s);
                    return Ok(out);
                }
                self.drawing(&mut out, &words, image, r);
                if describe {
                    self.scene_words(&mut out, None, &scene, 2, s);
                }
            }
        }
        Ok(out)
    }

    fn of_photo(&self, template: SampleTemplate, photo: Photo, r: &mut Rng, s: &mut SceneRng) -> Result<Sample> {
        let mut out = Sample::default();
        match template {
            SampleTemplate::Describe => {
                let image = photo.image.clone();
                self.photo_words(&mut out, Some(image), &photo, r);
            }
            SampleTemplate::Check => {
                let right = s.chance(0.5);
                let others: Vec<&String> = photo.classes.iter().filter(|c| Some(c.as_str()) != photo.class).collect();
                // words that are another picture's make a wrong drawing; without classes there are none to take
                let asked = match (right || others.is_empty(), photo.class) {
                    (false, Some(_)) => caption(others[rng::below(r, others.len())]),
                    _ => photo.words.clone(),
                };
                let fits = asked == photo.words;
                out.push(Piece::Text(self.marks.user.clone(), false));
                let ask = format!("{}{asked}", DRAW[rng::below(r, DRAW.len())]);
                self.drawn(&mut out, &ask, photo.image, fits);
                self.turn(&mut out, None, CHECK, yes_no(fits));
            }
            SampleTemplate::Draw | SampleTemplate::DrawThenDescribe | SampleTemplate::Edit => {
                self.drawing(&mut out, &photo.words, photo.image.clone(), r);
                if template == SampleTemplate::DrawThenDescribe {
                    self.photo_words(&mut out, None, &photo, r);
                }
            }
        }
        Ok(out)
    }

    /// A conversation as it stands: what the user says and shows is read, what the assistant says is learned.
    fn conversation(&self, from: &Conversations, r: &mut Rng, held_out: bool) -> Result<Sample> {
        loop {
            let n = from.held_out.draw(r, from.entries.len(), held_out);
            match self.turns_of(&from.entries[n], &from.images) {
                Ok(sample) => return Ok(sample),
                Err(e) => from.broken.note(n, from.entries.len(), &e)?,
            }
        }
    }

    fn turns_of(&self, entry: &Entry, images: &std::path::Path) -> Result<Sample> {
        let m = self.marks;
        let mut out = Sample { cut: true, ..Sample::default() };
        let mut pictures = entry.images().iter();
        for (learn, words) in learned_turns(entry) {
            let (open, close) = if learn { (&m.assistant, m.end.as_str()) } else { (&m.user, "") };
            out.push(Piece::Text(open.clone(), false));
            for (i, text) in words.split(IMAGE_MARK).enumerate() {
                if i > 0 {
                    let path = pictures.next().ok_or_else(|| Error::invalid("a mark without a picture"))?;
                    out.push(Piece::Image(crate::photos::centre(&Image::open(&images.join(path))?, self.side), learn));
                }
                let text = text.trim_matches('\n').replace("<|", "< |");
                if !text.is_empty() {
                    out.push(Piece::Text(text, learn));
                }
            }
            if learn {
                out.push(Piece::Text(close.to_owned(), true));
            }
        }
        Ok(out)
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
        if f64::from(rng::uniform(r)) < self.mixture.condition_dropout {
            // the picture and no words: the other half of a guidance that keeps the picture (InstructPix2Pix, section 3.2.1)
            out.push(Piece::Text(m.user.clone(), false));
            out.push(Piece::Image(picture, false));
            self.drawn(&mut out, "", scenes::render(&edit.scene, self.side), true);
            return out;
        }
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

    fn photo_words(&self, out: &mut Sample, image: Option<Image>, photo: &Photo, r: &mut Rng) {
        self.turn(out, image, DESCRIBE[rng::below(r, DESCRIBE.len())], &photo.words);
        let (Some(class), classes) = (photo.class, photo.classes) else { return };
        let other = &classes[rng::below(r, classes.len())];
        let asked = if rng::uniform(r) < 0.5 { class } else { other.as_str() };
        let question = format!("is this {}?", caption(asked).trim_start_matches("a photo of "));
        self.turn(out, None, &question, yes_no(asked == class));
    }
}

/// A picture and what is known of it.
struct Photo<'a> {
    image: Image,
    words: String,
    /// Where the words are made of it.
    class: Option<&'a str>,
    classes: &'a [String],
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
