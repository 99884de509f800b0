//! The library's front door: a model by its name, asked in a line or two.

use crate::artifact::{Artifact, Placement, device};
use crate::conversation::{Content, Finish, Message, Reply, Request, Role};
use crate::loaded::Loaded;
use crate::{Error, Result};
use lm::{SampleSettings, Token};
use nn::WeightType;
use qlip::{Codes, Image};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

pub use crate::conversation::Event as LowEvent;
pub use crate::llamagen::Wanted;

/// A model. It is loaded when something is asked of it first; clones share it.
#[derive(Clone)]
pub struct Model {
    artifact: Artifact,
    at: Placement,
    loaded: Arc<Mutex<Option<Arc<Loaded>>>>,
}

/// What happens while an answer comes into being.
#[derive(Debug, Clone)]
pub enum Event {
    /// More words.
    Text(String),
    /// A picture begins.
    ImageStarted,
    /// A row of the picture's code grid is drawn.
    RowDone {
        /// Rows that are done.
        done: usize,
        /// Rows in all.
        rows: usize,
        /// Codes of the cells so far, for [`Loaded::sketch`].
        codes: Vec<u64>,
    },
    /// The picture.
    Image(Image),
    /// The answer is complete.
    Done(Reply),
}

/// An answer on its way: an iterator over its events, of which the last is [`Event::Done`] or an error. Dropping it stops the
/// answer.
pub struct Answer(Receiver<Result<Event>>);

impl Iterator for Answer {
    type Item = Result<Event>;
    fn next(&mut self) -> Option<Self::Item> {
        self.0.recv().ok()
    }
}

impl Answer {
    /// Waits for the whole answer.
    pub fn reply(self) -> Result<Reply> {
        for event in self {
            if let Event::Done(reply) = event? {
                return Ok(reply);
            }
        }
        Err(Error::Cancelled)
    }
}

/// How a picture is drawn; what is absent is as the model's authors want it.
#[derive(Debug, Clone, Default)]
pub struct Draw {
    /// Seed.
    pub seed: u64,
    /// Guidance scale; 1 is none.
    pub guidance_scale: Option<f32>,
    /// Sampling of the picture's tokens.
    pub sample: Option<SampleSettings>,
    /// Drawings of which the best is kept, by the model's own judgement, where it learned to judge.
    pub best_of: Option<usize>,
}

/// A class of a class-conditional model, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class(pub u32);

impl From<Class> for Wanted {
    fn from(c: Class) -> Self {
        Self::Class(c.0)
    }
}

impl From<&str> for Wanted {
    fn from(words: &str) -> Self {
        Self::Words(words.to_owned())
    }
}

impl From<String> for Wanted {
    fn from(words: String) -> Self {
        Self::Words(words)
    }
}

/// A message that says how to behave.
pub fn system(words: impl Into<String>) -> Message {
    Message { role: Role::System, content: vec![Content::Text(words.into())] }
}

/// A person's message: [`text`] and [`image`] parts in order.
pub fn user(parts: impl IntoIterator<Item = Content>) -> Message {
    Message { role: Role::User, content: parts.into_iter().collect() }
}

/// Words of a message.
pub fn text(words: impl Into<String>) -> Content {
    Content::Text(words.into())
}

/// A picture of a message.
pub fn image(picture: Image) -> Content {
    Content::Image(picture)
}

impl Model {
    /// Opens a folder, a file (.gguf, LlamaGen's .pt) or a hub id `owner/name[@revision]`; on the CPU, weights as they are
    /// stored.
    pub fn open(model: &str) -> Result<Self> {
        Ok(Self::of(Artifact::open(model)?))
    }

    /// The nano model that this library carries.
    pub fn nano() -> Result<Self> {
        Ok(Self::of(Artifact::nano()?))
    }

    fn of(artifact: Artifact) -> Self {
        Self { artifact, at: Placement::cpu(), loaded: Arc::default() }
    }

    /// The same, placed so.
    pub fn placed(self, at: Placement) -> Self {
        Self { at, loaded: Arc::default(), ..self }
    }

    /// The same with weights of this type; blocks (q8_0, q6_K, q4_K) work on the CPU.
    pub fn quantized(self, ty: WeightType) -> Result<Self> {
        if ty.is_blocks() && !self.at.device.is_cpu() {
            return Err(Error::Unsupported(format!("{} works on the CPU", ty.name())));
        }
        let at = Placement { weights: Some(ty), ..self.at.clone() };
        Ok(self.placed(at))
    }

    /// The same on a device: cpu, cuda or cuda:N.
    pub fn on(self, name: &str) -> Result<Self> {
        let at = Placement { device: device(name)?, ..self.at.clone() };
        Ok(self.placed(at))
    }

    /// What it is and where its files are.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// The model in memory; loads it where that has not been done.
    pub fn loaded(&self) -> Result<Arc<Loaded>> {
        let mut held = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*held {
            return Ok(loaded.clone());
        }
        let loaded = Arc::new(Loaded::load(&self.artifact, &self.at)?);
        *held = Some(loaded.clone());
        Ok(loaded)
    }

    /// Answers a conversation with the model's own settings.
    pub fn chat(&self, messages: impl IntoIterator<Item = Message>) -> Result<Answer> {
        let request = self.loaded()?.request(0);
        self.chat_with(messages, request)
    }

    /// Answers a conversation.
    pub fn chat_with(&self, messages: impl IntoIterator<Item = Message>, request: Request) -> Result<Answer> {
        self.artifact.must("answer a conversation", self.artifact.architecture.can().talk)?;
        let loaded = self.loaded()?;
        let messages: Vec<Message> = messages.into_iter().collect();
        // a slow listener slows the answer instead of filling memory
        let (to, from) = sync_channel(64);
        std::thread::Builder::new()
            .name("answer".into())
            .stack_size(16 << 20)
            .spawn(move || answer(&loaded, &messages, &request, &to))
            .map_err(|e| Error::invalid(format!("no thread could be started: {e}")))?;
        Ok(Answer(from))
    }

    /// The likeliest words for each of several conversations, all in one batch.
    pub fn words(&self, questions: &[Vec<Message>], max_tokens: usize) -> Result<Vec<String>> {
        self.loaded()?.words(questions, max_tokens)
    }

    /// Draws a picture: of words, or of a [`Class`].
    pub fn draw(&self, wanted: impl Into<Wanted>, how: &Draw) -> Result<Image> {
        self.draw_many(&[wanted.into()], how)?.pop().ok_or(Error::Cancelled)
    }

    /// Draws a picture of each wanted thing, all in one batch; the n-th has the seed of `how` and n.
    pub fn draw_many(&self, wanted: &[Wanted], how: &Draw) -> Result<Vec<Image>> {
        let loaded = self.loaded()?;
        let (settings, best_of) = loaded.drawing();
        let mut settings = settings.guided(how.guidance_scale).heated(how.sample.map(|s| s.temperature));
        settings.sample = how.sample.unwrap_or(settings.sample);
        let seeds: Vec<u64> = (0..wanted.len() as u64).map(|i| how.seed.wrapping_add(i)).collect();
        loaded.draw(wanted, &seeds, (&settings, how.best_of.unwrap_or(best_of)), &mut |_| true)
    }

    fn with_eyes<T>(&self, what: &str, f: impl FnOnce(&crate::eyes::Eyes) -> Result<T>) -> Result<T> {
        let loaded = self.loaded()?;
        match loaded.eyes() {
            Some(eyes) => f(eyes),
            None => Err(Error::Unsupported(format!("this model does not {what}; a QLIP or a unified model does"))),
        }
    }

    /// Probabilities of labels for each picture; each label stands in "a photo of a ...".
    pub fn classify(&self, images: &[Image], labels: &[&str]) -> Result<Vec<Vec<f32>>> {
        let labels: Vec<String> = labels.iter().map(|l| (*l).to_owned()).collect();
        self.with_eyes("classify", |e| e.classify(images, &e.label_vectors(&labels, &["a photo of a {}"])?))
    }

    /// Unit vectors of pictures, in the space of [`Self::embed_text`].
    pub fn embed_images(&self, images: &[Image]) -> Result<Vec<Vec<f32>>> {
        self.with_eyes("embed pictures", |e| e.image_vectors(images))
    }

    /// Unit vectors of words, in the space of [`Self::embed_images`].
    pub fn embed_text(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        self.with_eyes("embed words", |e| {
            Ok(e.label_vectors(texts, &["{}"])?.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?)
        })
    }

    /// Codes of pictures.
    pub fn encode(&self, images: &[Image]) -> Result<Codes> {
        self.with_eyes("make codes of pictures", |e| e.encode(images))
    }

    /// Pictures of codes.
    pub fn decode(&self, codes: &Codes) -> Result<Vec<Image>> {
        self.with_eyes("make pictures of codes", |e| e.decode(codes))
    }

    /// Ids of words in its text tokenizer.
    pub fn tokenize(&self, words: &str) -> Result<Vec<Token>> {
        self.artifact.text_tokenizer()?.encode(words)
    }
}

/// A picture from a file, upright.
pub fn picture(path: impl AsRef<Path>) -> Result<Image> {
    Image::open(path.as_ref())
}

fn answer(loaded: &Loaded, messages: &[Message], request: &Request, to: &SyncSender<Result<Event>>) {
    let mut on = |event: LowEvent| {
        let event = match event {
            LowEvent::Text(t) => Event::Text(t.to_owned()),
            LowEvent::ImageStarted => Event::ImageStarted,
            LowEvent::RowDone { done, rows, codes } => Event::RowDone { done, rows, codes: codes.to_vec() },
            LowEvent::ImageFinished(i) => Event::Image(i.clone()),
        };
        to.send(Ok(event)).is_ok()
    };
    let last = match loaded.answer(messages, request, &mut on) {
        Ok(reply) if reply.finish == Some(Finish::Cancelled) => Err(Error::Cancelled),
        Ok(reply) => Ok(Event::Done(reply)),
        Err(e) => Err(e),
    };
    // nobody may be listening any more
    let _ = to.send(last);
}
