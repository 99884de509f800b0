//! What the loss of a tokenizer's training is made of, as its configuration says it.

use super::balance::Balance;
use serde::{Deserialize, Serialize};

/// Weights of the terms (alpha_r, alpha_a, alpha_q, alpha_z, alpha_p, alpha_g in table 8, then terms beyond the paper). A
/// term of weight 0 is not computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Mean squared error of normalised pixels.
    pub reconstruction: f64,
    /// Mean absolute error of normalised pixels; sharper edges than the squared error alone.
    pub l1: f64,
    /// Mean over pictures of the logarithm of a picture's squared error (PSNR up to a factor): drawings that are nearly right count as much as photographs.
    pub log_mse: f64,
    /// Image and text (stage 1).
    pub alignment: f64,
    /// Which loss that is.
    pub alignment_loss: Alignment,
    /// Entropies of the soft codes: (gamma_0 H_sample - gamma_1 H_codebook) / inv_temperature (stage 1).
    pub quantizer: f64,
    /// Distance of latents to their corners (stage 1).
    pub commitment: f64,
    /// Distance in the features of a trained network; needs a section [lpips].
    pub lpips: f64,
    /// Against a discriminator; needs a section [adversary].
    pub adversarial: f64,
    /// Differences of the Gram matrices of the LPIPS trunk's features: texture, without a discriminator (AToken).
    pub gram: f64,
    /// Alignment of the quantised tokens with the text (stage 1).
    pub quantized_alignment: f64,
    /// The class token's likeness to the teacher's; needs `teacher` (stage 1).
    pub distillation: f64,
    /// The quantised tokens' likeness to the teacher's patches; needs `teacher` of the same grid (stage 1).
    pub quantized_distillation: f64,
    /// The first bits against those of `start`, where a tokenizer grows (stage 1).
    pub kept_bits: f64,
    /// Bits of cells that stay as they are when a piece of the picture becomes another's (stage 1). With micro_batch the
    /// pieces come from the same part.
    pub consistency: f64,
    /// How pixels are weighed against alignment.
    pub balance: Balance,
    /// Steps without signs: the decoder reads the latents themselves, which are only bounded (stage 1).
    pub proximal_steps: usize,
    /// Steps after those in which signs take over in a straight line.
    pub proximal_ramp: usize,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            reconstruction: 1.0,
            l1: 0.0,
            log_mse: 0.0,
            alignment: 0.0,
            alignment_loss: Alignment::default(),
            quantizer: 0.0,
            commitment: 0.0,
            lpips: 0.0,
            adversarial: 0.0,
            gram: 0.0,
            quantized_alignment: 0.0,
            distillation: 0.0,
            quantized_distillation: 0.0,
            kept_bits: 0.0,
            consistency: 0.0,
            balance: Balance::default(),
            proximal_steps: 0,
            proximal_ramp: 0,
        }
    }
}

/// Losses of image and text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Alignment {
    /// Softmax over the batch (the paper's).
    #[default]
    InfoNce,
    /// Every pair by itself (SigLIP).
    Sigmoid,
}
