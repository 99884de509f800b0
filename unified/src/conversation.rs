//! What a person and a model exchange: messages in, events and a reply out.

use crate::config::Generation;
use crate::words::Words;
use crate::{Error, Result};
use lm::Token;
pub use lm::engine::Finish;
use lm::engine::LogProb;
use qlip::Image;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who says how the model is to behave, before everything else.
    System,
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

impl Role {
    /// As chat templates name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl Message {
    /// A user's words.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, content: vec![Content::Text(text.into())] }
    }
    /// The model's words.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: vec![Content::Text(text.into())] }
    }
    /// A user's picture with words.
    pub fn user_with_image(image: Image, text: impl Into<String>) -> Self {
        Self { role: Role::User, content: vec![Content::Image(image), Content::Text(text.into())] }
    }
}

impl Window {
    /// The context that `build` makes of the messages, or of their newest part that leaves `room` for an answer in a
    /// window of `most` tokens.
    pub(crate) fn fit<T>(
        self,
        messages: &[Message],
        most: usize,
        room: usize,
        build: &dyn Fn(&[Message]) -> Result<T>,
        len: &dyn Fn(&T) -> usize,
    ) -> Result<T> {
        let mut rest = messages;
        loop {
            let context = build(rest)?;
            let tokens = len(&context);
            // without trimming a short answer may still fit; decoding says so if not
            if tokens + room <= most || (self == Self::Refuse && tokens < most) {
                return Ok(context);
            }
            let next = rest.iter().skip(1).position(|m| m.role == Role::User).map(|n| &rest[n + 1..]);
            rest = match (self, next) {
                (Self::Trim, Some(next)) => next,
                (Self::Trim, None) if tokens < most => return Ok(context),
                (Self::Trim, None) => {
                    return Err(Error::TooLong(format!(
                        "the last message alone takes {tokens} of the {most} tokens that the model can hold; shorten it"
                    )));
                }
                (Self::Refuse, _) => {
                    return Err(Error::TooLong(format!(
                        "{tokens} tokens are more than the {most} the model can hold; start a new conversation, or leave \
                         its oldest turns out (chat --trim)"
                    )));
                }
            };
        }
    }
}

/// What happens while an answer comes into being.
#[derive(Debug)]
pub enum Event<'a> {
    /// More text.
    Text(&'a str),
    /// A picture begins.
    ImageStarted,
    /// A row of the code grid is drawn.
    RowDone {
        /// Rows that are done.
        done: usize,
        /// Rows in all.
        rows: usize,
        /// Codes of the cells so far; `Unified::sketch` makes a picture of them.
        codes: &'a [u64],
    },
    /// The picture.
    ImageFinished(&'a Image),
}

/// How an answer is drawn.
#[derive(Debug, Clone)]
pub struct Request {
    /// Sampling and guidance.
    pub generation: Generation,
    /// Seed; the same seed and input give the same answer on the CPU.
    pub seed: u64,
    /// Most text tokens, pictures not counted.
    pub max_tokens: usize,
    /// What happens to a conversation that is longer than the model can hold.
    pub window: Window,
    /// Words that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Whether the log-probabilities of the words' tokens are wanted, and of how many others at each place.
    pub logprobs: Option<usize>,
}

impl Request {
    /// The likeliest words, at most so many tokens.
    pub fn greedy(max_tokens: usize) -> Self {
        Self {
            generation: Generation::default(),
            seed: 0,
            max_tokens,
            window: Window::Refuse,
            stop: Vec::new(),
            logprobs: None,
        }
    }
}

/// A conversation that is longer than the model's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// An error.
    Refuse,
    /// The oldest turns are left out, as many as it takes; a turn stays whole, its pictures with it.
    Trim,
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
    /// Every token that was sampled or set, marks of pictures included, in order; without the end of the answer.
    pub tokens: Vec<Token>,
    /// Text tokens that the words took.
    pub text_tokens: usize,
    /// Tokens of the conversation that was answered.
    pub prompt_tokens: usize,
    /// How many of them were read already, in an earlier turn.
    pub reused_tokens: usize,
    /// Why it ended.
    pub finish: Option<Finish>,
    /// Of each token of the words, where they were asked for.
    pub logprobs: Vec<TokenLogProb>,
}

/// How likely a token of an answer was.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogProb {
    /// How it is written.
    pub token: String,
    /// Natural logarithm of its probability, after temperature and what else changes logits.
    pub logprob: f32,
    /// The likeliest tokens at its place.
    pub top: Vec<(String, f32)>,
}

/// Text tokens on their way to text: characters come out when all their bytes are there, and words that may be the beginning
/// of a stop are held back. A token decodes a few tokens, however long the answer is.
pub(crate) struct TextStream<'a> {
    words: &'a Words,
    stops: &'a [String],
    ids: Vec<Token>,
    /// Tokens before this one are decoded only as company of the next ones.
    from: usize,
    /// Tokens whose text is out.
    read: usize,
    /// What was said, and how much of it was shown.
    text: String,
    shown: usize,
    stopped: bool,
    logprobs: Vec<TokenLogProb>,
}

impl<'a> TextStream<'a> {
    pub fn new(words: &'a Words, stops: &'a [String]) -> Self {
        Self {
            words,
            stops,
            ids: Vec::new(),
            from: 0,
            read: 0,
            text: String::new(),
            shown: 0,
            stopped: false,
            logprobs: Vec::new(),
        }
    }

    /// How likely the next token was.
    pub fn likely(&mut self, id: Token, p: LogProb) {
        let written =
            |id: Token| self.words.decode(&[id]).ok().filter(|t| !t.is_empty()).or_else(|| self.words.token(id));
        let top = p.top.iter().map(|&(id, p)| (written(id).unwrap_or_default(), p)).collect();
        let token = written(id).unwrap_or_default();
        self.logprobs.push(TokenLogProb { token, logprob: p.chosen, top });
    }

    /// One more token; false if the listener or a stop ends the answer.
    pub fn push(&mut self, id: Token, on: &mut dyn FnMut(Event) -> bool) -> Result<bool> {
        self.ids.push(id);
        let before = self.words.decode(&self.ids[self.from..self.read])?;
        let after = self.words.decode(&self.ids[self.from..])?;
        // an unfinished character waits for its other bytes, which are four at most
        if after.ends_with('\u{FFFD}') && self.ids.len() - self.read < 4 || after.len() <= before.len() {
            return Ok(true);
        }
        self.add(after.get(before.len()..).unwrap_or_default());
        (self.from, self.read) = (self.read, self.ids.len());
        Ok(self.show(false, on) && !self.stopped)
    }

    /// Whether a stop has ended the words.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a token is no words.
    pub fn is_silent(&self, id: Token) -> bool {
        self.words.decode(&[id]).is_ok_and(|t| t.is_empty())
    }

    fn add(&mut self, new: &str) {
        let searched = self.text.len();
        self.text.push_str(new);
        // a stop may have begun in what was there
        let cut = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|stop| {
            let mut start = searched.saturating_sub(stop.len());
            while !self.text.is_char_boundary(start) {
                start -= 1;
            }
            self.text[start..].find(stop.as_str()).map(|at| start + at)
        });
        if let Some(at) = cut.min() {
            self.text.truncate(at.max(self.shown));
            self.stopped = true;
        }
    }

    /// Shows what is certain, or all of it at the end.
    fn show(&mut self, all: bool, on: &mut dyn FnMut(Event) -> bool) -> bool {
        let held = |stop: &String| {
            (1..=stop.len()).rev().find(|&n| stop.is_char_boundary(n) && self.text.ends_with(&stop[..n]))
        };
        let hold = if all || self.stopped { 0 } else { self.stops.iter().filter_map(held).max().unwrap_or(0) };
        let to = (self.text.len() - hold).max(self.shown);
        if to == self.shown {
            return true;
        }
        let from = std::mem::replace(&mut self.shown, to);
        on(Event::Text(&self.text[from..to]))
    }

    /// The text is over: what is left of it comes out, and it joins the reply.
    pub fn finish(&mut self, reply: &mut Reply, on: &mut dyn FnMut(Event) -> bool) -> Result<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        if !self.stopped && self.read < self.ids.len() {
            let before = self.words.decode(&self.ids[self.from..self.read])?;
            let after = self.words.decode(&self.ids[self.from..])?;
            self.add(after.get(before.len()..).unwrap_or_default());
        }
        self.show(true, on);
        reply.text_tokens += self.ids.len();
        reply.logprobs.append(&mut self.logprobs);
        reply.text.push_str(&self.text);
        reply.content.push(Content::Text(std::mem::take(&mut self.text)));
        *self = Self { stopped: self.stopped, ..Self::new(self.words, self.stops) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_conversation_is_refused_or_loses_its_oldest_turns() {
        let answer = |t: &str| Message { role: Role::Assistant, content: vec![Content::Text(t.into())] };
        let turns = [Message::user("aaaa"), answer("bbbb"), Message::user("cccc"), answer("dddd"), Message::user("ee")];
        // a token a letter
        let build = |m: &[Message]| -> Result<String> {
            Ok(m.iter()
                .flat_map(|m| &m.content)
                .map(|c| if let Content::Text(t) = c { t.as_str() } else { "" })
                .collect())
        };
        let fit = |w: Window, most| w.fit(&turns, most, 4, &build, &String::len);
        assert_eq!(fit(Window::Trim, 22).unwrap(), "aaaabbbbccccddddee");
        assert_eq!(fit(Window::Trim, 21).unwrap(), "ccccddddee");
        assert_eq!(fit(Window::Trim, 13).unwrap(), "ee");
        assert_eq!(fit(Window::Trim, 3).unwrap(), "ee");
        assert!(fit(Window::Trim, 2).unwrap_err().to_string().contains("last message alone takes 2"));
        assert_eq!(fit(Window::Refuse, 19).unwrap(), "aaaabbbbccccddddee");
        assert!(fit(Window::Refuse, 18).unwrap_err().to_string().contains("18 tokens are more than the 18"));
    }
}
