//! An Emu3 ready for conversation (Emu3-Chat) and for drawing (Emu3-Gen).

use super::model::{Emu3, fitted};
use crate::artifact::{Artifact, Placement};
use crate::config::Generation;
use crate::conversation::{Content, Event, Message, Reply, Request, Role};
use crate::generation::GenerationFile;
use crate::say::Saying;
use crate::seen::Seen;
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use lm::draw::pictures;
use lm::engine::{Part, Shared, Source};
use lm::{SampleSettings, Token};
use qlip::Image;
use serde::Deserialize;
use std::sync::Arc;

/// What the authors' processor puts before a conversation.
const SYSTEM: &str = "You are a helpful assistant.";

/// What the authors' drawing adds to a request, and what it is guided away from.
const QUALITY: &str = " masterpiece, film grained, best quality.";
const NEGATIVE: &str = "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low \
                        quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.";

/// Tokens that a trimmed conversation leaves room for.
const TEXT_ROOM: usize = 256;

/// Area of a drawn picture in pixels: the authors' 720 x 720.
const AREA: usize = 720 * 720;

/// preprocessor_config.json; what it leaves out has the authors' values.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Seeing {
    min_pixels: usize,
    max_pixels: usize,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

impl Default for Seeing {
    fn default() -> Self {
        Self { min_pixels: 512 * 512, max_pixels: 1024 * 1024, image_mean: [0.5; 3], image_std: [0.5; 3] }
    }
}

/// A model with its tokenizer and preprocessing.
pub struct Emu3Chat {
    /// The model.
    pub model: Arc<Emu3>,
    engine: Shared,
    words: Words,
    device: Device,
    seeing: Seeing,
    seen: Seen<Vec<Token>>,
    bos: Token,
    /// Codes and marks of pictures: no words.
    banned: Vec<Token>,
    generation: Generation,
}

impl Emu3Chat {
    /// Loads a model folder.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        let files = &artifact.files;
        let words = artifact.text_tokenizer()?;
        let model = Arc::new(Emu3::load(artifact, placement)?);
        let name = "preprocessor_config.json";
        let seeing: Seeing = match files.has(name) {
            true => qlip::config::parse_json(&files.path_of(name), &files.text(name)?)?,
            false => Seeing::default(),
        };
        let marks = [model.image, model.eol, model.eof, model.begin, model.codes_begin, model.end];
        let defaults = GenerationFile::of(files)?.generation();
        let (image, guidance_scale) = Self::drawing();
        Ok(Self {
            bos: model.config.mark("<|extra_203|>")?,
            banned: model.config.codes.tokens().iter().copied().chain(marks).collect(),
            generation: Generation { image, guidance_scale, ..defaults },
            engine: Shared::new(model.lm.clone()),
            seen: Seen::new(),
            device: placement.device.clone(),
            seeing,
            words,
            model,
        })
    }

    /// How the authors sample codes, and their guidance.
    pub fn drawing() -> (SampleSettings, f32) {
        (SampleSettings { temperature: 1.0, top_k: 2048, ..SampleSettings::default() }, 3.0)
    }

    /// The authors' settings.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn engine(&self) -> &Shared {
        &self.engine
    }

    /// Tokens of a conversation up to where the answer begins: "You are a helpful assistant. USER: {picture}{question}. ASSISTANT:".
    fn context(&self, messages: &[Message]) -> Result<Vec<Token>> {
        let (mut ids, mut text) = (vec![self.bos], String::new());
        let system = messages.iter().find(|m| m.role == Role::System);
        let said = |m: &Message| -> String {
            let words = |c: &Content| if let Content::Text(t) = c { Some(self.words.typed(t)) } else { None };
            m.content.iter().filter_map(words).collect::<Vec<_>>().join(" ")
        };
        text.push_str(&system.map_or(SYSTEM.to_owned(), said));
        for message in messages.iter().filter(|m| m.role != Role::System) {
            if message.role == Role::Assistant {
                text.push_str(&format!(" ASSISTANT: {}", said(message)));
                continue;
            }
            text.push_str(" USER: ");
            for c in &message.content {
                match c {
                    Content::Text(t) => text.push_str(&self.words.typed(t)),
                    Content::Image(i) => {
                        ids.extend(self.words.encode(&text)?);
                        text.clear();
                        ids.extend(self.seen.get(i, || self.tokens(i))?.1);
                    }
                    Content::Codes(_) => return Err(Error::invalid("this model sees pictures, not codes")),
                }
            }
            // the authors' full stop
            text.push('.');
        }
        text.push_str(" ASSISTANT:");
        ids.extend(self.words.encode(&text)?);
        Ok(ids)
    }

    /// A picture as it stands in a conversation: its size in words, rows of codes, marks.
    fn tokens(&self, picture: &Image) -> Result<Vec<Token>> {
        crate::photos::not_too_long(picture)?;
        let m = &self.model;
        let factor = m.config.vq.net.stride();
        let limits = (self.seeing.min_pixels, self.seeing.max_pixels);
        let small = fitted(picture, factor, limits);
        let (h, w) = (small.height(), small.width());
        let mut values = vec![0f32; 3 * h * w];
        for (i, px) in small.rgb().chunks_exact(3).enumerate() {
            for c in 0..3 {
                values[c * h * w + i] =
                    (f32::from(px[c]) / 255.0 - self.seeing.image_mean[c]) / self.seeing.image_std[c];
            }
        }
        let pixels = Tensor::from_vec(values, (1, 3, h, w), &self.device)?.to_dtype(m.vq.dtype())?;
        let (codes, rows, columns) = m.read(&qlip::Pixels(pixels))?;
        let size = self.words.encode(&format!("{rows}*{columns}"))?;
        let rows = m.tokens(&codes, columns)?;
        Ok([&[m.begin], &size[..], &[m.codes_begin], &rows[..], &[m.eof, m.end]].concat())
    }

    /// Answers a conversation with words. What an earlier answer has read of it is not read again.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        request.generation.text.check()?;
        let (most, room) = (self.model.lm.max_positions(), request.max_tokens.min(TEXT_ROOM));
        let ids = request.window.fit(messages, most, room, &|m| self.context(m), &Vec::len)?;
        self.saying().answer(vec![Part::tokens(ids)], request, on)
    }

    /// Goes on from a text as it is.
    pub fn complete(&self, text: &str, request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        self.saying().complete(Some(self.bos), text, request, on)
    }

    /// The likeliest words for each of several questions, all in one batch.
    pub fn answer_batch(&self, questions: &[Vec<Message>], max_tokens: usize) -> Result<Vec<String>> {
        let parts = |q: &Vec<Message>| Ok(vec![Part::tokens(self.context(q)?)]);
        let contexts = questions.iter().map(parts).collect::<Result<Vec<_>>>()?;
        self.saying().likeliest(contexts, max_tokens)
    }

    fn saying(&self) -> Saying<'_> {
        let rows = Source::rows(0..self.model.config.text.vocab_size);
        let banned = self.banned.clone();
        Saying { engine: &self.engine, words: &self.words, rows, banned, ends: vec![self.model.eos] }
    }

    /// Rows and columns of a drawn picture: square, of the authors' area, or what the window holds.
    pub fn grid(&self) -> usize {
        let factor = self.model.config.vq.net.stride().max(1);
        let side = (AREA as f64).sqrt() as usize / factor;
        let room = self.model.lm.max_positions().saturating_sub(TEXT_ROOM);
        // codes, a mark a row, and three at the end
        (1..=side).rev().find(|n| n * (n + 1) + 3 <= room).unwrap_or(1)
    }

    /// Draws a picture of each words with its seed, all in one batch.
    pub fn draw(
        &self,
        words: &[&str],
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(&[Vec<Token>]) -> bool,
    ) -> Result<Vec<Image>> {
        g.image.check()?;
        let (m, grid) = (&self.model, self.grid());
        let prompt = |words: &str| -> Result<Vec<Token>> {
            let mut ids = vec![self.bos];
            ids.extend(self.words.encode(words)?);
            ids.push(m.begin);
            ids.extend(self.words.encode(&format!("{grid}*{grid}"))?);
            ids.push(m.codes_begin);
            Ok(ids)
        };
        let negative = prompt(NEGATIVE)?;
        let request = |(words, &seed): (&&str, &u64)| {
            let asked = prompt(&format!("{}{QUALITY}", self.words.typed(words)))?;
            Ok(m.drawing(&asked, Some((&negative, g.guidance_scale)), (grid, grid), g.image, (seed, 1)))
        };
        let requests = words.iter().zip(seeds).map(request).collect::<Result<_>>()?;
        let done = pictures(&self.engine, requests, grid + 1, &|_, t| t, on_row)?;
        done.into_iter().map(|d| self.paint(&d.tokens)).collect()
    }

    /// A picture of its tokens, marks among them.
    fn paint(&self, tokens: &[Token]) -> Result<Image> {
        let grid = self.grid();
        let mut codes: Vec<u32> = tokens.iter().filter_map(|&t| self.model.config.codes.code(t)).collect();
        codes.resize(grid * grid, codes.last().copied().unwrap_or(0));
        let pixels = self.model.vq.pictures(&codes, grid, grid)?;
        pixels.to_images()?.pop().ok_or_else(|| Error::invalid("no picture"))
    }

    /// A picture of which only the first tokens are drawn yet.
    pub fn sketch(&self, tokens: &[Token]) -> Result<Image> {
        let rows = tokens.len() / (self.grid() + 1);
        Ok(self.paint(tokens)?.grey_below(rows * self.model.config.vq.net.stride()))
    }
}
