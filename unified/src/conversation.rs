//! What a person and a model exchange: messages in, events and a reply out.

use crate::Result;
use crate::config::Generation;
use crate::words::Words;
use qlip::Image;

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
    /// Every token that was sampled or set, marks of pictures included, in order; without the end of the answer.
    pub tokens: Vec<u32>,
    /// Text tokens that the words took.
    pub text_tokens: usize,
}

/// Text tokens on their way to text: characters come out when all their bytes are there.
#[derive(Default)]
pub(crate) struct TextStream {
    ids: Vec<u32>,
    shown: usize,
}

impl TextStream {
    /// Tokens of the text so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// One more token; false if the listener stops the answer.
    pub fn push(&mut self, words: &Words, id: u32, on: &mut dyn FnMut(Event) -> bool) -> Result<bool> {
        self.ids.push(id);
        let text = words.decode(&self.ids)?;
        // an unfinished character waits for its other bytes
        if text.ends_with('\u{FFFD}') || text.len() <= self.shown {
            return Ok(true);
        }
        let go_on = on(Event::Text(text.get(self.shown..).unwrap_or_default()));
        self.shown = text.len();
        Ok(go_on)
    }

    /// The text is over: what is left of it comes out, and it joins the reply.
    pub fn finish(&mut self, words: &Words, reply: &mut Reply, on: &mut dyn FnMut(Event) -> bool) -> Result<()> {
        if !self.ids.is_empty() {
            let text = words.decode(&self.ids)?;
            if text.len() > self.shown {
                on(Event::Text(text.get(self.shown..).unwrap_or_default()));
            }
            reply.text_tokens += self.ids.len();
            reply.text.push_str(&text);
            reply.content.push(Content::Text(text));
        }
        *self = Self::default();
        Ok(())
    }
}
