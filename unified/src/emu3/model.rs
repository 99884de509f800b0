//! Emu3's decoder with its image tokenizer; drawings as requests to the engine.

use super::config::Emu3Config;
use crate::artifact::{Artifact, Placement};
use crate::{Error, Result};
use lm::engine::{Finish, Next};
use lm::{Context, Llama, Part, Request, SampleSettings, Token};
use nn::stored::Stored;
use nn::{Params, WeightType};
use qlip::vq::{DecoderLevels, Emu3Tokenizer, llamagen_name};
use qlip::{Image, Pixels};
use std::sync::Arc;

/// Tensors under our names, from either of transformers' layouts.
pub fn ours(stored: Stored, levels: usize) -> Stored {
    stored.renamed(|name| {
        let inner = name.strip_prefix("model.").unwrap_or(name);
        if let Some(rest) = inner.strip_prefix("vqmodel.") {
            return format!("vqmodel.{}", llamagen_name(rest, DecoderLevels::FromFinest(levels)));
        }
        match inner.strip_prefix("text_model.") {
            // the older layout has the whole language model below text_model
            Some(rest) if rest.starts_with("model.") || rest.starts_with("lm_head.") => rest.to_owned(),
            Some(rest) => format!("model.{rest}"),
            None => name.to_owned(),
        }
    })
}

/// A size (height, width) with sides that are multiples of `factor`, and an area between the limits, as near to the picture's shape
/// as that goes (Qwen2-VL's rule).
pub fn resized(height: usize, width: usize, factor: usize, (least, most): (usize, usize)) -> (usize, usize) {
    let (h, w, f) = (height as f64, width as f64, factor as f64);
    let near = |side: f64| ((side / f).round_ties_even() * f).max(f);
    let (rh, rw) = (near(h), near(w));
    if rh * rw > most as f64 {
        let shrink = (h * w / most as f64).sqrt();
        let side = |s: f64| ((s / shrink / f).floor() * f).max(f) as usize;
        return (side(h), side(w));
    }
    if rh * rw < least as f64 {
        let grow = (least as f64 / (h * w)).sqrt();
        let side = |s: f64| ((s * grow / f).ceil() * f) as usize;
        return (side(h), side(w));
    }
    (rh as usize, rw as usize)
}

/// A picture at that size.
pub fn fitted(img: &Image, factor: usize, limits: (usize, usize)) -> Image {
    let (h, w) = resized(img.height(), img.width(), factor, limits);
    qlip::resample::resize(img, w, h)
}

/// The model.
pub struct Emu3 {
    /// Its configuration.
    pub config: Emu3Config,
    /// The decoder.
    pub lm: Arc<Llama>,
    /// The image tokenizer.
    pub vq: Emu3Tokenizer,
    /// Stands where a picture's tokens go.
    pub image: Token,
    /// A row of codes ends.
    pub eol: Token,
    /// The codes end.
    pub eof: Token,
    /// A picture begins; its size follows in words.
    pub begin: Token,
    /// Codes begin.
    pub codes_begin: Token,
    /// A picture ends.
    pub end: Token,
    /// Text ends.
    pub eos: Token,
}

impl Emu3 {
    /// Loads a folder as transformers writes it.
    pub fn load(artifact: &Artifact, placement: &Placement) -> Result<Self> {
        let files = &artifact.files;
        let config = Emu3Config::parse(&files.path_of("config.json"), &files.text("config.json")?)?;
        let stored = ours(artifact.tensors()?, config.vq.net.encoder_ch_mult.len());
        let origin = files.weights_path().display().to_string();
        let params = Params::from_tensors(origin, stored, placement.dtype, &placement.device);
        Self::new(&params.stored_as(placement.weights), config)
    }

    /// Takes the tensors, under our names.
    pub fn new(p: &Params, config: Emu3Config) -> Result<Self> {
        let vq = p.clone().stored_as(p.weights().map(WeightType::for_pictures)).at("vqmodel");
        Ok(Self {
            lm: Arc::new(Llama::new(p, &config.text)?),
            vq: Emu3Tokenizer::new(&vq, &config.vq)?,
            image: config.mark("<image>")?,
            eol: config.mark("<|extra_200|>")?,
            eof: config.mark("<|extra_201|>")?,
            begin: config.mark("<|image start|>")?,
            codes_begin: config.mark("<|image token|>")?,
            end: config.mark("<|image end|>")?,
            eos: config.mark("<|extra_204|>")?,
            config,
        })
    }

    /// Tokens of pictures' codes, each row of `columns` closed by its mark.
    pub fn tokens(&self, codes: &[u32], columns: usize) -> Result<Vec<Token>> {
        let mut out = Vec::with_capacity(codes.len() + codes.len() / columns.max(1));
        for row in codes.chunks(columns.max(1)) {
            for &c in row {
                let token = self.config.codes.token(c);
                out.push(token.ok_or_else(|| Error::invalid(format!("code {c} has no token")))?);
            }
            out.push(self.eol);
        }
        Ok(out)
    }

    /// Codes of pictures [pictures, 3, height, width], with rows and columns.
    pub fn read(&self, pixels: &Pixels) -> Result<(Vec<u32>, usize, usize)> {
        let pre = self.vq.pre_quant(&self.vq.encoder_out(&self.vq.frames(pixels)?)?)?;
        let (_, _, _, rows, columns) = pre.dims5()?;
        Ok((self.vq.codes(&pre)?, rows, columns))
    }

    /// Rows and columns that a prompt asks for: the words between the picture's beginning and its codes, "90*90".
    pub fn asked(&self, prompt: &[Token]) -> Result<(usize, usize)> {
        let missing =
            || Error::invalid("the prompt has no size of a picture, as in <|image start|>90*90<|image token|>");
        let from = prompt.iter().rposition(|&t| t == self.begin).ok_or_else(missing)?;
        let to = prompt[from..].iter().position(|&t| t == self.codes_begin).ok_or_else(missing)?;
        let ids = &prompt[from + 1..from + to];
        let word = |id: &Token| self.config.vocabulary.iter().find(|(_, v)| *v == id).map(|(w, _)| w.as_str());
        let text: String = ids.iter().filter_map(word).collect();
        let sizes = text.split_once('*').and_then(|(h, w)| Some((h.trim().parse().ok()?, w.trim().parse().ok()?)));
        match sizes {
            Some((h, w)) if h > 0 && w > 0 && h * w <= 1 << 20 => Ok((h, w)),
            _ => Err(Error::invalid(format!("`{text}` is not a size of a picture, as 90*90"))),
        }
    }

    /// A request that draws `rows` x `columns` codes after a prompt that ends where codes begin: marks are forced by their place.
    pub fn drawing(
        &self,
        prompt: &[Token],
        negative: Option<(&[Token], f32)>,
        (rows, columns): (usize, usize),
        s: SampleSettings,
        seed: (u64, u64),
    ) -> Request {
        let source = self.config.codes.source();
        let (eol, ends) = (self.eol, [self.eof, self.end, self.eos]);
        let all = rows * (columns + 1);
        let grammar = Box::new(move |tokens: &[Token]| match tokens.len() {
            n if n < all && n % (columns + 1) == columns => Next::Only(0, eol),
            n if n < all => Next::Choose(source),
            n if n - all < ends.len() => Next::Only(0, ends[n - all]),
            _ => Next::Done(Finish::Stop),
        });
        let whole = |ids: &[Token]| Context::new(vec![Part::tokens(ids)]);
        let mut request = Request::new(whole(prompt), s, seed, grammar);
        request.banned = self.config.codes.between();
        match negative {
            Some((ids, scale)) if scale != 1.0 => request.guided(whole(ids), move |_| Some(scale)),
            _ => request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_within_the_areas() {
        let published = (512 * 512, 1024 * 1024);
        for ((h, w), want) in [
            ((720, 1280), (720, 1280)),
            ((1080, 1920), (768, 1360)),
            ((333, 500), (424, 632)),
            ((2000, 500), (2000, 496)),
            ((31, 23), (600, 448)),
            ((12, 2000), (40, 6616)),
        ] {
            assert_eq!(resized(h, w, 8, published), want, "{h} x {w}");
        }
    }
}
