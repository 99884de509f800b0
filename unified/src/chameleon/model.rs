//! Chameleon's decoder with its image tokenizer; words and pictures as requests to the engine.

use super::config::ChameleonConfig;
use crate::artifact::{Artifact, Placement};
use crate::{Error, Result};
use lm::engine::{Finish, Next};
use lm::{Context, Llama, Part, Request, SampleSettings, Source, Token};
use nn::stored::Stored;
use nn::{Params, WeightType};
use qlip::Pixels;
use qlip::vq::{DecoderLevels, VqTokenizer, llamagen_name};
use std::sync::Arc;

/// Tensors under our names: transformers', but for the image tokenizer's.
pub fn ours(stored: Stored, levels: usize) -> Stored {
    stored.renamed(|name| match name.strip_prefix("model.vqmodel.") {
        Some(rest) => format!("vqmodel.{}", llamagen_name(rest, DecoderLevels::FromFinest(levels))),
        None => name.to_owned(),
    })
}

/// The model.
pub struct Chameleon {
    /// Its configuration.
    pub config: ChameleonConfig,
    /// The decoder.
    pub lm: Arc<Llama>,
    /// The image tokenizer; published files of Chameleon hold the half that reads pictures alone.
    pub vq: VqTokenizer,
    /// Text begins.
    pub bos: Token,
    /// Text ends.
    pub eos: Token,
    /// A picture begins.
    pub begin: Token,
    /// A picture ends.
    pub end: Token,
    /// Stands where a picture's codes go.
    pub image: Token,
    not_words: Vec<Token>,
}

impl Chameleon {
    /// Loads a folder as transformers writes it.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        let files = &artifact.files;
        let config = ChameleonConfig::parse(&files.path_of("config.json"), &files.text("config.json")?)?;
        let stored = ours(artifact.tensors()?, config.vq.encoder_ch_mult.len());
        let origin = files.weights_path().display().to_string();
        let params = Params::from_tensors(origin, stored, placement.dtype, &placement.device);
        Self::new(&params.stored_as(placement.weights), config)
    }

    /// Takes the tensors, under our names.
    pub fn new(p: &Params, config: ChameleonConfig) -> Result<Self> {
        let vq = p.clone().stored_as(p.weights().map(WeightType::for_pictures)).at("vqmodel");
        let paints = vq.contains("decoder.conv_in.weight");
        let mark = |writings: &[&str]| config.mark(writings);
        Ok(Self {
            lm: Arc::new(Llama::of_blocks(p, &config.text, &config.block())?),
            vq: if paints { VqTokenizer::new(&vq, &config.vq)? } else { VqTokenizer::seeing(&vq, &config.vq)? },
            bos: mark(&["<s>"])?,
            eos: mark(&["</s>"])?,
            begin: mark(&["<racm3:break>"])?,
            end: mark(&["<eoss>"])?,
            image: mark(&["<image>", "<reserved08707>"])?,
            not_words: config.not_words(),
            config,
        })
    }

    /// Entries that are no words.
    pub fn not_words(&self) -> &[Token] {
        &self.not_words
    }

    /// Codes of a picture.
    pub fn codes_per_picture(&self) -> usize {
        self.config.grid() * self.config.grid()
    }

    /// Tokens of pictures, one after the other.
    pub fn read(&self, pixels: &Pixels) -> Result<Vec<Token>> {
        let codes = self.vq.quantise(&self.vq.pre_quant(&self.vq.encoder_out(pixels)?)?)?.indices;
        let token = |c| self.config.codes.token(c).ok_or_else(|| Error::invalid(format!("code {c} has no token")));
        codes.into_iter().map(token).collect()
    }

    /// Pixels of pictures' tokens.
    pub fn paint(&self, tokens: &[Token]) -> Result<Pixels> {
        let code =
            |&t: &Token| self.config.codes.code(t).ok_or_else(|| Error::invalid(format!("token {t} is no code")));
        let codes = tokens.iter().map(code).collect::<Result<Vec<_>>>()?;
        let grid = self.config.grid();
        self.vq.decode(&self.vq.look_up(&codes, grid, grid)?)
    }

    /// At most `most` words after a context, up to the text's end, and a picture's beginning where pictures may come.
    pub fn words(
        &self,
        context: Vec<Token>,
        pictures: bool,
        most: usize,
        s: SampleSettings,
        seed: (u64, u64),
    ) -> Request {
        let rows = Source::rows(0..self.config.text.vocab_size);
        let (eos, begin) = (self.eos, self.begin);
        let grammar = Box::new(move |tokens: &[Token]| match tokens.last() {
            Some(&t) if t == eos || t == begin => Next::Done(Finish::Stop),
            _ if tokens.len() >= most => Next::Done(Finish::Length),
            _ => Next::Choose(rows),
        });
        let mut request = Request::new(Context::new(vec![Part::tokens(context)]), s, seed, grammar);
        let may = |t: &Token| *t == eos || (pictures && *t == begin);
        request.banned = self.not_words.iter().copied().filter(|t| !may(t)).collect();
        request
    }

    /// A picture after a context that ends with its begin mark; guided by two more contexts where scales are given: of what has no
    /// words ("pictures": codes, and the marks around them), and of nothing. Logits are
    /// none + scales[0] (pictures - none) + scales[1] (full - pictures).
    pub fn drawing(
        &self,
        context: Vec<Token>,
        scales: Option<[f32; 2]>,
        s: SampleSettings,
        seed: (u64, u64),
    ) -> Request {
        let source = self.config.codes.source();
        let grammar = lm::engine::in_turn(vec![source; self.codes_per_picture()]);
        let whole = |ids: Vec<Token>| Context::new(vec![Part::tokens(ids)]);
        let kept = |t: &Token| [self.bos, self.begin, self.end].contains(t) || self.config.codes.code(*t).is_some();
        let pictures = context.iter().copied().filter(kept).collect();
        let mut request = Request::new(whole(context), s, seed, grammar);
        request.banned = self.config.codes.between();
        if let Some(scales) = scales {
            request.peers = vec![whole(vec![self.bos, self.begin]), whole(pictures)];
            request.scales = Box::new(move |_| Some(scales.to_vec()));
        }
        request
    }
}
