//! What an engine is asked for, and what it answers.

use super::doubt::Uncertain;
use crate::sample::SampleSettings;
use crate::vocab::{TOKEN_BITS, Token};
use candle_core::Tensor;
use nn::cache::Slot;

/// Which of a model's heads a token comes from, and which of its rows: a token is `start` plus an index into the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// The head, by the model's own numbering.
    pub head: u8,
    /// Its first row on offer.
    pub start: Token,
    /// How many.
    pub rows: u32,
}

impl Source {
    /// Rows of a model's first head.
    pub fn rows(range: std::ops::Range<usize>) -> Self {
        Self { head: 0, start: range.start as Token, rows: range.len() as u32 }
    }
}

/// A part of a prompt.
#[derive(Debug, Clone)]
pub enum Part {
    /// Tokens of a head.
    Tokens(u8, Vec<Token>),
    /// Embeddings [tokens, width] of something else, each with a key that is the same for the same content.
    Embedded(Tensor, Vec<u64>),
}

impl Part {
    /// Tokens of a model's first head.
    pub fn tokens(ids: impl Into<Vec<Token>>) -> Self {
        Self::Tokens(0, ids.into())
    }

    /// Its tokens; none of embeddings.
    pub fn ids(&self) -> &[Token] {
        match self {
            Self::Tokens(_, ids) => ids,
            Self::Embedded(..) => &[],
        }
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(_, ids) => ids.len(),
            Self::Embedded(_, keys) => keys.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What two prompts are compared by.
    pub(super) fn keys(&self) -> Vec<u64> {
        match self {
            Self::Tokens(head, ids) => ids.iter().map(|&id| u64::from(*head) << TOKEN_BITS | id).collect(),
            Self::Embedded(_, keys) => keys.iter().map(|k| k | 1 << 63).collect(),
        }
    }
}

/// A sequence that is read: a cache that holds its beginning, and what follows.
#[derive(Debug, Clone)]
pub struct Context {
    /// What is read already.
    pub read: Option<Slot>,
    /// What follows.
    pub prompt: Vec<Part>,
    /// Added to a token's place in the cache to give its position.
    pub offset: u32,
}

impl Context {
    /// A prompt from the beginning.
    pub fn new(prompt: Vec<Part>) -> Self {
        Self { read: None, prompt, offset: 0 }
    }

    /// What follows a cache.
    pub fn after(read: Slot, prompt: Vec<Part>) -> Self {
        Self { read: Some(read), prompt, offset: 0 }
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.read.as_ref().map_or(0, Slot::len) + self.prompt.iter().map(Part::len).sum::<usize>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What may come next.
#[derive(Debug, Clone)]
pub enum Next {
    /// One of these rows, the tokens excepted that the request bans.
    Choose(Source),
    /// This token of this head and no other.
    Only(u8, Token),
    /// Nothing more.
    Done(Finish),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model or the grammar ended it.
    Stop,
    /// There was no more room, or no more was asked for.
    Length,
    /// The caller ended it.
    Cancelled,
}

impl Finish {
    /// As the field's programs write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What may come next, given what has come.
pub type Grammar = Box<dyn FnMut(&[Token]) -> Next + Send>;

/// Guidance scale of the n-th token; nothing where it is off, and then the main context's logits are used as they are.
pub type Scales = Box<dyn Fn(usize) -> Option<Vec<f32>> + Send>;

/// A token from each of these in turn, and then the end: a picture.
pub fn in_turn(sources: Vec<Source>) -> Grammar {
    Box::new(move |tokens| sources.get(tokens.len()).map_or(Next::Done(Finish::Stop), |s| Next::Choose(*s)))
}

/// A request: contexts that are read, and how they go on.
pub struct Request {
    /// The context that is continued.
    pub context: Context,
    /// Guidance's other contexts, which are given the same tokens. Logits are those of the first, plus scale 0 times (second
    /// minus first), and so on; the main context is the last.
    pub peers: Vec<Context>,
    /// Scales, one for each difference.
    pub scales: Scales,
    /// What guidance and temperature become where the main context leaves everything open; nothing: they stay.
    pub uncertain: Option<Uncertain>,
    /// What may come.
    pub grammar: Grammar,
    /// How it is drawn.
    pub sample: SampleSettings,
    /// Key of the random stream: seed, and a number of the stream.
    pub seed: (u64, u64),
    /// Tokens of the first head that never come.
    pub banned: Vec<Token>,
    /// Tokens that count as seen for the repetition penalty, besides those that come.
    pub seen: Vec<Token>,
    /// Report log-probabilities: of each token, and of this many best ones.
    pub logprobs: Option<usize>,
    /// Whether its context's cache may be used by requests that begin alike, and theirs by it. Embeddings without keys of
    /// their own must not be shared.
    pub share: bool,
}

impl Request {
    /// A request without guidance.
    pub fn new(context: Context, sample: SampleSettings, seed: (u64, u64), grammar: Grammar) -> Self {
        Self {
            context,
            peers: Vec::new(),
            scales: Box::new(|_| None),
            uncertain: None,
            grammar,
            sample,
            seed,
            banned: Vec::new(),
            seen: Vec::new(),
            logprobs: None,
            share: true,
        }
    }

    /// Classifier-free guidance: uncond + scale (cond - uncond), with a scale for each token, or none.
    pub fn guided(mut self, uncond: Context, scale: impl Fn(usize) -> Option<f32> + Send + 'static) -> Self {
        self.peers = vec![uncond];
        self.scales = Box::new(move |n| scale(n).map(|s| vec![s]));
        self
    }
}

/// A request's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// Log-probabilities of a token, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProb {
    /// Of the token itself.
    pub chosen: f32,
    /// Of the likeliest tokens.
    pub top: Vec<(Token, f32)>,
}

/// A finished request.
#[derive(Debug)]
pub struct Done {
    /// Every token that came, forced ones among them.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub finish: Finish,
    /// The main context's cache.
    pub slot: Slot,
    /// How many of the last tokens the cache does not hold yet.
    pub unread: usize,
    /// Tokens of the prompt that were not read anew, because a kept cache held them.
    pub reused: usize,
}

/// What happened in a step.
#[derive(Debug)]
pub enum Event {
    /// A token came.
    Token(RequestId, Token, Option<LogProb>),
    /// A request is finished.
    Done(RequestId, Box<Done>),
    /// A request failed; the others go on.
    Failed(RequestId, nn::Error),
}
