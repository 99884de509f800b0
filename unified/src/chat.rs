//! Whatever model a folder holds that can be talked with.

use crate::artifact::{Architecture, Artifact, Placement};
use crate::conversation::{Event, Message, Reply, Request};
use crate::janus::JanusChat;
use crate::llama::LlamaChat;
use crate::llava::LlavaChat;
use crate::runner::Unified;
use crate::{Error, Result};
use qlip::Image;

/// A model that answers.
pub enum ChatModel {
    /// Sees and draws.
    Unified(Box<Unified>),
    /// Sees.
    Llava(Box<LlavaChat>),
    /// Sees; draws by `unified generate`.
    Janus(Box<JanusChat>),
    /// Reads and writes words.
    Llama(Box<LlamaChat>),
}

impl ChatModel {
    /// Loads a model that talks.
    pub fn load(artifact: &Artifact, at: &Placement) -> Result<Self> {
        artifact.must("answer a conversation", artifact.architecture.can().talk)?;
        Ok(match artifact.architecture {
            Architecture::Unified => Self::Unified(Box::new(Unified::load(artifact, at)?)),
            Architecture::Llava => Self::Llava(Box::new(LlavaChat::load(artifact, at)?)),
            Architecture::Janus => Self::Janus(Box::new(JanusChat::load(artifact, at)?)),
            Architecture::Llama => Self::Llama(Box::new(LlamaChat::load(artifact, at)?)),
            other => {
                let why = format!("a conversation with {} is not built yet; unified forward runs it", other.says());
                return Err(Error::bad_file(artifact.files.path_of("config.json"), why));
            }
        })
    }

    /// A request with the model's own settings.
    pub fn request(&self, seed: u64) -> Request {
        match self {
            Self::Unified(m) => m.request(seed),
            Self::Llava(m) => Request { generation: m.generation(), seed, ..Request::greedy(512) },
            Self::Janus(m) => Request { generation: m.generation(), seed, ..Request::greedy(512) },
            Self::Llama(m) => Request { generation: m.generation(), seed, ..Request::greedy(512) },
        }
    }

    /// Answers a conversation.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        match self {
            Self::Unified(m) => m.answer(messages, request, on),
            Self::Llava(m) => m.answer(messages, request, on),
            Self::Janus(m) => m.answer(messages, request, on),
            Self::Llama(m) => m.answer(messages, request, on),
        }
    }

    /// A picture of which only the first rows of codes are drawn yet; nothing from a model that does not draw.
    pub fn sketch(&self, codes: &[u64]) -> Option<Result<Image>> {
        match self {
            Self::Unified(m) => Some(m.sketch(codes)),
            Self::Llava(_) | Self::Janus(_) | Self::Llama(_) => None,
        }
    }

    /// The likeliest words for each of several single messages.
    pub fn words(&self, questions: Vec<Message>, max_tokens: usize) -> Result<Vec<String>> {
        match self {
            Self::Unified(m) => {
                let contexts = questions.into_iter().map(|q| m.context(&[q])).collect::<Result<Vec<_>>>()?;
                m.answer_batch(&contexts, max_tokens)
            }
            Self::Llava(m) => m.answer_batch(&alone(questions), max_tokens),
            Self::Janus(m) => m.answer_batch(&alone(questions), max_tokens),
            Self::Llama(m) => m.answer_batch(&alone(questions), max_tokens),
        }
    }
}

/// Conversations of one message each.
fn alone(questions: Vec<Message>) -> Vec<Vec<Message>> {
    questions.into_iter().map(|q| vec![q]).collect()
}
