//! A Janus checkpoint ready for conversation and for drawing.

use super::model::Janus;
use super::preprocess::JanusPreprocess;
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
use lm::{Part, Shared, Source, Token};
use qlip::Image;
use std::sync::Arc;

/// What the authors' processor puts before a conversation.
pub const SYSTEM: &str = "You are a helpful language and vision assistant. You are able to understand the visual content that the user \
                          provides, and assist the user with a variety of tasks using natural language.";

const PLACEHOLDER: &str = "<image_placeholder>";
const END_OF_SENTENCE: &str = "<｜end▁of▁sentence｜>";
const BEGIN_OF_SENTENCE: &str = "<｜begin▁of▁sentence｜>";

/// Tokens that a trimmed conversation leaves room for.
const TEXT_ROOM: usize = 256;

/// How the authors write a conversation ("deepseek" format): (role, content) in turns, contents and the whole stripped; an answer that
/// is still to come has no content.
pub fn prompt(system: &str, turns: &[(&str, &str)]) -> String {
    let mut text = if system.is_empty() { String::new() } else { format!("{system}\n\n") };
    for (i, (role, content)) in turns.iter().enumerate() {
        let content = content.trim();
        match content {
            "" => text.push_str(&format!("{role}:")),
            // a question is set apart by an empty line, an answer by its end
            _ => text.push_str(&format!("{role}: {content}{}", if i % 2 == 0 { "\n\n" } else { END_OF_SENTENCE })),
        }
    }
    text.trim().to_owned()
}

/// A model with its tokenizer and preprocessing.
pub struct JanusChat {
    /// The model.
    pub model: Arc<Janus>,
    engine: Shared,
    words: Words,
    preprocess: JanusPreprocess,
    device: Device,
    seen: Seen<Tensor>,
    /// Names of user and assistant: the first release writes them bare.
    roles: [&'static str; 2],
    placeholder: Token,
    begin: Token,
    end: Token,
    pad: Token,
    ends: Vec<Token>,
    generation: Generation,
}

impl JanusChat {
    /// Loads a model folder of either layout.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        let files = &artifact.files;
        let words = artifact.text_tokenizer()?;
        let mark = |m: &str| words.mark(m).map_err(|e| Error::bad_file(files.path_of("tokenizer.json"), e.to_string()));
        let model = Arc::new(Janus::load(artifact, placement)?);
        let defaults = GenerationFile::of(files)?;
        let image = Generation {
            image: lm::SampleSettings { temperature: 1.0, ..lm::SampleSettings::default() },
            guidance_scale: 5.0,
            ..defaults.generation()
        };
        Ok(Self {
            roles: if mark("<|User|>").is_ok() { ["<|User|>", "<|Assistant|>"] } else { ["User", "Assistant"] },
            placeholder: mark(PLACEHOLDER)?,
            begin: mark("<begin_of_image>")?,
            end: mark("<end_of_image>")?,
            // by its name: configs of several copies say another number
            pad: mark("<｜▁pad▁｜>")?,
            ends: vec![mark(END_OF_SENTENCE)?],
            generation: image,
            preprocess: JanusPreprocess::of(files, model.config.vision.image_size)?,
            engine: Shared::new(model.clone()),
            seen: Seen::new(),
            device: placement.device.clone(),
            words,
            model,
        })
    }

    /// The authors' settings.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    fn encode(&self, text: &str) -> Result<Vec<Token>> {
        self.words.encode(&format!("{BEGIN_OF_SENTENCE}{text}"))
    }

    /// Tokens of a conversation up to where the answer begins, one placeholder for each picture; and the pictures.
    fn context(&self, messages: &[Message]) -> Result<(Vec<Token>, Vec<Image>)> {
        let mut pictures = Vec::new();
        let mut turns = Vec::new();
        let mut system = SYSTEM.to_owned();
        for message in messages {
            // a picture stands on a line of its own
            let mut parts = Vec::new();
            for c in &message.content {
                match c {
                    Content::Text(t) => parts.push(self.words.typed(t.trim())),
                    Content::Image(i) => {
                        pictures.push(i.clone());
                        parts.push(PLACEHOLDER.to_owned());
                    }
                    Content::Codes(_) => return Err(Error::invalid("this model sees pictures, not codes")),
                }
            }
            match message.role {
                // in the place of the authors' own
                Role::System => system = parts.join("\n"),
                Role::User => turns.push((self.roles[0], parts.join("\n"))),
                Role::Assistant => turns.push((self.roles[1], parts.join("\n"))),
            }
        }
        turns.push((self.roles[1], String::new()));
        let turns: Vec<(&str, &str)> = turns.iter().map(|(r, c)| (*r, c.as_str())).collect();
        let ids = self.encode(&prompt(&system, &turns))?;
        let shown = ids.iter().filter(|&&t| t == self.placeholder).count();
        if shown != pictures.len() {
            return Err(Error::invalid(format!("{shown} places for {} pictures", pictures.len())));
        }
        Ok((ids, pictures))
    }

    /// What the engine reads: each placeholder as begin mark, features, end mark.
    fn parts(&self, ids: &[Token], pictures: &[Image]) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut shown = pictures.iter();
        for run in ids.split_inclusive(|&t| t == self.placeholder) {
            let Some((&last, words)) = run.split_last() else { continue };
            if last != self.placeholder {
                parts.push(Part::tokens(run));
                continue;
            }
            let picture = shown.next().ok_or_else(|| Error::invalid("fewer pictures than places"))?;
            let (key, features) = self.seen.get(picture, || self.features(picture))?;
            let keys = (0..features.dim(0)? as u64).map(|i| nn::rng::mix(key ^ i)).collect();
            parts.push(Part::tokens([words, &[self.begin]].concat()));
            parts.push(Part::Embedded(features, keys));
            parts.push(Part::tokens([self.end]));
        }
        Ok(parts)
    }

    fn features(&self, picture: &Image) -> Result<Tensor> {
        let pixels = self.preprocess.pixels(std::slice::from_ref(picture), &self.device)?;
        let pixels = qlip::Pixels(pixels.0.to_dtype(self.model.vq.dtype())?);
        Ok(self.model.project(&self.model.see(&pixels)?.1)?.squeeze(0)?)
    }

    /// Goes on from a text as it is.
    pub fn complete(&self, text: &str, request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        self.saying().complete(Some(self.words.mark(BEGIN_OF_SENTENCE)?), text, request, on)
    }

    /// What its words come from.
    pub(crate) fn engine(&self) -> &Shared {
        &self.engine
    }

    fn saying(&self) -> Saying<'_> {
        let rows = Source::rows(0..self.words.rows().min(self.model.config.text.vocab_size));
        let banned = vec![self.placeholder, self.begin, self.end];
        Saying { engine: &self.engine, words: &self.words, rows, banned, ends: self.ends.clone() }
    }

    /// Answers a conversation with words. What an earlier answer has read of it is not read again.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        request.generation.text.check()?;
        let (most, room) = (self.model.lm.max_positions(), request.max_tokens.min(TEXT_ROOM));
        let per = self.model.tokens_per_picture() + 1;
        let len = |c: &(Vec<Token>, Vec<Image>)| c.0.len() + c.1.len() * per;
        let (ids, pictures) = request.window.fit(messages, most, room, &|m| self.context(m), &len)?;
        self.saying().answer(self.parts(&ids, &pictures)?, request, on)
    }

    /// The likeliest words for each of several questions, all in one batch.
    pub fn answer_batch(&self, questions: &[Vec<Message>], max_tokens: usize) -> Result<Vec<String>> {
        let parts = |q: &Vec<Message>| {
            let (ids, pictures) = self.context(q)?;
            self.parts(&ids, &pictures)
        };
        let contexts = questions.iter().map(parts).collect::<Result<Vec<_>>>()?;
        self.saying().likeliest(contexts, max_tokens)
    }

    /// Draws a picture of each words with its seed, all in one batch. `on_row` sees the codes so far after each row and may stop, which
    /// then gives nothing.
    pub fn draw(
        &self,
        words: &[&str],
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(&[Vec<Token>]) -> bool,
    ) -> Result<Vec<Image>> {
        g.image.check()?;
        if !g.guidance_scale.is_finite() {
            return Err(Error::invalid(format!("guidance scale {}: use a finite number; 1 is none", g.guidance_scale)));
        }
        let request = |(words, &seed): (&&str, &u64)| {
            let words = self.words.typed(words);
            let mut ids = self.encode(&prompt("", &[(self.roles[0], &words), (self.roles[1], "")]))?;
            ids.push(self.begin);
            Ok(self.model.drawing(&ids, self.pad, g.guidance_scale, g.image, (seed, 1)))
        };
        let requests = words.iter().zip(seeds).map(request).collect::<Result<_>>()?;
        let done = pictures(&self.engine, requests, self.model.config.grid, &|_, code| code, on_row)?;
        let codes: Vec<Token> = done.into_iter().flat_map(|d| d.tokens).collect();
        if codes.is_empty() { Ok(Vec::new()) } else { self.model.paint(&codes) }
    }

    /// A picture of which only the first codes are drawn yet.
    pub fn sketch(&self, codes: &[Token]) -> Result<Image> {
        let grid = self.model.config.grid;
        let mut all = codes.to_vec();
        all.resize(grid * grid, codes.last().copied().unwrap_or(0));
        let side = self.model.config.vq.stride();
        let image = self.model.paint(&all)?.pop().ok_or_else(|| Error::invalid("no picture"))?;
        Ok(image.grey_below(codes.len() / grid.max(1) * side))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_written_as_the_authors_write_them() {
        let pro = ["<|User|>", "<|Assistant|>"];
        let turns =
            [(pro[0], "<image_placeholder>\nWhat is this?"), (pro[1], "A cat. "), (pro[0], "And?"), (pro[1], "")];
        assert_eq!(
            prompt("", &turns),
            "<|User|>: <image_placeholder>\nWhat is this?\n\n<|Assistant|>: A cat.<｜end▁of▁sentence｜><|User|>: And?\n\n<|Assistant|>:"
        );
        assert_eq!(
            prompt("S", &[("User", "  Hello there \n"), ("Assistant", "")]),
            "S\n\nUser: Hello there\n\nAssistant:"
        );
    }
}
