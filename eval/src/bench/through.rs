//! Pictures through an image tokenizer before a model is shown them: what a task keeps of its score on reconstructions, and with how many bits.

use crate::{Error, Result};
use candle_core::Tensor;
use qlip::Image;
use unified::artifact::{Artifact, Placement};
use unified::eyes::Eyes;

/// A QLIP, and how many of a token's bits are kept.
pub struct Through {
    eyes: Eyes,
    /// All of them if absent; the others are 0, which is neither sign.
    bits: Option<usize>,
    /// Tokenizer and bits, for hashes.
    pub name: String,
}

impl std::fmt::Debug for Through {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Through {
    /// Of `MODEL` or `MODEL:BITS`.
    pub fn open(text: &str, at: &Placement) -> Result<Self> {
        let (place, bits) = match text.rsplit_once(':').map(|(p, b)| (p, b.parse::<usize>())) {
            Some((place, Ok(bits))) => (place, Some(bits)),
            _ => (text, None),
        };
        let whole = match place {
            "nano" => Artifact::nano()?,
            _ => Artifact::open(place)?,
        };
        let artifact = match whole.image_tokenizer()? {
            Some(own) => own,
            None => whole,
        };
        let eyes = Eyes::load(&artifact, at, false)?;
        let all = eyes.model.bsq.bits;
        if bits.is_some_and(|b| b == 0 || b > all) {
            return Err(Error::invalid(format!("--through {text}: 1 to {all} bits")));
        }
        let name = format!("{} {bits:?}", artifact.fingerprint()?);
        Ok(Self { eyes, bits, name })
    }

    /// A picture as it comes back, at the tokenizer's size.
    pub fn one(&self, image: Image) -> Result<Image> {
        let eyes = &self.eyes;
        let codes = eyes.encode(&[image])?;
        let Some(bits) = self.bits else {
            return eyes.decode(&codes)?.pop().ok_or_else(|| Error::invalid("no picture came back"));
        };
        let (model, scale) = (&eyes.model, &eyes.model.logit_scale);
        let all = model.bsq.bits;
        // what is kept has the length of a whole corner again
        let kept: Vec<f32> = (0..all).map(|i| if i < bits { (all as f32 / bits as f32).sqrt() } else { 0.0 }).collect();
        let kept = Tensor::from_vec(kept, all, scale.device())?;
        let corners = model.bsq.corners(&codes.indices, scale.device())?.broadcast_mul(&kept)?;
        let corners = corners.reshape((1, codes.per_image(), all))?.to_dtype(scale.dtype())?;
        let (pixels, _) = model.paint(&model.expand(&corners)?)?;
        eyes.preprocess.images(&pixels)?.pop().ok_or_else(|| Error::invalid("no picture came back"))
    }
}
