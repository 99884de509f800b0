//! The two stages of tokenizer training (QLIP section 4, table 8): what is trained, frozen and dropped in each.
//!
//! Stage 1 trains everything on alignment, pixels and the quantizer's terms. Stage 2 freezes the vision tower and the
//! way down to the bits, drops the text tower, and trains the way up and the decoder on pixels alone.

use crate::image::Pixels;
use crate::loss::{accuracy, info_nce};
use crate::model::Qlip;
use candle_core::{DType, Tensor};
use nn::Result;
use nn::train::StepOutput;
use serde::{Deserialize, Serialize};

/// Weights of the loss terms (alpha_r, alpha_a, alpha_q, alpha_z in table 8).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossWeights {
    /// Mean squared error of normalised pixels.
    pub reconstruction: f64,
    /// Mean absolute error of normalised pixels; sharper edges than the squared error alone.
    #[serde(default)]
    pub l1: f64,
    /// Symmetric InfoNCE of image and text.
    pub alignment: f64,
    /// Entropies of the soft codes: (gamma_0 H_sample - gamma_1 H_codebook) / inv_temperature.
    pub quantizer: f64,
    /// Distance of latents to their corners.
    pub commitment: f64,
}

/// Names that stage 2 leaves as they are.
pub const STAGE2_FROZEN: &[&str] = &[
    "vision_model.embeddings",
    "vision_model.encoder",
    "vision_model.post_layernorm",
    "vision_model.quant_embed.",
    "visual_projection",
    "text_projection",
    "text_model",
    "logit_scale",
];

/// Pictures with their captions.
pub struct PairBatch {
    /// Pixels [batch, 3, size, size].
    pub pixels: Pixels,
    /// Token ids of the captions, padded, `text_tokens` each.
    pub text_ids: Vec<u32>,
    /// Tokens a caption.
    pub text_tokens: usize,
    /// An id a caption; equal captions share one.
    pub caption_of: Vec<usize>,
}

fn number(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_dtype(DType::F32)?.to_scalar::<f32>()?))
}

/// Loss of stage 1.
pub fn stage1(model: &Qlip, batch: &PairBatch, w: &LossWeights) -> Result<StepOutput> {
    let out = model.encode(&batch.pixels)?;
    let recon = model.paint(&model.expand(&model.bsq.quantize(&out.latents)?)?)?.0;
    let difference = (&recon.0 - &batch.pixels.0)?;
    let (mse, l1) = (difference.sqr()?.mean_all()?, difference.abs()?.mean_all()?);
    let image = model.embed_image(&out.pooled)?;
    let text = model.embed_text(&batch.text_ids, batch.text_tokens)?;
    let align = info_nce(&text, &image, &model.logit_scale, &batch.caption_of)?;
    let e = model.bsq.entropies(&out.latents)?;
    let q = &model.config.vision_config.quantizer_cfg;
    let spread = ((&e.sample * q.gamma_0)? - (&e.codebook * q.gamma_1)?)?.affine(1.0 / q.inv_temperature, 0.0)?;
    let commit = model.bsq.commitment(&out.latents)?;
    let terms =
        [(w.reconstruction, &mse), (w.l1, &l1), (w.alignment, &align), (w.quantizer, &spread), (w.commitment, &commit)];
    let metrics = vec![
        ("mse", number(&mse)?),
        ("l1", number(&l1)?),
        ("align", number(&align)?),
        ("align_accuracy", accuracy(&text, &image, &batch.caption_of)?),
        ("sample_entropy", number(&e.sample)?),
        ("codebook_entropy", number(&e.codebook)?),
        ("commitment", number(&commit)?),
        ("logit_scale", number(&model.logit_scale.exp()?)?),
    ];
    Ok(StepOutput { loss: weighted(&terms)?, metrics })
}

/// Loss of stage 2: the tower runs without a graph.
pub fn stage2(model: &Qlip, pixels: &Pixels) -> Result<StepOutput> {
    let latents = nn::ops::in_float32(|| model.encode(pixels))?.latents;
    let quantized = model.bsq.quantize(&latents)?.detach();
    let recon = model.paint(&model.expand(&quantized)?)?.0;
    let mse = (&recon.0 - &pixels.0)?.sqr()?.mean_all()?;
    let metrics = vec![("mse", number(&mse)?)];
    Ok(StepOutput { loss: mse, metrics })
}

fn weighted(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (w, t) in terms {
        let t = (*t * *w)?;
        sum = Some(match sum {
            Some(s) => (s + t)?,
            None => t,
        });
    }
    sum.ok_or_else(|| nn::Error::invalid("no loss term"))
}
