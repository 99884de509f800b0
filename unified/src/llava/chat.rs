//! A LLaVA checkpoint ready for conversation.

use super::model::Llava;
use crate::artifact::{Artifact, ModelFiles, Placement, text_tokenizer};
use crate::config::Generation;
use crate::conversation::{Content, Event, Message, Reply, Request};
use crate::generation::GenerationFile;
use crate::likelihood::{TextLoss, likelihoods, text_loss};
use crate::say::Saying;
use crate::seen::Seen;
use crate::template::{Conversation, Template, marks_of};
use crate::words::Words;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use lm::llama::TokenIds;
use lm::{Part, Shared, Source, Token};
use qlip::{Image, Preprocess};

/// Vicuna's conversation, version 1: for checkpoints that carry no template.
pub const VICUNA_V1: &str = "\
{% if messages[0].role == 'system' %}{% set system = messages[0].content[0].text %}{% set messages = messages[1:] %}\
{% else %}{% set system = \"A chat between a curious human and an artificial intelligence assistant. \
The assistant gives helpful, detailed, and polite answers to the human's questions.\" %}{% endif %}{{ system }}\
{% for m in messages %}{{ ' USER: ' if m.role == 'user' else ' ASSISTANT: ' }}\
{% for c in m.content if c.type == 'image' %}{{ '<image>\\n' }}{% endfor %}\
{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}\
{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}";

/// What templates of this family write where a picture goes.
const IMAGE_MARK: &str = "<image>";

/// Tokens that a trimmed conversation leaves room for.
const TEXT_ROOM: usize = 256;

/// A model with its tokenizer, template and preprocessing.
pub struct LlavaChat {
    /// The model.
    pub model: Llava,
    preprocess: Preprocess,
    words: Words,
    template: Template,
    bos: String,
    eos: String,
    ends: Vec<Token>,
    device: Device,
    engine: Shared,
    seen: Seen<Tensor>,
    /// The tokenizer's number of the picture's mark.
    mark: Token,
    /// Rows of words.
    rows: usize,
    generation: Generation,
}

impl LlavaChat {
    /// Loads a model folder of either layout.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        Self::of(Llava::load(artifact, placement)?, &artifact.files, placement)
    }

    /// A model with the tokenizer, template and preprocessing of a folder.
    pub fn of(model: Llava, files: &ModelFiles, placement: &Placement) -> Result<Self> {
        let config = model.config.clone();
        let side = model.side();
        let preprocess = files.preprocess(side)?;
        if preprocess.crop_size != side {
            let why = format!("crops of {} pixels for a tower of {side}", preprocess.crop_size);
            return Err(Error::bad_file(files.path_of("preprocessor_config.json"), why));
        }
        let words = text_tokenizer(files)?;
        let rows = words.rows();
        // where the tokenizer does not know the picture's mark, it gets a number beyond the others that stands for it here
        let words = words.with_marks(&[IMAGE_MARK])?;
        let picture_mark = words.mark(IMAGE_MARK)?;
        let mark = |id: &Option<TokenIds>, or: &str| match id {
            Some(TokenIds::One(i)) => words.token(*i).unwrap_or_else(|| or.to_owned()),
            _ => or.to_owned(),
        };
        let text = &config.text_config;
        let (bos, eos) = marks_of(files)?;
        let bos = bos.unwrap_or_else(|| mark(&text.bos_token_id, "<s>"));
        let eos = eos.unwrap_or_else(|| mark(&text.eos_token_id, "</s>"));
        let defaults = GenerationFile::of(files)?;
        let ends = defaults.ends(&text.eos_token_id, &words, &eos)?;
        let generation = defaults.generation();
        let template = match files {
            // the embedded model's template is not for pictures as this family shows them
            ModelFiles::Embedded(..) => None,
            _ => Template::of_model(files)?,
        };
        let template = template.map_or_else(|| Template::new(VICUNA_V1), Ok)?;
        let (engine, device) = (Shared::new(model.lm.clone()), placement.device.clone());
        Ok(Self {
            model,
            preprocess,
            words,
            template,
            bos,
            eos,
            ends,
            device,
            engine,
            seen: Seen::new(),
            mark: picture_mark,
            rows,
            generation,
        })
    }

    /// Token ids of a conversation up to where the answer begins, each picture as many image tokens as it has
    /// features; and the pictures.
    pub fn context(&self, messages: &[Message]) -> Result<(Vec<Token>, Vec<Image>)> {
        let mut pictures = Vec::new();
        let mut json = Vec::new();
        for message in messages {
            let mut content = Vec::new();
            for c in &message.content {
                content.push(match c {
                    // a mark typed by a person is words, not a picture
                    Content::Text(t) => serde_json::json!({"type": "text", "text": self.words.typed(t)}),
                    Content::Image(i) => {
                        pictures.push(i.clone());
                        serde_json::json!({"type": "image"})
                    }
                    Content::Codes(_) => return Err(Error::invalid("this model sees pictures, not codes")),
                });
            }
            json.push(serde_json::json!({"role": message.role.name(), "content": content}));
        }
        self.template.takes(messages)?;
        let messages = serde_json::Value::Array(json);
        let mut text = self.template.render(&Conversation::to_answer(&messages, &self.bos, &self.eos))?;
        if !text.starts_with(&self.bos) {
            text.insert_str(0, &self.bos);
        }
        let image = self.model.config.image_token_index;
        let per_picture = self.model.tokens_per_picture();
        // as a whole, so that words around a picture become the tokens that they became in training
        let mut ids = Vec::new();
        let mut shown = 0;
        for id in self.words.encode(&text)? {
            if id == self.mark {
                shown += 1;
                ids.extend(std::iter::repeat_n(image, per_picture));
            } else {
                ids.push(id);
            }
        }
        if shown != pictures.len() {
            let n = pictures.len();
            return Err(Error::invalid(format!("the chat template shows {shown} pictures where there are {n}")));
        }
        Ok((ids, pictures))
    }

    /// Answers a conversation with words. What an earlier answer has read of it is not read again, and a picture is looked
    /// at once.
    pub fn answer(&self, messages: &[Message], request: &Request, on: &mut dyn FnMut(Event) -> bool) -> Result<Reply> {
        request.generation.text.check()?;
        let (most, room) = (self.model.lm.max_positions(), request.max_tokens.min(TEXT_ROOM));
        let (ids, pictures) = request.window.fit(messages, most, room, &|m| self.context(m), &|c| c.0.len())?;
        self.saying().answer(self.parts(&ids, &pictures)?, request, on)
    }

    /// The likeliest words for each of several questions, all in one batch.
    pub fn answer_batch(&self, questions: &[Vec<Message>], max_tokens: usize) -> Result<Vec<String>> {
        let parts = |q: &Vec<Message>| {
            let (ids, pictures) = self.context(q)?;
            self.parts(&ids, &pictures)
        };
        let contexts = questions.iter().map(parts).collect::<Result<Vec<_>>>()?;
        self.saying().likeliest(contexts, max_tokens)
    }

    /// How pictures are prepared.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// How generation_config.json wants words to be drawn.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Sum of the log-probabilities of each continuation of a text.
    pub(crate) fn likelihoods(&self, context: &str, continuations: &[String]) -> Result<Vec<f64>> {
        let begin = if self.bos.is_empty() { None } else { Some(self.words.mark(&self.bos)?) };
        let rows = 0..self.model.config.text_config.vocab_size;
        likelihoods(&self.model.lm, rows, &self.words, begin, context, continuations)
    }

    /// How likely a text is.
    pub(crate) fn text_loss(&self, text: &str, windows: (usize, bool)) -> Result<TextLoss> {
        let prefix = if self.bos.is_empty() { None } else { Some(self.words.mark(&self.bos)?) };
        let rows = 0..self.model.config.text_config.vocab_size;
        text_loss(&self.model.lm, rows, &self.words, prefix, text, windows)
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
        // rows past the tokenizer's are padding of the table, and the image token has no face
        let rows = Source::rows(0..self.rows.min(self.model.config.text_config.vocab_size));
        let banned = vec![self.model.config.image_token_index];
        Saying { engine: &self.engine, words: &self.words, rows, banned, ends: self.ends.clone() }
    }

    /// Ids in which image tokens are places for pictures, as the engine reads them.
    fn parts(&self, ids: &[Token], pictures: &[Image]) -> Result<Vec<Part>> {
        let (image, per) = (self.model.config.image_token_index, self.model.tokens_per_picture());
        let mut parts = Vec::new();
        let mut shown = pictures.iter();
        for run in ids.chunk_by(|a, b| (*a == image) == (*b == image)) {
            if run[0] != image {
                parts.push(Part::tokens(run));
                continue;
            }
            for _ in 0..run.len() / per.max(1) {
                let picture = shown.next().ok_or_else(|| Error::invalid("fewer pictures than image tokens"))?;
                let (key, features) = self.seen.get(picture, || self.features(picture))?;
                let keys = (0..per as u64).map(|i| nn::rng::mix(key ^ i)).collect();
                parts.push(Part::Embedded(features, keys));
            }
        }
        Ok(parts)
    }

    /// Features of a picture [tokens, width], padded to a square first.
    fn features(&self, picture: &Image) -> Result<Tensor> {
        let square = self.preprocess.pad(picture)?;
        let pixels = self.preprocess.normalise(&[square], &self.device)?;
        let pixels = qlip::Pixels(pixels.0.to_dtype(self.model.dtype())?);
        Ok(self.model.project(&self.model.see(&pixels)?)?.squeeze(0)?)
    }
}
