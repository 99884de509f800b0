//! LlamaGen with the image tokenizer that it draws through, and the text encoder by which it reads captions.

use crate::artifact::{Architecture, Artifact, Placement};
use crate::captions::{Captions, TextEncoder};
use crate::loaded::OnRow;
use crate::visual::VisualTokenizer;
use crate::{Error, Result};
use candle_core::Tensor;
use lm::Token;
use lm::draw::{DrawSettings, draw};
use lm::llamagen::{Condition, LlamaGen, LlamaGenConfig, ModelType};
use qlip::Image;
use std::sync::{Arc, Mutex, PoisonError};

/// The decoder of a LlamaGen.
pub fn decoder(artifact: &Artifact, at: &Placement) -> Result<Arc<LlamaGen>> {
    artifact.must("draw classes or captions", artifact.architecture == Architecture::LlamaGen)?;
    let config: LlamaGenConfig = artifact.config()?;
    Ok(Arc::new(LlamaGen::new(&artifact.params(at)?, &config)?))
}

/// An image tokenizer, as a model with this configuration reads it.
pub fn tokenizer_of(c: &LlamaGenConfig, tokenizer: &Artifact, at: &Placement) -> Result<VisualTokenizer> {
    let group_bits = match &c.bitwise {
        Some(b) => Some(b.bits),
        None => (c.sub_tokens > 1).then(|| c.vocab_size.max(1).ilog2() as usize),
    };
    let visual = VisualTokenizer::load(tokenizer, group_bits, Some(c.grid()), at)?;
    let codes = c.bitwise.map_or(c.vocab_size, |b| 1 << b.bits);
    if (visual.vocab(), visual.sub_tokens(), visual.grid()) != (codes, c.sub_tokens, c.grid()) {
        let (n, sub, grid) = (visual.vocab(), visual.sub_tokens(), visual.grid());
        let why = format!(
            "a codebook of {n}, {sub} tokens a cell, {grid} cells a side, for a model of {codes} codes, {}, {}; give its own tokenizer",
            c.sub_tokens,
            c.grid()
        );
        return Err(Error::bad_file(tokenizer.files.folder(), why));
    }
    Ok(visual)
}

/// What a picture is drawn from.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Words.
    Words(String),
    /// A class, by its number.
    Class(u32),
    /// A class, by its name.
    ClassName(String),
    /// One of several captions whose features were made before.
    Caption(Arc<Captions>, usize),
}

/// A LlamaGen with all that it draws through.
pub struct Painter {
    /// The decoder.
    pub model: Arc<LlamaGen>,
    visual: Option<VisualTokenizer>,
    encoder: Option<Mutex<TextEncoder>>,
    classes: Vec<String>,
}

impl Painter {
    /// Loads a model with its own image tokenizer, or the one that is given.
    pub fn load(artifact: &Artifact, tokenizer: Option<&Artifact>, at: &Placement) -> Result<Self> {
        let this = Self::codes_alone(artifact, at)?;
        let own = if tokenizer.is_none() { artifact.image_tokenizer()? } else { None };
        let tokenizer = tokenizer.or(own.as_ref()).ok_or_else(|| {
            let why =
                "no folder `vq` or `qlip` with its image tokenizer, and no vq_ds16_*.pt beside it; give --tokenizer";
            Error::bad_file(artifact.files.folder(), format!("{why}, or --codes-only"))
        })?;
        let visual = tokenizer_of(&this.model.config, tokenizer, at)?;
        Ok(Self { visual: Some(visual), ..this })
    }

    /// Loads a model without an image tokenizer.
    pub fn codes_alone(artifact: &Artifact, at: &Placement) -> Result<Self> {
        let model = decoder(artifact, at)?;
        let encoder = match (model.config.model_type, artifact.text_encoder()?) {
            (ModelType::T2i, Some(t5)) => Some(Mutex::new(TextEncoder::load(&t5, &at.device)?)),
            _ => None,
        };
        Ok(Self { model, visual: None, encoder, classes: classes(artifact)? })
    }

    /// The same with a text encoder that is not in the model's folder.
    pub fn with_encoder(self, t5: &Artifact, at: &Placement) -> Result<Self> {
        Ok(Self { encoder: Some(Mutex::new(TextEncoder::load(t5, &at.device)?)), ..self })
    }

    /// Whether it draws classes; else captions.
    pub fn draws_classes(&self) -> bool {
        self.model.config.model_type == ModelType::C2i
    }

    /// What its codes become pictures by; nothing of codes alone.
    pub fn visual(&self) -> Option<&VisualTokenizer> {
        self.visual.as_ref()
    }

    /// Pixels along a picture's side; 0 without an image tokenizer.
    pub fn side(&self) -> usize {
        self.visual.as_ref().map_or(0, VisualTokenizer::side)
    }

    /// A picture of which only the first tokens are drawn.
    pub fn sketch(&self, tokens: &[Token]) -> Result<Image> {
        self.visual.as_ref().ok_or_else(|| Error::invalid("no image tokenizer: codes alone"))?.sketch(tokens)
    }

    fn condition(&self, wanted: &[Wanted]) -> Result<Condition> {
        let no = |why: &str| Error::Unsupported(why.into());
        if self.draws_classes() {
            let class = |w: &Wanted| match w {
                Wanted::Class(c) => Ok(*c),
                Wanted::ClassName(name) => class_of(&self.classes, name),
                Wanted::Words(_) | Wanted::Caption(..) => {
                    Err(no("this model draws classes: give --class, as in --class 0,3"))
                }
            };
            return Ok(Condition::Classes(wanted.iter().map(class).collect::<Result<_>>()?));
        }
        let (mut features, mut pads) = (Vec::new(), Vec::new());
        for run in wanted.chunk_by(|a, b| matches!((a, b), (Wanted::Words(a), Wanted::Words(b)) if a == b)) {
            let one = match &run[0] {
                Wanted::Words(words) => {
                    let Some(encoder) = &self.encoder else {
                        return Err(no(
                            "this model draws captions through a T5 encoder, of which there is none in its folder `t5`: give \
                             its folder by --text-encoder DIR, or features by --features FILE (unified features makes them)",
                        ));
                    };
                    let mut encoder = encoder.lock().unwrap_or_else(PoisonError::into_inner);
                    let captions = encoder.encode(std::slice::from_ref(words), self.model.config.cls_token_num)?;
                    captions.condition(&vec![0; run.len()])?
                }
                Wanted::Caption(captions, i) => captions.condition(&[*i])?,
                Wanted::Class(_) | Wanted::ClassName(_) => {
                    return Err(no("this model draws captions, not classes: give words"));
                }
            };
            if let Condition::Captions(f, p) = one {
                features.push(f.to_device(self.model.device())?);
                pads.extend(p);
            }
        }
        Ok(Condition::Captions(Tensor::cat(&features, 0)?, pads))
    }

    /// Tokens of a picture for each seed.
    pub fn tokens(&self, wanted: &[Wanted], seeds: &[u64], s: &DrawSettings, on_row: OnRow) -> Result<Vec<Vec<Token>>> {
        draw(&self.model, &self.condition(wanted)?, seeds, s, on_row)
    }

    /// A picture for each seed.
    pub fn draw(&self, wanted: &[Wanted], seeds: &[u64], s: &DrawSettings, on_row: OnRow) -> Result<Vec<Image>> {
        let visual = self.visual.as_ref().ok_or_else(|| Error::invalid("no image tokenizer: codes alone"))?;
        visual.images(&self.tokens(wanted, seeds, s, on_row)?)
    }
}

/// Names of a model's classes, where it has a classes.json.
pub fn classes(artifact: &Artifact) -> Result<Vec<String>> {
    const NAME: &str = "classes.json";
    if !artifact.files.has(NAME) {
        return Ok(Vec::new());
    }
    serde_json::from_str(&artifact.files.text(NAME)?)
        .map_err(|e| Error::bad_file(artifact.files.path_of(NAME), format!("not a list of names ({e})")))
}

/// The number of a class by its name.
pub fn class_of(classes: &[String], name: &str) -> Result<u32> {
    match classes.iter().position(|c| c.eq_ignore_ascii_case(name)) {
        Some(i) => Ok(i as u32),
        None if classes.is_empty() => {
            Err(Error::invalid(format!("class `{name}`: the model has no classes.json with names; give its number")))
        }
        None => Err(Error::invalid(format!("class `{name}` is none of the model's: {}", classes.join(", ")))),
    }
}
