//! Binary spherical quantization (arXiv 2406.07548; QLIP section 3): a unit vector to the nearest corner of the
//! hypercube, straight-through gradients, soft entropies.

use crate::config::{EntropyMode, QuantizerConfig};
use candle_core::{D, DType, Tensor};
use nn::Result;

/// Unit vectors before quantisation [batch, tokens, bits].
#[derive(Debug, Clone)]
pub struct Latents(pub Tensor);

/// The quantizer's losses, scalars in nats (entropies) or squared distance.
pub struct Entropies {
    /// Mean over tokens of the entropy of the soft code.
    pub sample: Tensor,
    /// Entropy of the mean soft code.
    pub codebook: Tensor,
}

/// Quantizer of `bits` dimensions in groups.
#[derive(Debug, Clone)]
pub struct Bsq {
    /// Dimensions, one bit each.
    pub bits: usize,
    /// Bits in a group.
    pub group: usize,
    mode: EntropyMode,
    inv_temperature: f64,
}

impl Bsq {
    /// From the published arguments.
    pub fn new(c: &QuantizerConfig) -> Self {
        Self {
            bits: c.embed_dim,
            group: c.group_size,
            mode: match c.persample_entropy_compute {
                // a single bit has no halves
                EntropyMode::Factorised if c.group_size < 2 => EntropyMode::Group,
                mode => mode,
            },
            inv_temperature: c.inv_temperature,
        }
    }

    fn scale(&self) -> f64 {
        (self.bits as f64).powf(-0.5)
    }

    /// x / max(|x|, 1e-12) over the last dimension.
    pub fn normalise(&self, x: &Tensor) -> Result<Latents> {
        Ok(Latents(unit(x)?))
    }

    /// Corners plus or minus 1/sqrt(bits), of the latents' shape; the gradient passes straight through times 1/sqrt(bits).
    pub fn quantize(&self, h: &Latents) -> Result<Tensor> {
        let sign = signs(&h.0)?;
        Ok(((&h.0 + (sign - &h.0)?.detach())? * self.scale())?)
    }

    /// One integer for each token, dimension 0 the most significant bit; a bit is 1 where the latent is positive.
    pub fn indices(&self, h: &Latents) -> Result<Vec<u64>> {
        let values = h.0.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(values
            .chunks_exact(self.bits)
            .map(|t| t.iter().fold(0, |code, &v| code << 1 | u64::from(v > 0.0)))
            .collect())
    }

    /// Corners of codes, [codes, bits] of plus or minus 1/sqrt(bits).
    pub fn corners(&self, indices: &[u64], device: &candle_core::Device) -> Result<Tensor> {
        if self.bits > 64 {
            return Err(nn::Error::invalid(format!("codes of {} bits do not fit an integer of 64", self.bits)));
        }
        let s = self.scale() as f32;
        let values: Vec<f32> = indices
            .iter()
            .flat_map(|&code| (0..self.bits).rev().map(move |bit| if code >> bit & 1 == 1 { s } else { -s }))
            .collect();
        Ok(Tensor::from_vec(values, (indices.len(), self.bits), device)?)
    }

    /// Mean over tokens of |sg(quantized) - h|^2.
    pub fn commitment(&self, h: &Latents) -> Result<Tensor> {
        let q = self.quantize(h)?.detach();
        Ok((q - &h.0)?.sqr()?.sum(D::Minus1)?.mean_all()?)
    }

    /// Both soft entropies.
    pub fn entropies(&self, h: &Latents) -> Result<Entropies> {
        let tokens = h.0.elem_count() / self.bits;
        match self.mode {
            EntropyMode::Analytical => {
                let logits = (h.0.reshape((tokens, self.bits))? * (4.0 * self.inv_temperature * self.scale()))?;
                // beyond this float32's exp is infinite, and the bit certain
                let logits = logits.clamp(-80.0, 80.0)?;
                let p = ((logits.neg()?.exp()? + 1.0)?.recip())?;
                let sample = (entropy(&p)? + entropy(&p.affine(-1.0, 1.0)?)?)?.sum(1)?.mean_all()?;
                let mean = p.mean(0)?;
                let codebook = (entropy(&mean)? + entropy(&mean.affine(-1.0, 1.0)?)?)?.sum_all()?;
                Ok(Entropies { sample, codebook })
            }
            EntropyMode::Group => {
                let u = h.0.reshape((tokens, self.bits / self.group, self.group))?;
                let p = self.soft_corners(&u)?;
                let sample = entropy(&p)?.sum(2)?.sum(1)?.mean_all()?;
                let codebook = entropy(&p.mean(0)?)?.sum_all()?;
                Ok(Entropies { sample, codebook })
            }
            EntropyMode::Factorised => {
                // the probability of a corner is a product over its bits, so of what its halves have
                let (groups, first) = (self.bits / self.group, self.group / 2);
                let u = h.0.reshape((tokens, groups, self.group))?.transpose(0, 1)?;
                let half = |start, len| self.soft_corners(&u.narrow(2, start, len)?.contiguous()?);
                let (a, b) = (half(0, first)?, half(first, self.group - first)?);
                let each = |p: &Tensor| -> Result<Tensor> { Ok((plogp(p)?.sum_all()? / -(tokens as f64))?) };
                let mean = (a.transpose(1, 2)?.contiguous()?.matmul(&b)? / tokens as f64)?;
                Ok(Entropies { sample: (each(&a)? + each(&b)?)?, codebook: plogp(&mean)?.sum_all()?.neg()? })
            }
        }
    }

    /// Probabilities [.., 2^c] of the corners that vectors [a, b, c] may mean: a softmax over their distances.
    fn soft_corners(&self, u: &Tensor) -> Result<Tensor> {
        let (a, b, c) = u.dims3()?;
        let corners: Vec<f32> = (0..1u32 << c)
            .flat_map(|code| (0..c).rev().map(move |bit| if code >> bit & 1 == 1 { 1.0 } else { -1.0 }))
            .collect();
        let corners = Tensor::from_vec(corners, (1 << c, c), u.device())?.to_dtype(u.dtype())?;
        let u = u.reshape((a * b, c))?;
        let logits = (u.matmul(&corners.t()?)? * (2.0 * self.inv_temperature * self.scale()))?;
        let e = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?.exp()?;
        Ok(e.broadcast_div(&e.sum_keepdim(1)?)?.reshape((a, b, 1 << c))?)
    }

    /// Splits a code into its groups' indices, first group first.
    pub fn groups(&self, code: u64) -> impl Iterator<Item = u32> + use<> {
        let (n, c) = (self.bits / self.group, self.group);
        (0..n).rev().map(move |g| (code >> (g * c) & ((1 << c) - 1)) as u32)
    }

    /// Joins group indices into a code.
    pub fn join(&self, groups: &[u32]) -> u64 {
        groups.iter().fold(0, |code, &g| code << self.group | u64::from(g))
    }
}

/// x / max(|x|, 1e-12) over the last dimension.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.clamp(1e-24, f64::INFINITY)?.sqrt()?;
    Ok(x.broadcast_div(&norm)?)
}

/// +1 where positive, else -1.
pub(crate) fn signs(x: &Tensor) -> Result<Tensor> {
    Ok(x.gt(0f64)?.to_dtype(x.dtype())?.affine(2.0, -1.0)?)
}

/// p ln p, with a finite slope where p vanishes
fn plogp(p: &Tensor) -> Result<Tensor> {
    Ok((p * (p + 1e-30)?.log()?)?)
}

/// -(p + 1e-8) ln(p + 1e-8)
fn entropy(p: &Tensor) -> Result<Tensor> {
    let p = (p + 1e-8)?;
    Ok((&p * p.log()?)?.neg()?)
}
