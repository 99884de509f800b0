//! A plain Llama checkpoint ready for conversation: words in, words out.

use crate::artifact::{Artifact, Placement};
use crate::config::Generation;
use crate::conversation::{Content, Event, Message, Reply, Request};
use crate::generation::GenerationFile;
use crate::likelihood::{TextLoss, likelihoods, text_loss};
use crate::say::Saying;
use crate::template::{Conversation, Template, marks_of};
use crate::words::Words;
use crate::{Error, Result};
use lm::{Llama, LlamaConfig, Part, Shared, Source, Token};
use std::sync::Arc;

/// Tokens that a trimmed conversation leaves room for.
const TEXT_ROOM: usize = 256;

/// A model with its tokenizer and template.
pub struct LlamaChat {
    model: Arc<Llama>,
    engine: Shared,
    words: Words,
    template: Template,
    bos: String,
    eos: String,
    ends: Vec<Token>,
    generation: Generation,
}

impl LlamaChat {
    /// Loads a folder in the Hugging Face layout, or a GGUF.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        let files = &artifact.files;
        let config: LlamaConfig = artifact.config()?;
        config.check().map_err(|e| Error::bad_file(files.path_of("config.json"), e.to_string()))?;
        let words = artifact.text_tokenizer()?;
        let Some(template) = Template::of_model(files)? else {
            let why = "no chat template here or in chat_template.jinja: this is a model that continues texts, not one that chats";
            return Err(Error::bad_file(files.path_of("tokenizer_config.json"), why));
        };
        let model = Arc::new(Llama::new(&artifact.params(placement)?, &config)?);
        let defaults = GenerationFile::of(files)?;
        let (bos, eos) = marks_of(files)?;
        let (bos, eos) = (bos.unwrap_or_default(), eos.unwrap_or_default());
        let ends = defaults.ends(&config.eos_token_id, &words, &eos)?;
        let generation = defaults.generation();
        let engine = Shared::new(model.clone());
        Ok(Self { model, engine, words, template, bos, eos, ends, generation })
    }

    /// How generation_config.json wants words to be drawn.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Token ids of a conversation up to where the answer begins.
    pub fn context(&self, messages: &[Message]) -> Result<Vec<Token>> {
        let mut json = Vec::new();
        for message in messages {
            // published templates of text models take a message's words as one string
            let mut said = String::new();
            for c in &message.content {
                match c {
                    Content::Text(t) => said.push_str(&self.words.typed(t)),
                    Content::Image(_) | Content::Codes(_) => {
                        return Err(Error::invalid(
                            "this model reads words; for pictures use a LLaVA or a unified model",
                        ));
                    }
                }
            }
            json.push(serde_json::json!({"role": message.role.name(), "content": said}));
        }
        self.template.takes(messages)?;
        let messages = serde_json::Value::Array(json);
        let text = self.template.render(&Conversation::to_answer(&messages, &self.bos, &self.eos))?;
        self.words.encode(&text)
    }

    /// Answers a conversation. What an earlier answer has read of it is not read again.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        request.generation.text.check()?;
        let (most, room) = (self.model.max_positions(), request.max_tokens.min(TEXT_ROOM));
        let ids = request.window.fit(messages, most, room, &|m| self.context(m), &Vec::len)?;
        self.saying().answer(vec![Part::tokens(ids)], request, on)
    }

    /// The likeliest words for each of several conversations, all in one batch.
    pub fn answer_batch(&self, questions: &[Vec<Message>], max_tokens: usize) -> Result<Vec<String>> {
        let part = |q: &Vec<Message>| Ok(vec![Part::tokens(self.context(q)?)]);
        let contexts = questions.iter().map(part).collect::<Result<Vec<_>>>()?;
        self.saying().likeliest(contexts, max_tokens)
    }

    /// Sum of the log-probabilities of each continuation of a text.
    pub(crate) fn likelihoods(&self, context: &str, continuations: &[String]) -> Result<Vec<f64>> {
        let begin = if self.bos.is_empty() { None } else { Some(self.words.mark(&self.bos)?) };
        let rows = 0..self.model.config.vocab_size;
        likelihoods(&self.model, rows, &self.words, begin, context, continuations)
    }

    /// How likely a text is; lm-evaluation-harness begins with the first of these that there is.
    pub(crate) fn text_loss(&self, text: &str, windows: (usize, bool)) -> Result<TextLoss> {
        let mark = |m: &String| if m.is_empty() { None } else { Some(m.clone()) };
        let prefix = mark(&self.bos).or(mark(&self.eos)).map(|m| self.words.mark(&m)).transpose()?;
        text_loss(&self.model, 0..self.model.config.vocab_size, &self.words, prefix, text, windows)
    }

    /// Goes on from a text as it is.
    pub fn complete(&self, text: &str, request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        let begin = if self.bos.is_empty() { None } else { Some(self.words.mark(&self.bos)?) };
        self.saying().complete(begin, text, request, on)
    }

    /// What its words come from.
    pub(crate) fn engine(&self) -> &Shared {
        &self.engine
    }

    fn saying(&self) -> Saying<'_> {
        let rows = Source::rows(0..self.words.rows().min(self.model.config.vocab_size));
        Saying { engine: &self.engine, words: &self.words, rows, banned: Vec::new(), ends: self.ends.clone() }
    }
}
