//! The linear layer, with its weight in the type of the activations or in 8-bit blocks.

use crate::ops::{self, Flat, LinearAt};
use crate::params::{Init, Params, Storage};
use crate::stored::Q8_BLOCK;
use crate::{Error, Result};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Module, Tensor};
use std::sync::Arc;

/// Rows from which an 8-bit weight is widened for the product: reading it as blocks pays while the product is bound by
/// memory, and costs once it is bound by arithmetic (docs/performance.md).
const WIDEN_FROM: usize = 16;

/// Weight [out, in] and optional bias [out].
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    Dense(Tensor),
    /// W + scale B A: W is held, A [rank, in] and B [out, rank] are trained (Hu et al. 2021).
    Adapted {
        held: Tensor,
        a: Tensor,
        b: Tensor,
        scale: f64,
    },
    /// Blocks of 32 8-bit integers with a float16 scale each; for inference on the CPU.
    Blocks(Arc<QTensor>, QMatMul),
}

impl Weight {
    fn new(weight: Tensor, storage: Storage) -> Result<Self> {
        if storage == Storage::Q8_0 && weight.dim(1)?.is_multiple_of(Q8_BLOCK) {
            let blocks = Arc::new(QTensor::quantize(&weight.contiguous()?, GgmlDType::Q8_0)?);
            return Ok(Self::Blocks(blocks.clone(), QMatMul::from_arc(blocks)?));
        }
        Ok(Self::Dense(weight))
    }
}

impl Linear {
    /// Takes `weight` and, if asked, `bias` at this place.
    pub fn new(p: &Params, inputs: usize, outputs: usize, bias: bool, std: f32) -> Result<Self> {
        let weight = p.get((outputs, inputs), "weight", Init::Normal(std))?;
        let weight = match p.lora() {
            Some(lora) => Weight::Adapted {
                held: weight,
                // A as a layer of its size would begin, B at zero: the first step changes nothing
                a: p.get((lora.rank, inputs), "lora_A.weight", Init::Normal((inputs as f32).powf(-0.5)))?,
                b: p.get((outputs, lora.rank), "lora_B.weight", Init::Const(0.0))?,
                scale: lora.scale(),
            },
            None => Weight::new(weight, p.storage())?,
        };
        let bias = if bias { Some(p.get(outputs, "bias", Init::Const(0.0))?) } else { None };
        Ok(Self { weight, bias })
    }

    /// Several layers without bias whose weights are rows of one tensor, `outputs` rows each.
    pub(crate) fn joined<const N: usize>(
        p: &Params,
        inputs: usize,
        outputs: [usize; N],
        std: f32,
    ) -> Result<[Self; N]> {
        let all = p.get((outputs.iter().sum::<usize>(), inputs), "weight", Init::Normal(std))?;
        let mut from = 0;
        let mut parts = Vec::with_capacity(N);
        for rows in outputs {
            parts.push(Self { weight: Weight::new(all.narrow(0, from, rows)?, p.storage())?, bias: None });
            from += rows;
        }
        parts.try_into().map_err(|_| Error::invalid("joined layers"))
    }

    /// Whether a training follows this weight.
    pub(crate) fn is_trained(&self) -> bool {
        match &self.weight {
            Weight::Dense(w) => w.track_op(),
            Weight::Adapted { a, .. } => a.track_op(),
            Weight::Blocks(..) => false,
        }
    }

    pub(crate) fn place(&self, p: &mut Flat) -> Result<LinearAt> {
        match &self.weight {
            Weight::Dense(w) => Ok(p.linear(w, self.bias.as_ref())?),
            Weight::Adapted { held, a, b, scale } => Ok(p.linear(&adapted(held, a, b, *scale)?, self.bias.as_ref())?),
            Weight::Blocks(..) => Err(Error::invalid("8-bit weights cannot be trained")),
        }
    }

    /// [.., in] to [.., out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(w) => Ok(ops::linear(x, w, self.bias.as_ref())?),
            Weight::Adapted { held, a, b, scale } => {
                Ok(ops::linear(x, &adapted(held, a, b, *scale)?, self.bias.as_ref())?)
            }
            Weight::Blocks(blocks, _) if rows(x) >= WIDEN_FROM => {
                let w = blocks.dequantize(x.device())?.to_dtype(x.dtype())?;
                Ok(ops::linear(x, &w, self.bias.as_ref())?)
            }
            Weight::Blocks(_, product) => {
                let y = product.forward(&x.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(x.dtype())?;
                match &self.bias {
                    Some(b) => Ok(y.broadcast_add(b)?),
                    None => Ok(y),
                }
            }
        }
    }
}

/// W + scale B A.
pub fn adapted(held: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    Ok((held + (b.matmul(a)? * scale)?)?)
}

fn rows(x: &Tensor) -> usize {
    x.dims().split_last().map_or(1, |(_, rest)| rest.iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::collections::HashMap;

    /// Q8_0 rounds each value to 1/254 of its block's range at most; both paths must agree with the rounded weight.
    #[test]
    fn eight_bits_stay_close_to_the_weight_on_both_paths() {
        let value = |i: u64| (crate::rng::mix(i) >> 40) as f32 / (1 << 24) as f32 - 0.5;
        let (inputs, outputs) = (64, 24);
        let w: Vec<f32> = (0..inputs * outputs).map(|i| value(i as u64)).collect();
        let w = Tensor::from_vec(w, (outputs, inputs), &Device::Cpu).unwrap();
        let b = Tensor::from_vec((0..outputs as u64).map(|i| value(900 + i)).collect(), outputs, &Device::Cpu).unwrap();
        let stored = HashMap::from([("weight".to_owned(), w), ("bias".to_owned(), b)]);
        let p = Params::from_tensors("test", stored, DType::F32, &Device::Cpu);
        let dense = Linear::new(&p, inputs, outputs, true, 0.0).unwrap();
        let blocks = Linear::new(&p.stored_as(Storage::Q8_0), inputs, outputs, true, 0.0).unwrap();
        assert!(matches!(blocks.weight, Weight::Blocks(..)));
        for n in [1, WIDEN_FROM - 1, WIDEN_FROM, 40] {
            let x: Vec<f32> = (0..n * inputs).map(|i| value(5000 + i as u64)).collect();
            let x = Tensor::from_vec(x, (1, n, inputs), &Device::Cpu).unwrap();
            let (a, b) = (dense.forward(&x).unwrap(), blocks.forward(&x).unwrap());
            assert_eq!(a.dims(), b.dims());
            let off = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(off < 0.02, "{n} rows: off by {off}");
        }
    }
}
