//! One object that understands, draws and interleaves.

use crate::artifact::{Architecture, Artifact, Placement};
use crate::config::UnifiedConfig;
use crate::conversation::{Content, Event, Finish, Message, Reply, Request, TextStream};
use crate::draw::{Drawn, picture_seed};
use crate::eyes::Eyes;
use crate::say::Saying;
use crate::seen::Seen;
use crate::template::{Conversation, DEFAULT_TEMPLATE, Template};
use crate::words::Words;
use crate::{Error, Result};
use lm::{Context, Llama, Part, Shared, Source, Token};
use qlip::{Codes, Image};
use std::sync::Arc;

/// Text tokens that a trimmed conversation leaves room for, besides one picture.
const TEXT_ROOM: usize = 128;

/// A unified model with everything around it.
pub struct Unified {
    /// Its configuration.
    pub config: UnifiedConfig,
    /// The image tokenizer.
    pub eyes: Eyes,
    pub(crate) model: Arc<Llama>,
    pub(crate) engine: Shared,
    pub(crate) words: Words,
    template: Template,
    end: Token,
    seen: Seen<Vec<u64>>,
}

impl Unified {
    /// Loads a model folder.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        artifact.must("chat and draw as a unified model", artifact.architecture == Architecture::Unified)?;
        let files = &artifact.files;
        let path = files.path_of("config.json");
        let config: UnifiedConfig = artifact.config()?;
        let fits = config.vocabulary.check().and_then(|()| {
            let rows = config.vocabulary.rows();
            if rows == config.text_config.vocab_size {
                return Ok(());
            }
            Err(Error::invalid(format!(
                "vocab_size {} is not the vocabulary's {rows} rows",
                config.text_config.vocab_size
            )))
        });
        fits.map_err(|e| Error::bad_file(&path, e.to_string()))?;
        let why = || Error::bad_file(&path, format!("image_tokenizer: no folder `{}` here", config.image_tokenizer));
        let eyes = Eyes::load(&artifact.part(&config.image_tokenizer)?.ok_or_else(why)?, placement, true)?;
        if eyes.model.bsq.bits != config.vocabulary.bits || eyes.model.grid() != config.vocabulary.grid {
            return Err(Error::bad_file(&path, "the vocabulary's bits or grid are not the image tokenizer's"));
        }
        let model = Arc::new(Llama::of_vocab(&artifact.params(placement)?, &config.text_config, &config.vocabulary)?);
        let words = artifact.text_tokenizer()?;
        let template = Template::of_model(files)?.map_or_else(|| Template::new(DEFAULT_TEMPLATE), Ok)?;
        let end = words.mark(&config.marks.end)?;
        let engine = Shared::new(model.clone());
        Ok(Self { config, eyes, model, engine, words, template, end, seen: Seen::new() })
    }

    /// The language model.
    pub fn language_model(&self) -> &Llama {
        &self.model
    }

    /// The text tokenizer.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// A request with the model's own settings.
    pub fn request(&self, seed: u64) -> Request {
        Request { generation: self.config.generation, seed, max_tokens: 256, ..Request::greedy(256) }
    }

    /// Token ids of a conversation, up to where the answer begins.
    pub fn context(&self, messages: &[Message]) -> Result<Vec<Token>> {
        let m = &self.config.marks;
        let placeholder = format!("{}{}", m.begin_image, m.end_image);
        let mut pictures = Vec::new();
        let mut json = Vec::new();
        for message in messages {
            let mut content = Vec::new();
            for c in &message.content {
                match c {
                    // a mark typed by a person is words, not a mark
                    Content::Text(t) => content.push(serde_json::json!({"type": "text", "text": self.words.typed(t)})),
                    Content::Image(i) => {
                        let encode = || Ok(self.eyes.encode(std::slice::from_ref(i))?.indices);
                        pictures.push(self.seen.get(i, encode)?.1);
                        content.push(serde_json::json!({"type": "image"}));
                    }
                    Content::Codes(c) => {
                        let v = &self.config.vocabulary;
                        if c.len() != v.grid * v.grid || c.iter().any(|&code| code >> v.bits != 0) {
                            let (n, cells, bits) = (c.len(), v.grid * v.grid, v.bits);
                            return Err(Error::invalid(format!(
                                "a picture of {n} codes; this model's have {cells} of {bits} bits"
                            )));
                        }
                        pictures.push(c.clone());
                        content.push(serde_json::json!({"type": "image"}));
                    }
                }
            }
            json.push(serde_json::json!({"role": message.role.name(), "content": content}));
        }
        self.template.takes(messages)?;
        let messages = serde_json::Value::Array(json);
        let text = self.template.render(&Conversation::to_answer(&messages, "", &m.end))?;
        let mut pieces = text.split(placeholder.as_str());
        let mut ids = self.words.encode(pieces.next().unwrap_or(""))?;
        let mut shown = pictures.iter();
        for piece in pieces {
            let codes =
                shown.next().ok_or_else(|| Error::invalid("the chat template shows more pictures than there are"))?;
            ids.push(self.config.vocabulary.begin_image);
            ids.extend(self.config.vocabulary.to_tokens(codes));
            ids.push(self.config.vocabulary.end_image);
            ids.extend(self.words.encode(piece)?);
        }
        if shown.next().is_some() {
            return Err(Error::invalid("the chat template leaves pictures out"));
        }
        Ok(ids)
    }

    /// Answers a conversation with words and pictures in any order, never malformed. What an earlier answer has read of the
    /// conversation is not read again.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        self.check(&request.generation)?;
        let (v, most) = (&self.config.vocabulary, self.model.max_positions());
        let room = v.tokens_per_image() + 2 + TEXT_ROOM.min(request.max_tokens);
        let ids = request.window.fit(messages, most, room, &|m| self.context(m), &Vec::len)?;
        let mut reply = Reply { prompt_tokens: ids.len(), ..Reply::default() };
        let mut stream = TextStream::new(&self.words, &request.stop);
        let mut context = Context::new(vec![Part::tokens(ids.clone())]);
        let saying = self.saying(vec![self.end, v.begin_image]);
        let slot = loop {
            let left = request.max_tokens.saturating_sub(reply.text_tokens);
            // the repetition penalty speaks of the whole conversation
            let seen: Vec<Token> =
                ids.iter().chain(&reply.tokens).copied().filter(|&t| (t as usize) < v.text).collect();
            let stream_key = reply.images.len() as u64 * 2;
            let mut done = saying.say(context, request, (stream_key, seen), left, &mut stream, on)?;
            reply.reused_tokens = reply.reused_tokens.max(done.reused);
            reply.finish = Some(if stream.is_stopped() { Finish::Stop } else { done.finish });
            let last = done.tokens.last().copied();
            if last == Some(self.end) {
                done.tokens.pop();
            }
            let held = done.slot.len();
            let fits = held + v.tokens_per_image() + 2 <= most;
            let draws = last == Some(v.begin_image) && done.finish == Finish::Stop && !stream.is_stopped();
            if draws && !fits {
                // the window is full: no picture begins that would not fit
                done.tokens.pop();
                reply.finish = Some(Finish::Length);
            }
            reply.tokens.extend(&done.tokens);
            if !draws || !fits {
                break done.slot;
            }
            stream.finish(&mut reply, on)?;
            if !on(Event::ImageStarted) {
                reply.finish = Some(Finish::Cancelled);
                return Ok(reply);
            }
            let mut rows = |tokens: &[Vec<Token>]| {
                let codes = v.cells(&tokens[0]).unwrap_or_default();
                on(Event::RowDone { done: codes.len() / v.grid, rows: v.grid, codes: &codes })
            };
            let seed = picture_seed(request.seed, reply.images.len());
            let begun = Context::after(done.slot, vec![Part::tokens(vec![v.begin_image])]);
            let said: Vec<Token> = ids.iter().chain(&reply.tokens).copied().collect();
            let wish = self.wish(begun, &said, &request.generation)?;
            let drawn = self.draw_best(vec![wish], &[seed], &request.generation, &mut rows)?;
            let Some(Drawn { tokens, codes, slot }) = drawn.into_iter().next() else {
                reply.finish = Some(Finish::Cancelled);
                return Ok(reply);
            };
            // the last visual token and the end mark are not read yet
            let unread = [tokens[tokens.len() - 1], v.end_image];
            reply.tokens.extend(tokens.into_iter().chain([v.end_image]));
            let image = self.decode(std::slice::from_ref(&codes))?.pop();
            reply.content.push(Content::Codes(codes));
            if let Some(image) = image {
                let go_on = on(Event::ImageFinished(&image));
                reply.images.push(image);
                if !go_on {
                    reply.finish = Some(Finish::Cancelled);
                    return Ok(reply);
                }
            }
            context = Context::after(slot, vec![Part::tokens(unread)]);
        };
        stream.finish(&mut reply, on)?;
        self.engine.remember(&[Part::tokens(ids), Part::tokens(reply.tokens.clone())], &slot);
        Ok(reply)
    }

    /// Goes on from a text as it is; no picture begins.
    pub fn complete(&self, text: &str, request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        let v = &self.config.vocabulary;
        let saying = Saying { banned: vec![v.end_image, v.begin_image], ..self.saying(vec![self.end]) };
        saying.complete(None, text, request, on)
    }

    /// How its words are drawn; the end-image mark cannot come.
    fn saying(&self, ends: Vec<Token>) -> Saying<'_> {
        let v = &self.config.vocabulary;
        let rows = Source::rows(v.range(lm::Partition::Text));
        Saying { engine: &self.engine, words: &self.words, rows, banned: vec![v.end_image], ends }
    }

    /// Codes of pictures to pictures.
    pub fn decode(&self, codes: &[Vec<u64>]) -> Result<Vec<Image>> {
        let v = &self.config.vocabulary;
        self.eyes.decode(&Codes { bits: v.bits, grid: v.grid, indices: codes.concat() })
    }

    /// A picture of which only the first rows of codes are drawn yet, grey below them.
    pub fn sketch(&self, codes: &[u64]) -> Result<Image> {
        let v = &self.config.vocabulary;
        let done = codes.len() / v.grid;
        let mut all = codes[..done * v.grid].to_vec();
        all.resize(v.grid * v.grid, 0);
        let whole = self.decode(&[all])?.pop().ok_or_else(|| Error::invalid("no picture"))?;
        Ok(whole.grey_below(whole.height() * done / v.grid))
    }

    /// Text answers of many conversations in one batch, the likeliest token each time.
    pub fn answer_batch(&self, contexts: &[Vec<Token>], max_tokens: usize) -> Result<Vec<String>> {
        let saying = self.saying(vec![self.end, self.config.vocabulary.begin_image]);
        let contexts = contexts.iter().map(|c| vec![Part::tokens(c.clone())]).collect();
        saying.likeliest(contexts, max_tokens)
    }
}
