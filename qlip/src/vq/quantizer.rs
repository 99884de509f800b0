//! From a cell's vector to its code: the nearest entry of a learned codebook, or the signs of its values.

use super::VqConfig;
use candle_core::{D, DType, Device, Tensor};
use nn::{Init, Params, Result};
use serde::{Deserialize, Serialize};

/// How a cell becomes a code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Quantizer {
    /// The nearest entry of the codebook.
    #[default]
    Nearest,
    /// The sign of each value, a bit each, without a codebook ("lookup-free", Yu et al. 2024).
    Lfq,
}

impl Quantizer {
    pub(super) fn is_nearest(&self) -> bool {
        *self == Self::Nearest
    }
}

/// What quantising gives.
pub struct Quantised {
    /// Code of each cell, row by row, [pictures * cells].
    pub indices: Vec<u32>,
    /// The straight-through value z + (entry - z), [pictures, dim, rows, columns].
    pub values: Tensor,
    /// mean (entry - z)^2 with z held; 0 where no entry is learned.
    pub vq_loss: Tensor,
    /// The same with the entry held, times commit_loss_beta.
    pub commit_loss: Tensor,
    /// Entropy of the soft code of a cell less that of all cells together, in nats, times entropy_loss_ratio; nothing at
    /// ratio 0. It makes cells certain and codes equally common.
    pub entropy_loss: Option<Tensor>,
}

/// Divides distances in the soft code of a cell, as LlamaGen does; signs are soft at 1.
const TEMPERATURE: f64 = 0.01;

/// What codes stand for.
#[derive(Debug, Clone)]
pub(super) enum Codebook {
    /// Entries [entries, dim], of length 1 where asked.
    Entries { table: Tensor, l2_norm: bool },
    /// Bit j of a code is the sign of value j.
    Signs,
}

impl Codebook {
    /// Takes the entries below this place, if there are any.
    pub fn new(p: &Params, c: &VqConfig) -> Result<Self> {
        if c.quantizer == Quantizer::Lfq {
            return Ok(Self::Signs);
        }
        let (n, d) = (c.codebook_size, c.codebook_embed_dim);
        let table = p.at("embedding").get((n, d), "weight", Init::Normal(1.0 / (n as f32).sqrt()))?;
        Ok(Self::Entries { table, l2_norm: c.codebook_l2_norm })
    }

    /// The vectors [codes, dim] of codes in range.
    pub fn rows(&self, codes: &[u32], dim: usize, device: &Device) -> Result<Tensor> {
        match self {
            Self::Entries { table, l2_norm } => {
                let ids = Tensor::from_slice(codes, codes.len(), device)?;
                let table = if *l2_norm { unit(table)? } else { table.clone() };
                Ok(table.index_select(&ids, 0)?)
            }
            Self::Signs => {
                let sign = |code: u32, bit| if code >> bit & 1 == 1 { 1f32 } else { -1.0 };
                let values: Vec<f32> = codes.iter().flat_map(|&c| (0..dim).map(move |bit| sign(c, bit))).collect();
                Ok(Tensor::from_vec(values, (codes.len(), dim), device)?)
            }
        }
    }

    /// Codes of vectors [pictures, dim, rows, columns], and what training needs.
    pub fn quantise(&self, pre_quant: &Tensor, c: &VqConfig) -> Result<Quantised> {
        let (b, d, h, w) = pre_quant.dims4()?;
        let z = pre_quant.permute((0, 2, 3, 1))?.contiguous()?.reshape((b * h * w, d))?;
        let z = if matches!(self, Self::Entries { l2_norm: true, .. }) { unit(&z)? } else { z };
        let indices = self.nearest(&z.detach())?;
        let q = self.rows(&indices, d, z.device())?.to_dtype(z.dtype())?;
        let vq_loss = (&q - z.detach())?.sqr()?.mean_all()?;
        let vq_loss = if matches!(self, Self::Signs) { vq_loss.zeros_like()? } else { vq_loss };
        let commit_loss = ((q.detach() - &z)?.sqr()?.mean_all()? * c.commit_loss_beta)?;
        let entropy_loss = match c.entropy_loss_ratio {
            0.0 => None,
            ratio => Some((self.entropy(&z)? * ratio)?),
        };
        let through = (&z + (&q - &z)?.detach())?;
        let values = through.reshape((b, h, w, d))?.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(Quantised { indices, values, vq_loss, commit_loss, entropy_loss })
    }

    /// Squared distances of vectors to entries, less the vectors' own lengths, which are the same for every entry.
    fn distances(&self, z: &Tensor, entries: &Tensor) -> Result<Tensor> {
        let lengths = entries.sqr()?.sum(1)?.unsqueeze(0)?;
        Ok(lengths.broadcast_sub(&(z.matmul(&entries.t()?)? * 2.0)?)?)
    }

    fn nearest(&self, z: &Tensor) -> Result<Vec<u32>> {
        match self {
            Self::Entries { table, l2_norm } => {
                let entries = if *l2_norm { unit(&table.detach())? } else { table.detach() };
                Ok(self.distances(z, &entries)?.argmin(D::Minus1)?.to_dtype(DType::U32)?.to_vec1()?)
            }
            Self::Signs => {
                let rows = z.to_dtype(DType::F32)?.to_vec2::<f32>()?;
                let code = |row: &Vec<f32>| row.iter().enumerate().map(|(bit, v)| u32::from(*v > 0.0) << bit).sum();
                Ok(rows.iter().map(code).collect())
            }
        }
    }

    fn entropy(&self, z: &Tensor) -> Result<Tensor> {
        // of the rows of probabilities, the mean; and of their mean
        let parts = |p: &Tensor| -> Result<Tensor> {
            let nats = |p: &Tensor| -> Result<Tensor> { Ok((p * (p + 1e-8)?.log()?)?.neg()?) };
            Ok((nats(p)?.sum(1)?.mean(0)? - nats(&p.mean(0)?)?.sum(0)?)?)
        };
        match self {
            Self::Entries { table, l2_norm } => {
                let entries = if *l2_norm { unit(table)? } else { table.clone() };
                let logits = (self.distances(z, &entries)? * (-1.0 / TEMPERATURE))?;
                let e = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?.exp()?;
                parts(&e.broadcast_div(&e.sum_keepdim(1)?)?)
            }
            Self::Signs => {
                // |z - 1|^2 and |z + 1|^2 differ by 4 z; bits are independent. Beyond 5 nothing is left to learn.
                let p = ((z.clamp(-5f32, 5f32)? * -4.0)?.exp()? + 1.0)?.recip()?;
                Ok((parts(&p)? + parts(&p.affine(-1.0, 1.0)?)?)?)
            }
        }
    }
}

/// Rows divided by their length (at least 1e-12).
fn unit(x: &Tensor) -> Result<Tensor> {
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
    Ok(x.broadcast_div(&length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Pixels;
    use crate::vq::VqTokenizer;

    fn lfq() -> VqConfig {
        VqConfig { quantizer: Quantizer::Lfq, entropy_loss_ratio: 0.1, ..VqConfig::tiny() }
    }

    #[test]
    fn signs_are_codes_and_codes_are_signs() {
        let params = Params::for_training(Default::default(), &[], 3, DType::F32, &Device::Cpu);
        let model = VqTokenizer::new(&params, &lfq()).unwrap();
        assert!(!params.vars().keys().any(|k| k.starts_with("quantize")), "no codebook");
        let z = Tensor::new(&[0.5f32, -2.0, 0.1, -0.1, -1.0, -1.0, -1.0, -1.0], &Device::Cpu).unwrap();
        // values last, then to [1, 4, 1, 2]
        let z = z.reshape((1, 1, 2, 4)).unwrap().permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
        let q = model.quantise(&z).unwrap();
        assert_eq!(q.indices, [0b0101, 0]);
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&q.values), flat(&model.look_up(&q.indices, 1, 2).unwrap()));
        assert_eq!(flat(&q.values), [1.0, -1.0, -1.0, -1.0, 1.0, -1.0, -1.0, -1.0]);
        assert!(VqConfig { codebook_size: 17, ..lfq() }.check().is_err());
    }

    #[test]
    fn gradients_pass_through_signs() {
        let params = Params::for_training(Default::default(), &[], 3, DType::F32, &Device::Cpu);
        let model = VqTokenizer::new(&params, &lfq()).unwrap();
        let pixels: Vec<f32> = (0..3 * 16).map(|i| (i as f32 * 0.7).sin()).collect();
        let pixels = Pixels(Tensor::from_vec(pixels, (1, 3, 4, 4), &Device::Cpu).unwrap());
        let q = model.quantise(&model.pre_quant(&model.encoder_out(&pixels).unwrap()).unwrap()).unwrap();
        let mse = (model.decode(&q.values).unwrap().0 - pixels.0).unwrap().sqr().unwrap().mean_all().unwrap();
        let loss = ((mse + q.commit_loss).unwrap() + q.entropy_loss.unwrap()).unwrap();
        let grads = loss.backward().unwrap();
        for (name, var) in params.vars() {
            assert!(grads.get(var.as_tensor()).is_some(), "no gradient of {name}");
        }
    }

    #[test]
    fn entropy_is_lowest_for_certain_and_equally_common_codes() {
        let value = |rows: [[f32; 2]; 4]| {
            let z = Tensor::new(&rows, &Device::Cpu).unwrap();
            Codebook::Signs.entropy(&z).unwrap().to_scalar::<f32>().unwrap()
        };
        let spread = value([[9.0, 9.0], [-9.0, 9.0], [9.0, -9.0], [-9.0, -9.0]]);
        assert!((f64::from(spread) + 2.0 * std::f64::consts::LN_2).abs() < 1e-5, "{spread}");
        assert!(value([[9.0, 9.0]; 4]).abs() < 1e-5);
        assert!(value([[0.0, 0.0]; 4]).abs() < 1e-5);
        // two entries: at them the codes are certain and equally common; between them neither is
        let table = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let entries = Codebook::Entries { table, l2_norm: false };
        let of = |rows: [[f32; 2]; 2]| {
            entries.entropy(&Tensor::new(&rows, &Device::Cpu).unwrap()).unwrap().to_scalar::<f32>().unwrap()
        };
        assert!((f64::from(of([[1.0, 0.0], [0.0, 1.0]])) + std::f64::consts::LN_2).abs() < 1e-5);
        assert!(of([[0.5, 0.5]; 2]).abs() < 1e-5);
        assert!(of([[1.0, 0.0]; 2]).abs() < 1e-5);
    }
}
