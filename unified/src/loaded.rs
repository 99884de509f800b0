//! A model in memory, whatever its architecture: one match for each thing that models do.

use crate::artifact::{Architecture, Artifact, Placement};
use crate::chameleon::ChameleonChat;
use crate::config::Generation;
use crate::conversation::{Content, Event, Message, Reply, Request};
use crate::emu3::Emu3Chat;
use crate::eyes::Eyes;
use crate::janus::JanusChat;
use crate::likelihood::{TextLoss, likelihoods, text_loss};
use crate::llama::LlamaChat;
use crate::llamagen::{Painter, Wanted};
use crate::llava::LlavaChat;
use crate::runner::Unified;
use crate::{Error, Result};
use lm::draw::DrawSettings;
use lm::{SampleSettings, Shared, Token};
use qlip::Image;

/// A model in memory.
pub enum Loaded {
    /// Sees, talks and draws.
    Unified(Box<Unified>),
    /// Sees and talks.
    Llava(Box<LlavaChat>),
    /// Sees and talks; draws.
    Janus(Box<JanusChat>),
    /// Sees, talks and draws, both in one answer.
    Chameleon(Box<ChameleonChat>),
    /// Sees and talks; draws.
    Emu3(Box<Emu3Chat>),
    /// Talks.
    Llama(Box<LlamaChat>),
    /// Draws.
    LlamaGen(Box<Painter>),
    /// Codes of pictures, and pictures against words.
    Qlip(Box<Eyes>),
}

/// Hears the tokens of all pictures of a batch after each row; false stops them.
pub type OnRow<'a> = &'a mut dyn FnMut(&[Vec<Token>]) -> bool;

impl Loaded {
    /// Loads a model of any architecture that something can be asked of.
    pub fn load(artifact: &Artifact, at: &Placement) -> Result<Self> {
        Ok(match artifact.architecture {
            Architecture::Unified => Self::Unified(Box::new(Unified::load(artifact, at)?)),
            Architecture::Llava => Self::Llava(Box::new(LlavaChat::load(artifact, at)?)),
            Architecture::Janus => Self::Janus(Box::new(JanusChat::load(artifact, at)?)),
            Architecture::Chameleon => Self::Chameleon(Box::new(ChameleonChat::load(artifact, at)?)),
            Architecture::Emu3 => Self::Emu3(Box::new(Emu3Chat::load(artifact, at)?)),
            Architecture::Llama => Self::Llama(Box::new(LlamaChat::load(artifact, at)?)),
            Architecture::LlamaGen => Self::LlamaGen(Box::new(Painter::load(artifact, None, at)?)),
            Architecture::Qlip => {
                let says =
                    artifact.files.has("tokenizer.json") && artifact.tensors()?.contains("text_projection.weight");
                Self::Qlip(Box::new(Eyes::load(artifact, at, says)?))
            }
            other => {
                let why = format!("a {} by itself answers nothing here; unified forward runs it", other.says());
                return Err(Error::Unsupported(format!("{}: {why}", artifact.files.folder().display())));
            }
        })
    }

    /// Loads a model that talks.
    pub fn talking(artifact: &Artifact, at: &Placement) -> Result<Self> {
        artifact.must("answer a conversation", artifact.architecture.can().talk)?;
        Self::load(artifact, at)
    }

    fn cannot<T>(what: &str) -> Result<T> {
        Err(Error::Unsupported(format!("this model does not {what}")))
    }

    /// A request with the model's own settings.
    pub fn request(&self, seed: u64) -> Request {
        let of = |generation: Generation| Request { generation, seed, ..Request::greedy(512) };
        match self {
            Self::Unified(m) => m.request(seed),
            Self::Llava(m) => of(m.generation()),
            Self::Janus(m) => of(m.generation()),
            Self::Chameleon(m) => of(m.generation()),
            Self::Emu3(m) => of(m.generation()),
            Self::Llama(m) => of(m.generation()),
            Self::LlamaGen(_) | Self::Qlip(_) => of(Generation::default()),
        }
    }

    /// Answers a conversation.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        match self {
            Self::Unified(m) => m.answer(messages, request, on),
            Self::Llava(m) => m.answer(messages, request, on),
            Self::Janus(m) => m.answer(messages, request, on),
            Self::Chameleon(m) => m.answer(messages, request, on),
            Self::Emu3(m) => m.answer(messages, request, on),
            Self::Llama(m) => m.answer(messages, request, on),
            Self::LlamaGen(_) | Self::Qlip(_) => Self::cannot("answer a conversation"),
        }
    }

    /// Goes on from a text as it is, without a conversation around it.
    pub fn complete(&self, text: &str, request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        match self {
            Self::Unified(m) => m.complete(text, request, on),
            Self::Llava(m) => m.complete(text, request, on),
            Self::Janus(m) => m.complete(text, request, on),
            Self::Chameleon(m) => m.complete(text, request, on),
            Self::Emu3(m) => m.complete(text, request, on),
            Self::Llama(m) => m.complete(text, request, on),
            Self::LlamaGen(_) | Self::Qlip(_) => Self::cannot("go on from a text"),
        }
    }

    /// The likeliest words for each of several conversations, all in one batch.
    pub fn words(&self, questions: &[Vec<Message>], max_tokens: usize) -> Result<Vec<String>> {
        match self {
            Self::Unified(m) => {
                let contexts = questions.iter().map(|q| m.context(q)).collect::<Result<Vec<_>>>()?;
                m.answer_batch(&contexts, max_tokens)
            }
            Self::Llava(m) => m.answer_batch(questions, max_tokens),
            Self::Janus(m) => m.answer_batch(questions, max_tokens),
            Self::Chameleon(m) => m.answer_batch(questions, max_tokens),
            Self::Emu3(m) => m.answer_batch(questions, max_tokens),
            Self::Llama(m) => m.answer_batch(questions, max_tokens),
            Self::LlamaGen(_) | Self::Qlip(_) => Self::cannot("answer questions"),
        }
    }

    /// Sum of the log-probabilities of each continuation of a text.
    pub fn likelihoods(&self, context: &str, continuations: &[String]) -> Result<Vec<f64>> {
        match self {
            Self::Unified(m) => {
                let rows = m.config.vocabulary.range(lm::Partition::Text);
                likelihoods(m.language_model(), rows, m.words(), None, context, continuations)
            }
            Self::Llama(m) => m.likelihoods(context, continuations),
            Self::Llava(m) => m.likelihoods(context, continuations),
            Self::Janus(_) | Self::Chameleon(_) | Self::Emu3(_) | Self::LlamaGen(_) | Self::Qlip(_) => {
                Self::cannot("say how likely a text is")
            }
        }
    }

    /// How likely a text is, in windows of so many tokens.
    pub fn text_loss(&self, text: &str, windows: (usize, bool)) -> Result<TextLoss> {
        match self {
            Self::Unified(m) => {
                let rows = m.config.vocabulary.range(lm::Partition::Text);
                let prefix = m.words().mark(&m.config.marks.end)?;
                text_loss(m.language_model(), rows, m.words(), Some(prefix), text, windows)
            }
            Self::Llama(m) => m.text_loss(text, windows),
            Self::Llava(m) => m.text_loss(text, windows),
            Self::Janus(_) | Self::Chameleon(_) | Self::Emu3(_) | Self::LlamaGen(_) | Self::Qlip(_) => {
                Self::cannot("say how likely a text is")
            }
        }
    }

    /// The engine that its words and pictures come from.
    pub fn engine(&self) -> Option<&Shared> {
        match self {
            Self::Unified(m) => Some(&m.engine),
            Self::Llava(m) => Some(m.engine()),
            Self::Janus(m) => Some(m.engine()),
            Self::Chameleon(m) => Some(m.engine()),
            Self::Emu3(m) => Some(m.engine()),
            Self::Llama(m) => Some(m.engine()),
            Self::LlamaGen(_) | Self::Qlip(_) => None,
        }
    }

    /// How pictures are drawn where nothing else is said, and of how many drawings each is the best.
    pub fn drawing(&self) -> (DrawSettings, usize) {
        match self {
            Self::Unified(m) => (m.config.generation.drawing(), m.config.generation.best_of),
            Self::Janus(m) => (m.generation().drawing(), 1),
            Self::Chameleon(m) => (m.generation().drawing(), 1),
            Self::Emu3(m) => (m.generation().drawing(), 1),
            Self::LlamaGen(m) => {
                let guidance_scale = if m.draws_classes() { 4.0 } else { 7.5 };
                (DrawSettings::constant(SampleSettings::default(), guidance_scale), 1)
            }
            Self::Llava(_) | Self::Llama(_) | Self::Qlip(_) => (Generation::default().drawing(), 1),
        }
    }

    /// Pixels along a drawn picture's side; 0 where nothing is drawn.
    pub fn side(&self) -> usize {
        match self {
            Self::Unified(m) => m.eyes.side(),
            Self::Janus(m) => m.model.config.grid * m.model.config.vq.stride(),
            Self::Chameleon(m) if m.draws() => m.model.config.resolution,
            Self::Emu3(m) => m.grid() * m.model.config.vq.net.stride(),
            Self::LlamaGen(m) => m.side(),
            Self::Chameleon(_) | Self::Llava(_) | Self::Llama(_) | Self::Qlip(_) => 0,
        }
    }

    /// Tokens of a drawn picture; 0 where nothing is drawn.
    pub fn tokens_per_picture(&self) -> usize {
        match self {
            Self::Unified(m) => m.config.vocabulary.tokens_per_image(),
            Self::Janus(m) => m.model.codes_per_picture(),
            Self::Chameleon(m) if m.draws() => m.model.codes_per_picture(),
            Self::Emu3(m) => m.grid() * (m.grid() + 1) + 3,
            Self::LlamaGen(m) => m.model.config.block_size,
            Self::Chameleon(_) | Self::Llava(_) | Self::Llama(_) | Self::Qlip(_) => 0,
        }
    }

    /// Rows of a drawn picture's grid; 0 where nothing is drawn.
    pub fn rows(&self) -> usize {
        match self {
            Self::Unified(m) => m.config.vocabulary.grid,
            Self::Janus(m) => m.model.config.grid,
            Self::Chameleon(m) if m.draws() => m.model.config.grid(),
            Self::Emu3(m) => m.grid(),
            Self::LlamaGen(m) => m.model.config.grid(),
            Self::Chameleon(_) | Self::Llava(_) | Self::Llama(_) | Self::Qlip(_) => 0,
        }
    }

    /// A picture of which only the first rows of an answer's codes are drawn yet; nothing from a model that does not draw in
    /// its answers.
    pub fn sketch(&self, codes: &[u64]) -> Option<Result<Image>> {
        match self {
            Self::Unified(m) => Some(m.sketch(codes)),
            Self::Chameleon(m) if m.draws() => Some(m.sketch_codes(codes)),
            _ => None,
        }
    }

    /// A picture of which only the first rows of tokens are drawn yet.
    pub fn sketch_tokens(&self, tokens: &[Token]) -> Result<Image> {
        match self {
            Self::Unified(m) => m.sketch(&m.config.vocabulary.cells(tokens)?),
            Self::Janus(m) => m.sketch(tokens),
            Self::Chameleon(m) => m.sketch(tokens),
            Self::Emu3(m) => m.sketch(tokens),
            Self::LlamaGen(m) => m.sketch(tokens),
            Self::Llava(_) | Self::Llama(_) | Self::Qlip(_) => Self::cannot("draw"),
        }
    }

    /// Draws a picture of each wanted thing with its seed, all in one batch; `on_row` may stop them, which then gives nothing.
    pub fn draw(
        &self,
        wanted: &[Wanted],
        seeds: &[u64],
        (settings, best_of): (&DrawSettings, usize),
        on_row: OnRow,
    ) -> Result<Vec<Image>> {
        settings.check()?;
        let image = Generation::default().drawn(settings);
        let words = || -> Result<Vec<&str>> {
            let mut out = Vec::with_capacity(wanted.len());
            for w in wanted {
                match w {
                    Wanted::Words(words) => out.push(words.trim()),
                    _ => return Self::cannot("draw classes; it draws from words"),
                }
            }
            Ok(out)
        };
        match self {
            Self::Unified(_) => {
                let ask = |w: &str| vec![Message::user(format!("draw {}", w.strip_prefix("draw ").unwrap_or(w)))];
                let asked: Vec<Vec<Message>> = words()?.into_iter().map(ask).collect();
                self.draw_after(&asked, seeds, (settings, best_of), on_row)
            }
            Self::Janus(m) => m.draw(&words()?, seeds, &image, on_row),
            Self::Chameleon(m) => m.draw(&words()?, seeds, &image, on_row),
            Self::Emu3(m) => m.draw(&words()?, seeds, &image, on_row),
            Self::LlamaGen(m) => m.draw(wanted, seeds, settings, on_row),
            Self::Llava(_) | Self::Llama(_) | Self::Qlip(_) => Self::cannot("draw"),
        }
    }

    /// Draws the picture that answers each conversation, with its seed, all in one batch.
    pub fn draw_after(
        &self,
        conversations: &[Vec<Message>],
        seeds: &[u64],
        how: (&DrawSettings, usize),
        on_row: OnRow,
    ) -> Result<Vec<Image>> {
        if let Self::Unified(m) = self {
            let context = |messages: &Vec<Message>| m.context_to_draw(messages);
            let contexts = conversations.iter().map(context).collect::<Result<Vec<_>>>()?;
            let g = Generation { best_of: how.1, ..m.config.generation.drawn(how.0) };
            return m.decode(&m.draw_images(&contexts, seeds, &g, on_row)?);
        }
        let words = |messages: &Vec<Message>| match messages.as_slice() {
            [one] => match one.content.as_slice() {
                [Content::Text(words)] => Ok(Wanted::Words(words.clone())),
                _ => Self::cannot("change pictures"),
            },
            _ => Self::cannot("draw in a conversation"),
        };
        let wanted = conversations.iter().map(words).collect::<Result<Vec<_>>>()?;
        self.draw(&wanted, seeds, how, on_row)
    }

    /// Its QLIP, where it has one.
    pub fn eyes(&self) -> Option<&Eyes> {
        match self {
            Self::Unified(m) => Some(&m.eyes),
            Self::Qlip(m) => Some(m),
            _ => None,
        }
    }
}
