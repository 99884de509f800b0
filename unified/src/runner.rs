//! One object that understands, draws and interleaves.

use crate::config::UnifiedConfig;
use crate::conversation::{Content, Event, Message, Reply, Request, Role, TextStream, Window};
use crate::draw::{Drawn, picture_seed};
use crate::eyes::{Eyes, load_weights};
use crate::files::{ModelFiles, Placement};
use crate::template::{Conversation, DEFAULT_TEMPLATE, Template};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lm::{Decoding, Llama, SampleSettings, Sampler};
use nn::Params;
use qlip::config::parse_json;
use qlip::{Codes, Image};

/// Text tokens that a trimmed conversation leaves room for, besides one picture.
const TEXT_ROOM: usize = 128;

/// A unified model with everything around it.
pub struct Unified {
    /// Its configuration.
    pub config: UnifiedConfig,
    /// The image tokenizer.
    pub eyes: Eyes,
    pub(crate) model: Llama,
    pub(crate) words: Words,
    template: Template,
    end: u32,
}

impl Unified {
    /// Loads a model folder.
    pub fn load(files: &ModelFiles, placement: &Placement) -> Result<Self> {
        let path = files.path_of("config.json");
        let config: UnifiedConfig = parse_json(&path, &files.text("config.json")?)?;
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
        let eyes = Eyes::load(files, &config.image_tokenizer, placement, true)?;
        if eyes.model.bsq.bits != config.vocabulary.bits || eyes.model.grid() != config.vocabulary.grid {
            return Err(Error::bad_file(&path, "the vocabulary's bits or grid are not the image tokenizer's"));
        }
        let origin = files.path_of("model.safetensors").display().to_string();
        let params = Params::from_tensors(origin, load_weights(files, "")?, placement.dtype, &placement.device)
            .stored_as(placement.storage);
        let model = Llama::new(&params, &config.text_config)?;
        let path = files.path_of("tokenizer.json");
        let words = Words::from_bytes(&path, &files.read("tokenizer.json")?)?;
        let template = Template::of_model(files)?.map_or_else(|| Template::new(DEFAULT_TEMPLATE), Ok)?;
        let end = words.mark(&config.marks.end)?;
        Ok(Self { config, eyes, model, words, template, end })
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
        Request { generation: self.config.generation, seed, max_tokens: 256, window: Window::Refuse }
    }

    /// Token ids of a conversation, up to where the answer begins.
    pub fn context(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let m = &self.config.marks;
        let placeholder = format!("{}{}", m.begin_image, m.end_image);
        let mut pictures = Vec::new();
        let mut json = Vec::new();
        for message in messages {
            let mut content = Vec::new();
            for c in &message.content {
                match c {
                    // a mark typed by a person is words, not a mark
                    Content::Text(t) => {
                        content.push(serde_json::json!({"type": "text", "text": t.replace("<|", "< |")}))
                    }
                    Content::Image(i) => {
                        pictures.push(self.eyes.encode(std::slice::from_ref(i))?.indices);
                        content.push(serde_json::json!({"type": "image"}));
                    }
                    Content::Codes(c) => {
                        pictures.push(c.clone());
                        content.push(serde_json::json!({"type": "image"}));
                    }
                }
            }
            let role = match message.role {
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            json.push(serde_json::json!({"role": role, "content": content}));
        }
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

    /// Answers a conversation with words and pictures in any order, never malformed.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        self.check(&request.generation)?;
        let most = self.model.max_positions();
        let room = self.config.vocabulary.tokens_per_image() + 2 + TEXT_ROOM.min(request.max_tokens);
        let context = request.window.fit(messages, most, room, &|m| self.context(m), &Vec::len)?;
        let mut sampler = Sampler::new(request.seed, 0);
        let mut reply = Reply::default();
        let (mut decoding, mut hidden) = Decoding::start(&self.model, &[context])?;
        let mut stream = TextStream::default();
        for _ in 0..request.max_tokens {
            let id = self.draw_text(&hidden, &mut sampler, stream.ids(), &request.generation.text)?;
            if id == self.end {
                break;
            }
            let v = &self.config.vocabulary;
            // the window is full: the answer ends here, and no picture begins that would not fit
            let wanted = if id == v.begin_image { v.tokens_per_image() + 2 } else { 1 };
            if decoding.len() + wanted > most {
                break;
            }
            reply.tokens.push(id);
            hidden = decoding.advance(&[id])?;
            if id != v.begin_image {
                if !stream.push(&self.words, id, on)? {
                    break;
                }
                continue;
            }
            stream.finish(&self.words, &mut reply, on)?;
            if !on(Event::ImageStarted) {
                return Ok(reply);
            }
            let v = &self.config.vocabulary;
            let mut rows = |tokens: &[Vec<u32>]| {
                let codes = v.cells(&tokens[0]).unwrap_or_default();
                on(Event::RowDone { done: codes.len() / v.grid, rows: v.grid, codes: &codes })
            };
            let seed = picture_seed(request.seed, reply.images.len());
            let drawn = self.draw_best(&mut decoding, hidden, &[seed], &request.generation, &mut rows)?;
            let Some(Drawn { tokens, codes }) = drawn.into_iter().next() else { return Ok(reply) };
            // the last visual token and the end mark are not read yet
            decoding.advance(&tokens[tokens.len() - 1..])?;
            hidden = decoding.advance(&[self.config.vocabulary.end_image])?;
            reply.tokens.extend(tokens.into_iter().chain([self.config.vocabulary.end_image]));
            let image = self.decode(std::slice::from_ref(&codes))?.pop();
            reply.content.push(Content::Codes(codes));
            if let Some(image) = image {
                let go_on = on(Event::ImageFinished(&image));
                reply.images.push(image);
                if !go_on {
                    return Ok(reply);
                }
            }
        }
        stream.finish(&self.words, &mut reply, on)?;
        Ok(reply)
    }

    /// One text token from one row of hidden states; the end-image mark cannot come.
    fn draw_text(&self, hidden: &Tensor, sampler: &mut Sampler, seen: &[u32], s: &SampleSettings) -> Result<u32> {
        let v = &self.config.vocabulary;
        let mut logits = self.rows(hidden, v.range(lm::Partition::Text))?.concat();
        logits[v.end_image as usize] = f32::NEG_INFINITY;
        Ok(sampler.sample(&logits, seen, s) as u32)
    }

    /// Logits of a range of the vocabulary, for each row of hidden states.
    pub(crate) fn rows(&self, hidden: &Tensor, range: std::ops::Range<usize>) -> Result<Vec<Vec<f32>>> {
        Ok(self.model.logits(hidden, range)?.to_dtype(DType::F32)?.to_vec2()?)
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
    pub fn answer_batch(&self, contexts: &[Vec<u32>], max_tokens: usize) -> Result<Vec<String>> {
        let (mut decoding, mut hidden) = Decoding::start(&self.model, contexts)?;
        let mut answers = vec![Vec::new(); contexts.len()];
        let mut done = vec![false; contexts.len()];
        let mut sampler = Sampler::new(0, 0);
        for _ in 0..max_tokens {
            let mut next = Vec::with_capacity(contexts.len());
            for i in 0..contexts.len() {
                let row = hidden.narrow(0, i, 1)?;
                let id = self.draw_text(&row, &mut sampler, &[], &SampleSettings::greedy())?;
                done[i] |= id == self.end || id == self.config.vocabulary.begin_image;
                if !done[i] {
                    answers[i].push(id);
                }
                next.push(if done[i] { self.end } else { id });
            }
            if done.iter().all(|d| *d) {
                break;
            }
            hidden = decoding.advance(&next)?;
        }
        answers.iter().map(|a| self.words.decode(a)).collect()
    }
}
