//! The linear layer.

use crate::ops::{self, Flat, LinearAt};
use crate::params::{Init, Params};
use crate::weight::{Weight, packed_products};
use crate::{Error, Result};
use candle_core::Tensor;

/// Weight [out, in] and optional bias [out].
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

/// Up to this many rows a float32 weight is read once for all of them; above, the library's product is faster.
const FEW_ROWS: usize = 16;

impl Linear {
    /// Takes `weight` and, if asked, `bias` at this place.
    pub fn new(p: &Params, inputs: usize, outputs: usize, bias: bool, std: f32) -> Result<Self> {
        let weight = p.weight((outputs, inputs), "weight", Init::Normal(std))?;
        let bias = if bias { Some(p.get(outputs, "bias", Init::Const(0.0))?) } else { None };
        Ok(Self { weight, bias })
    }

    /// Whether a training follows this weight.
    pub(crate) fn is_trained(&self) -> bool {
        self.weight.is_trained()
    }

    /// The weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    pub(crate) fn place(&self, p: &mut Flat) -> Result<LinearAt> {
        let bias = self.bias.as_ref();
        match &self.weight {
            Weight::Dense(w) => Ok(p.linear(w, bias)?),
            Weight::Adapted { held, a, b, scale } => Ok(p.adapted(held, a, b, *scale, bias)?),
            Weight::Packed(_) => Err(Error::invalid("a weight that is only read cannot be trained")),
        }
    }

    /// [.., in] to [.., out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Weight::Packed(w) = &self.weight
            && w.ty() == ops::WeightType::F32
            && rows(x) > FEW_ROWS
            && ops::is_fused(x)
        {
            return Ok(ops::linear_held(x, w, self.bias.as_ref())?);
        }
        self.by_rows(x)
    }

    /// The same; a row's result does not depend on the other rows, where the weight is only read.
    pub fn by_rows(&self, x: &Tensor) -> Result<Tensor> {
        if let (Weight::Dense(w), bias) = (&self.weight, &self.bias) {
            return Ok(ops::linear(x, w, bias.as_ref())?);
        }
        self.add_bias(self.weight.product(x, 0..self.weight.shape()?.0)?)
    }

    fn add_bias(&self, y: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(b) => Ok(y.broadcast_add(b)?),
            None => Ok(y),
        }
    }

    /// Several layers of the same input, read in one pass where they are only read.
    pub fn together<const N: usize>(layers: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let mut packed = Vec::with_capacity(N);
        for l in layers {
            match &l.weight {
                Weight::Packed(w) => packed.push((w, 0..w.shape().0)),
                _ => break,
            }
        }
        let ys = match <[_; N]>::try_from(packed) {
            Ok(weights) => {
                let ys = packed_products(x, weights)?;
                layers.iter().zip(ys).map(|(l, y)| l.add_bias(y)).collect::<Result<Vec<_>>>()?
            }
            Err(_) => layers.iter().map(|l| l.by_rows(x)).collect::<Result<Vec<_>>>()?,
        };
        ys.try_into().map_err(|_| Error::invalid("layers together"))
    }
}

fn rows(x: &Tensor) -> usize {
    x.dims().split_last().map_or(1, |(_, rest)| rest.iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::WeightType;
    use candle_core::{DType, Device};
    use std::collections::HashMap;

    /// Every type of weight stays as close to the float32 layer as its rounding lets it, for few rows and many.
    #[test]
    fn every_type_of_weight_stays_close() {
        let value = |i: u64| (crate::rng::mix(i) >> 40) as f32 / (1 << 24) as f32 - 0.5;
        let (inputs, outputs) = (256, 24);
        let w: Vec<f32> = (0..inputs * outputs).map(|i| value(i as u64)).collect();
        let w = Tensor::from_vec(w, (outputs, inputs), &Device::Cpu).unwrap();
        let b = Tensor::from_vec((0..outputs as u64).map(|i| value(900 + i)).collect(), outputs, &Device::Cpu).unwrap();
        let stored = HashMap::from([("weight".to_owned(), w), ("bias".to_owned(), b)]);
        let p = Params::from_tensors("test", stored, DType::F32, &Device::Cpu);
        let dense = Linear::new(&p, inputs, outputs, true, 0.0).unwrap();
        for (ty, near) in [
            (WeightType::F32, 1e-5),
            (WeightType::F16, 1e-3),
            (WeightType::Bf16, 1e-2),
            (WeightType::Q8_0, 5e-2),
            (WeightType::Q6K, 8e-2),
            (WeightType::Q4K, 5e-1),
        ] {
            let layer = Linear::new(&p.clone().stored_as(Some(ty)), inputs, outputs, true, 0.0).unwrap();
            for n in [1, 15, 16, 17, 40] {
                let x: Vec<f32> = (0..n * inputs).map(|i| value(5000 + i as u64)).collect();
                let x = Tensor::from_vec(x, (1, n, inputs), &Device::Cpu).unwrap();
                let (a, b) = (dense.forward(&x).unwrap(), layer.forward(&x).unwrap());
                assert_eq!(a.dims(), b.dims());
                let off = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(off < near, "{n} rows of {ty:?}: off by {off}");
            }
        }
    }
}
