//! Whatever model a folder holds that can be talked with.

use crate::conversation::{Event, Message, Reply, Request};
use crate::files::{ModelFiles, Placement};
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
    /// Loads what config.json names.
    pub fn load(files: &ModelFiles, placement: &Placement) -> Result<Self> {
        let path = files.path_of("config.json");
        let json: serde_json::Value =
            serde_json::from_str(&files.text("config.json")?).map_err(|e| Error::bad_file(&path, e.to_string()))?;
        match json["model_type"].as_str() {
            Some("um3") => Ok(Self::Unified(Box::new(Unified::load(files, placement)?))),
            Some("llava" | "llava_llama") => Ok(Self::Llava(Box::new(LlavaChat::load(files, placement)?))),
            Some("janus" | "multi_modality") => Ok(Self::Janus(Box::new(JanusChat::load(files, placement)?))),
            Some("llama") => Ok(Self::Llama(Box::new(LlamaChat::load(files, placement)?))),
            other => {
                let found = other.unwrap_or("nothing");
                Err(Error::bad_file(
                    &path,
                    format!("model_type says {found}; um3, llava, janus and llama can be talked with"),
                ))
            }
        }
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
