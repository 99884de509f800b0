//! One object that understands, draws and interleaves.

use crate::config::{Generation, UnifiedConfig};
use crate::eyes::{Eyes, load_weights};
use crate::files::ModelFiles;
use crate::grammar::{Next, State};
use crate::template::{Conversation, DEFAULT_TEMPLATE, Template};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lm::{Decoding, Llama, SampleSettings, Sampler};
use nn::Params;
use qlip::config::parse_json;
use qlip::{Codes, Image};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// A part of a message.
#[derive(Debug, Clone)]
pub enum Content {
    /// Words.
    Text(String),
    /// A picture of any size.
    Image(Image),
    /// A picture that the model drew or has read already, as its codes.
    Codes(Vec<u64>),
}

/// One turn of a conversation.
#[derive(Debug, Clone)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in order.
    pub content: Vec<Content>,
}

impl Message {
    /// A user's words.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, content: vec![Content::Text(text.into())] }
    }
    /// A user's picture with words.
    pub fn user_with_image(image: Image, text: impl Into<String>) -> Self {
        Self { role: Role::User, content: vec![Content::Image(image), Content::Text(text.into())] }
    }
}

/// What happens while an answer comes into being.
#[derive(Debug)]
pub enum Event<'a> {
    /// More text.
    Text(&'a str),
    /// A picture begins.
    ImageStarted,
    /// Rows of the code grid that are drawn, and their number in all.
    RowDone(usize, usize),
    /// The picture.
    ImageFinished(&'a Image),
}

/// How an answer is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Sampling and guidance.
    pub generation: Generation,
    /// Seed; the same seed and input give the same answer on the CPU.
    pub seed: u64,
    /// Most text tokens, pictures not counted.
    pub max_tokens: usize,
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Words and pictures in order; pictures as their codes.
    pub content: Vec<Content>,
    /// The pictures, decoded.
    pub images: Vec<Image>,
    /// The words alone.
    pub text: String,
}

/// A unified model with everything around it.
pub struct Unified {
    /// Its configuration.
    pub config: UnifiedConfig,
    /// The image tokenizer.
    pub eyes: Eyes,
    model: Llama,
    words: Words,
    template: Template,
    end: u32,
}

impl Unified {
    /// Loads a model folder.
    pub fn load(files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
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
        let eyes = Eyes::load(files, &config.image_tokenizer, dtype, device, true)?;
        if eyes.model.bsq.bits != config.vocabulary.bits || eyes.model.grid() != config.vocabulary.grid {
            return Err(Error::bad_file(&path, "the vocabulary's bits or grid are not the image tokenizer's"));
        }
        let origin = files.path_of("model.safetensors").display().to_string();
        let params = Params::from_tensors(origin, load_weights(files, "")?, dtype, device);
        let model = Llama::new(&params, &config.text_config)?;
        let path = files.path_of("tokenizer.json");
        let words = Words::from_bytes(&path, &files.read("tokenizer.json")?)?;
        let source = if files.has("tokenizer_config.json") {
            let path = files.path_of("tokenizer_config.json");
            let json: serde_json::Value = serde_json::from_str(&files.text("tokenizer_config.json")?)
                .map_err(|e| Error::bad_file(path, e.to_string()))?;
            json["chat_template"].as_str().map(str::to_owned)
        } else {
            None
        };
        let template = Template::new(source.as_deref().unwrap_or(DEFAULT_TEMPLATE))?;
        let end = words.mark(&config.marks.end)?;
        Ok(Self { config, eyes, model, words, template, end })
    }

    /// A request with the model's own settings.
    pub fn request(&self, seed: u64) -> Request {
        Request { generation: self.config.generation, seed, max_tokens: 256 }
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

    /// The context of guidance's other half: the same request with its words left out.
    fn unconditional(&self) -> Result<Vec<u32>> {
        self.words.encode(&format!("{}{}", self.config.marks.user, self.config.marks.assistant))
    }

    /// Answers a conversation with words and pictures in any order, never malformed.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        request.generation.text.check()?;
        request.generation.image.check()?;
        let mut context = self.context(messages)?;
        let mut sampler = Sampler::new(request.seed, 0);
        let mut reply = Reply::default();
        let (mut decoding, mut hidden) = Decoding::start(&self.model, &[context.clone()])?;
        let (mut run, mut shown) = (Vec::new(), 0);
        for _ in 0..request.max_tokens {
            let id = self.draw_text(&hidden, &mut sampler, &run, &request.generation.text)?;
            if id == self.end {
                break;
            }
            context.push(id);
            if id == self.config.vocabulary.begin_image {
                self.finish_text(&mut run, &mut shown, &mut reply, on)?;
                if !on(Event::ImageStarted) {
                    return Ok(reply);
                }
                let grid = self.config.vocabulary.grid;
                let mut rows = |done: usize| on(Event::RowDone(done, grid));
                let seed = picture_seed(request.seed, reply.images.len());
                let Some(codes) = self.draw_images(&[context.clone()], &[seed], &request.generation, &mut rows)?.pop()
                else {
                    return Ok(reply);
                };
                context.extend(self.config.vocabulary.to_tokens(&codes));
                context.push(self.config.vocabulary.end_image);
                let image = self.decode(std::slice::from_ref(&codes))?.pop();
                reply.content.push(Content::Codes(codes));
                if let Some(image) = image {
                    let go_on = on(Event::ImageFinished(&image));
                    reply.images.push(image);
                    if !go_on {
                        return Ok(reply);
                    }
                }
                (decoding, hidden) = Decoding::start(&self.model, &[context.clone()])?;
                continue;
            }
            run.push(id);
            let text = self.words.decode(&run)?;
            // an unfinished character waits for its other bytes
            if !text.ends_with('\u{FFFD}') && text.len() > shown {
                if !on(Event::Text(&text[shown..])) {
                    break;
                }
                shown = text.len();
            }
            hidden = decoding.advance(&[id])?;
        }
        self.finish_text(&mut run, &mut shown, &mut reply, on)?;
        Ok(reply)
    }

    fn finish_text(
        &self,
        run: &mut Vec<u32>,
        shown: &mut usize,
        reply: &mut Reply,
        on: &mut dyn FnMut(Event) -> bool,
    ) -> Result<()> {
        if !run.is_empty() {
            let text = self.words.decode(run)?;
            if text.len() > *shown {
                on(Event::Text(&text[*shown..]));
            }
            reply.text.push_str(&text);
            reply.content.push(Content::Text(text));
        }
        run.clear();
        *shown = 0;
        Ok(())
    }

    /// One text token from one row of hidden states; the end-image mark cannot come.
    fn draw_text(&self, hidden: &Tensor, sampler: &mut Sampler, seen: &[u32], s: &SampleSettings) -> Result<u32> {
        let v = &self.config.vocabulary;
        let mut logits = self.rows(hidden, v.range(lm::Partition::Text))?.concat();
        logits[v.end_image as usize] = f32::NEG_INFINITY;
        Ok(sampler.sample(&logits, seen, s) as u32)
    }

    fn rows(&self, hidden: &Tensor, range: std::ops::Range<usize>) -> Result<Vec<Vec<f32>>> {
        Ok(self.model.logits(hidden, range)?.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// Draws one picture for each context (which ends with the begin-image mark), all in one batch; with guidance the
    /// unconditional halves are rows of the same batch. `on_row` hears how many rows of the grid are done and may stop
    /// the drawing, which then returns nothing.
    pub fn draw_images(
        &self,
        contexts: &[Vec<u32>],
        seeds: &[u64],
        g: &Generation,
        on_row: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<Vec<u64>>> {
        let v = &self.config.vocabulary;
        let n = contexts.len();
        let guided = g.guidance_scale != 1.0;
        let mut all = contexts.to_vec();
        if guided {
            let mut other = self.unconditional()?;
            other.push(v.begin_image);
            all.extend(std::iter::repeat_n(other, n));
        }
        let mut samplers: Vec<Sampler> = seeds.iter().map(|&s| Sampler::new(s, 1)).collect();
        let (mut decoding, mut hidden) = Decoding::start(&self.model, &all)?;
        let mut tokens = vec![Vec::new(); n];
        let mut state = State::Image(0);
        while let Next::Visual(partition) = state.next(v) {
            let range = v.range(partition);
            let logits = self.rows(&hidden, range.clone())?;
            let mut next = Vec::with_capacity(all.len());
            for (i, sampler) in samplers.iter_mut().enumerate() {
                let row = if guided {
                    let mix = |(c, u): (&f32, &f32)| u + g.guidance_scale * (c - u);
                    logits[i].iter().zip(&logits[n + i]).map(mix).collect()
                } else {
                    logits[i].clone()
                };
                let id = (range.start + sampler.sample(&row, &[], &g.image)) as u32;
                tokens[i].push(id);
                next.push(id);
            }
            if guided {
                next.extend_from_within(..);
            }
            state = next.first().and_then(|&t| state.after(v, t)).ok_or_else(|| Error::invalid("nothing to draw"))?;
            let per_row = v.grid * v.groups();
            if tokens[0].len().is_multiple_of(per_row) && !on_row(tokens[0].len() / per_row) {
                return Ok(Vec::new());
            }
            if state != State::Image(v.tokens_per_image()) {
                hidden = decoding.advance(&next)?;
            }
        }
        tokens.iter().map(|t| v.to_codes(t)).collect()
    }

    /// The context in which the model draws `words`.
    pub fn drawing_context(&self, words: &str) -> Result<Vec<u32>> {
        let mut ids = self.context(&[Message::user(format!("draw {words}"))])?;
        ids.push(self.config.vocabulary.begin_image);
        Ok(ids)
    }

    /// Codes of pictures to pictures.
    pub fn decode(&self, codes: &[Vec<u64>]) -> Result<Vec<Image>> {
        let v = &self.config.vocabulary;
        self.eyes.decode(&Codes { bits: v.bits, grid: v.grid, indices: codes.concat() })
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

/// The seed of the n-th picture of an answer.
fn picture_seed(seed: u64, n: usize) -> u64 {
    if n == 0 { seed } else { nn::rng::mix(seed ^ n as u64) }
}
