//! A Chameleon or Anole ready for conversation: words, pictures, and both in one answer.

use super::model::Chameleon;
use super::preprocess;
use crate::artifact::{Artifact, Placement};
use crate::config::Generation;
use crate::conversation::{Content, Event, Message, Reply, Request, Role, TextStream};
use crate::generation::GenerationFile;
use crate::say::Saying;
use crate::seen::Seen;
use crate::words::Words;
use crate::{Error, Result};
use candle_core::Device;
use lm::draw::pictures;
use lm::engine::{Context, Finish, Part, Shared, Source};
use lm::{SampleSettings, Token};
use qlip::Image;
use std::sync::Arc;

/// Tokens that a trimmed conversation leaves room for.
const TEXT_ROOM: usize = 256;

/// The authors' guidance: pictures over nothing, words over pictures.
pub const SCALES: [f32; 2] = [1.2, 3.0];

/// Ends a turn.
const TURN_ENDS: [&str; 1] = ["<reserved08706>"];

/// A model with its tokenizer.
pub struct ChameleonChat {
    /// The model.
    pub model: Arc<Chameleon>,
    engine: Shared,
    words: Words,
    device: Device,
    seen: Seen<Vec<Token>>,
    turn_ends: Token,
    generation: Generation,
}

impl ChameleonChat {
    /// Loads a model folder.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        let words = artifact.text_tokenizer()?;
        let model = Arc::new(Chameleon::load(artifact, placement)?);
        let defaults = GenerationFile::of(&artifact.files)?.generation();
        let (image, guidance_scale) = Self::drawing();
        Ok(Self {
            turn_ends: model.config.mark(&TURN_ENDS)?,
            generation: Generation { image, guidance_scale, ..defaults },
            engine: Shared::new(model.lm.clone()),
            seen: Seen::new(),
            device: placement.device.clone(),
            words,
            model,
        })
    }

    /// How the authors sample codes, and the weight of their words.
    pub fn drawing() -> (SampleSettings, f32) {
        (SampleSettings { temperature: 0.7, top_p: 0.9, ..SampleSettings::default() }, SCALES[1])
    }

    /// The model's settings.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether it can draw: Meta's own files hold no picture decoder.
    pub fn draws(&self) -> bool {
        self.model.vq.paints()
    }

    pub(crate) fn engine(&self) -> &Shared {
        &self.engine
    }

    /// Tokens of a conversation up to where the answer begins.
    fn context(&self, messages: &[Message]) -> Result<Vec<Token>> {
        let m = &self.model;
        let mut ids = vec![m.bos];
        for message in messages {
            for c in &message.content {
                match c {
                    Content::Text(t) => ids.extend(self.words.encode(&self.words.typed(t))?),
                    Content::Image(i) => ids.extend(self.shown(&self.seen.get(i, || self.codes(i))?.1)),
                    Content::Codes(codes) => {
                        let token = |&c: &u64| u32::try_from(c).ok().and_then(|c| m.config.codes.token(c));
                        let tokens: Option<Vec<Token>> = codes.iter().map(token).collect();
                        let tokens = tokens.filter(|t| t.len() == m.codes_per_picture());
                        ids.extend(
                            self.shown(&tokens.ok_or_else(|| Error::invalid("codes of no picture of this model"))?),
                        );
                    }
                }
            }
            // a system's words stand before the user's, as one turn
            if message.role != Role::System {
                ids.push(self.turn_ends);
            }
        }
        Ok(ids)
    }

    /// A picture's tokens between its marks.
    fn shown(&self, tokens: &[Token]) -> Vec<Token> {
        [&[self.model.begin], tokens, &[self.model.end]].concat()
    }

    fn codes(&self, picture: &Image) -> Result<Vec<Token>> {
        crate::photos::not_too_long(picture)?;
        let pixels = preprocess::pixels(std::slice::from_ref(picture), self.model.config.resolution, &self.device)?;
        self.model.read(&qlip::Pixels(pixels.0.to_dtype(self.model.vq.dtype())?))
    }

    /// Answers a conversation with words and, where it can draw, pictures among them.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        request.generation.text.check()?;
        request.generation.image.check()?;
        let (most, room) = (self.model.lm.max_positions(), request.max_tokens.min(TEXT_ROOM));
        let ids = request.window.fit(messages, most, room, &|m| self.context(m), &Vec::len)?;
        self.go_on(ids, request, on)
    }

    /// Goes on from a text as it is.
    pub fn complete(&self, text: &str, request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        request.generation.text.check()?;
        let words = self.words.encode(&self.words.typed(text))?;
        self.go_on([vec![self.model.bos], words].concat(), request, on)
    }

    fn go_on(&self, mut ids: Vec<Token>, r: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        let m = &self.model;
        let mut reply = Reply { prompt_tokens: ids.len(), ..Reply::default() };
        let mut stream = TextStream::new(&self.words, &r.stop);
        // a picture takes its codes and two marks
        let takes = m.codes_per_picture() + 2;
        for part in 0u64.. {
            let place = m.lm.max_positions().saturating_sub(ids.len());
            let pictures = self.draws() && place > takes;
            let saying = self.saying(pictures);
            // a picture that begins after these words still has its place
            let room = if pictures { place - takes } else { place.saturating_sub(1) };
            let wanted = r.max_tokens.saturating_sub(reply.text_tokens);
            let left = wanted.min(room);
            let seen = ids.clone();
            let done = saying.say(
                Context::new(vec![Part::tokens(ids.clone())]),
                r,
                (2 * part, seen),
                left,
                &mut stream,
                on,
            )?;
            if part == 0 {
                reply.reused_tokens = done.reused;
            }
            let begins = done.tokens.last() == Some(&m.begin);
            let mut said = done.tokens;
            if said.last().is_some_and(|t| saying.ends.contains(t)) && !begins {
                said.pop();
            }
            ids.extend(&said);
            reply.tokens.extend(&said);
            reply.finish = Some(if stream.is_stopped() { Finish::Stop } else { done.finish });
            self.engine.remember(&[Part::tokens(ids.clone())], &done.slot);
            if !begins {
                // the words go on without a picture where only its place was missing
                if pictures && done.finish == Finish::Length && room < wanted {
                    stream.finish(&mut reply, on)?;
                    continue;
                }
                break;
            }
            stream.finish(&mut reply, on)?;
            let drawing = m.drawing(
                ids.clone(),
                self.scales(r.generation.guidance_scale),
                r.generation.image,
                (r.seed, 2 * part + 1),
            );
            let Some(drawn) = self.one(drawing, on)? else {
                reply.finish = Some(Finish::Cancelled);
                break;
            };
            ids.extend(drawn.iter().chain([&m.end]));
            reply.tokens.extend(drawn.iter().chain([&m.end]));
            let image = self.paint(&drawn)?.pop().ok_or_else(|| Error::invalid("no picture"))?;
            let codes = drawn.iter().filter_map(|&t| m.config.codes.code(t)).map(u64::from).collect();
            let goes_on = on(Event::ImageFinished(&image));
            reply.content.push(Content::Codes(codes));
            reply.images.push(image);
            if !goes_on {
                reply.finish = Some(Finish::Cancelled);
                break;
            }
        }
        stream.finish(&mut reply, on)?;
        Ok(reply)
    }

    /// A picture's tokens; nothing where the listener stopped it.
    fn one(&self, request: lm::Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Option<Vec<Token>>> {
        let grid = self.model.config.grid();
        if !on(Event::ImageStarted) {
            return Ok(None);
        }
        let code = |t: &Token| self.model.config.codes.code(*t).map(u64::from);
        let mut row = |all: &[Vec<Token>]| {
            let codes: Vec<u64> = all[0].iter().filter_map(code).collect();
            on(Event::RowDone { done: codes.len() / grid.max(1), rows: grid, codes: &codes })
        };
        let done = pictures(&self.engine, vec![request], grid, &|_, t| t, &mut row)?;
        Ok(done.into_iter().next().map(|d| d.tokens).filter(|t| t.len() == self.model.codes_per_picture()))
    }

    /// The three contexts' weights; the words' own is what a person sets.
    fn scales(&self, guidance: f32) -> Option<[f32; 2]> {
        (guidance != 1.0).then_some([SCALES[0], guidance])
    }

    fn saying(&self, pictures: bool) -> Saying<'_> {
        let m = &self.model;
        let ends: Vec<Token> = [m.eos, self.turn_ends].into_iter().chain(pictures.then_some(m.begin)).collect();
        let banned = m.not_words().iter().copied().filter(|t| !ends.contains(t)).collect();
        let rows = Source::rows(0..m.config.text.vocab_size);
        Saying { engine: &self.engine, words: &self.words, rows, banned, ends }
    }

    /// The likeliest words for each of several questions, all in one batch.
    pub fn answer_batch(&self, questions: &[Vec<Message>], max_tokens: usize) -> Result<Vec<String>> {
        let parts = |q: &Vec<Message>| Ok(vec![Part::tokens(self.context(q)?)]);
        let contexts = questions.iter().map(parts).collect::<Result<Vec<_>>>()?;
        self.saying(false).likeliest(contexts, max_tokens)
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
        if !self.draws() {
            let why = "this Chameleon's files hold no picture decoder; Anole's do (leloy/Anole-7b-v0.1-hf)";
            return Err(Error::Unsupported(why.into()));
        }
        let request = |(words, &seed): (&&str, &u64)| {
            let mut ids = self.context(&[Message::user(*words)])?;
            ids.push(self.model.begin);
            Ok(self.model.drawing(ids, self.scales(g.guidance_scale), g.image, (seed, 1)))
        };
        let requests = words.iter().zip(seeds).map(request).collect::<Result<_>>()?;
        let done = pictures(&self.engine, requests, self.model.config.grid(), &|_, t| t, on_row)?;
        let tokens: Vec<Token> = done.into_iter().flat_map(|d| d.tokens).collect();
        if tokens.is_empty() { Ok(Vec::new()) } else { self.paint(&tokens) }
    }

    fn paint(&self, tokens: &[Token]) -> Result<Vec<Image>> {
        self.model.paint(tokens)?.to_images()
    }

    /// A picture of which only the first tokens are drawn yet.
    pub fn sketch(&self, tokens: &[Token]) -> Result<Image> {
        let (grid, all) = (self.model.config.grid(), self.model.codes_per_picture());
        let mut filled = tokens.to_vec();
        let first = self.model.config.codes.token(0).unwrap_or(0);
        filled.resize(all, tokens.last().copied().unwrap_or(first));
        let image = self.paint(&filled)?.pop().ok_or_else(|| Error::invalid("no picture"))?;
        let rows = tokens.len() / grid.max(1);
        Ok(image.grey_below(rows * self.model.config.vq.stride()))
    }

    /// The same of an answer's codes.
    pub fn sketch_codes(&self, codes: &[u64]) -> Result<Image> {
        let token = |&c: &u64| u32::try_from(c).ok().and_then(|c| self.model.config.codes.token(c));
        let tokens: Option<Vec<Token>> = codes.iter().map(token).collect();
        self.sketch(&tokens.ok_or_else(|| Error::invalid("codes of no picture of this model"))?)
    }
}
