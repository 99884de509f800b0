//! Linear probes: how much a frozen feature tells by one linear layer.

use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};

/// Most iterations of full-batch descent.
const ITERATIONS: usize = 3000;

/// The largest gradient at which the descent is at its end.
const FLAT: f32 = 2e-4;

/// Weight of the squared weights; the same for every probe, so that probes can be compared.
const DECAY: f64 = 1e-2;

/// Multinomial logistic regression on features that are standardised by the training set.
pub struct LinearProbe {
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor,
    bias: Tensor,
}

impl LinearProbe {
    /// Fits features [samples, width] to classes, by Nesterov's accelerated descent at the loss's own step size, to the end.
    pub fn fit(features: &Tensor, labels: &[usize], classes: usize) -> Result<Self> {
        let (n, width) = features.dims2()?;
        if n == 0 || n != labels.len() || labels.iter().any(|&l| l >= classes) {
            return Err(Error::invalid(format!("a probe of {n} samples with {} labels", labels.len())));
        }
        let device = features.device();
        let x = features.to_dtype(DType::F32)?;
        let mean = x.mean_keepdim(0)?;
        let deviation = (x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)? + 1e-6)?.sqrt()?;
        let x = x.broadcast_sub(&mean)?.broadcast_div(&deviation)?;
        let mut wanted = vec![0f32; n * classes];
        labels.iter().enumerate().for_each(|(i, l)| wanted[i * classes + l] = 1.0);
        let wanted = Tensor::from_vec(wanted, (n, classes), device)?;
        // the softmax's curvature is at most a half, the features' their largest eigenvalue
        let step = 1.0 / (0.5 * (largest_eigenvalue(&x)? + 1.0) + DECAY);
        let zero = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, device);
        let (mut weight, mut bias) = (zero((width, classes))?, zero((1, classes))?);
        let (mut ahead_w, mut ahead_b) = (weight.clone(), bias.clone());
        let xt = x.t()?.contiguous()?;
        let mut since = 0;
        for _ in 0..ITERATIONS {
            let off = ((probabilities(&x, &ahead_w, &ahead_b)? - &wanted)? / n as f64)?;
            let slope = (xt.matmul(&off)? + (&ahead_w * DECAY)?)?;
            if slope.abs()?.max_all()?.to_scalar::<f32>()? < FLAT {
                return Ok(Self { mean, deviation, weight: ahead_w, bias: ahead_b });
            }
            let next_w = (&ahead_w - (&slope * step)?)?;
            let next_b = (&ahead_b - (off.sum_keepdim(0)? * step)?)?;
            // momentum starts again where it points uphill (O'Donoghue and Candes 2015)
            let uphill = (&slope * (&next_w - &weight)?)?.sum_all()?.to_scalar::<f32>()? > 0.0;
            since = if uphill { 0 } else { since + 1 };
            let momentum = since as f64 / (since + 3) as f64;
            ahead_w = (&next_w + ((&next_w - &weight)? * momentum)?)?;
            ahead_b = (&next_b + ((&next_b - &bias)? * momentum)?)?;
            (weight, bias) = (next_w, next_b);
        }
        Err(Error::invalid(format!("a linear probe on {width} features did not settle in {ITERATIONS} iterations")))
    }

    /// Share of samples whose class is found.
    pub fn accuracy(&self, features: &Tensor, labels: &[usize]) -> Result<f64> {
        let x = features.to_dtype(DType::F32)?.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)?;
        let found = probabilities(&x, &self.weight, &self.bias)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let right = found.iter().zip(labels).filter(|(f, l)| **f as usize == **l).count();
        Ok(right as f64 / labels.len().max(1) as f64)
    }
}

fn probabilities(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let logits = x.matmul(weight)?.broadcast_add(bias)?;
    let e = logits.broadcast_sub(&logits.max_keepdim(1)?)?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(1)?)?)
}

/// Of x^T x / n, by power iteration.
fn largest_eigenvalue(x: &Tensor) -> Result<f64> {
    let (n, width) = x.dims2()?;
    let start: Vec<f32> = (0..width).map(|i| 1.0 + (i % 7) as f32 / 7.0).collect();
    let mut v = Tensor::from_vec(start, (width, 1), &Device::Cpu)?.to_device(x.device())?;
    let mut size = 0.0;
    for _ in 0..30 {
        let length = f64::from(v.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
        v = (x.t()?.matmul(&x.matmul(&(v / length.max(1e-30))?)?)? / n as f64)?;
        size = f64::from(v.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_classes_that_a_line_divides_and_none_in_noise() {
        let n = 600;
        let mut r = nn::rng::keyed(3, &[]);
        let mut rows = Vec::new();
        let labels: Vec<usize> = (0..n).map(|i| i % 3).collect();
        for &l in &labels {
            // the class is a direction of its own among five, at a scale that standardising has to take away
            rows.extend((0..5).map(|k| 100.0 * (nn::rng::normal(&mut r) + if k == l { 6.0 } else { 0.0 })));
        }
        let x = Tensor::from_vec(rows, (n, 5), &Device::Cpu).unwrap();
        let half = |a| x.narrow(0, a, n / 2).unwrap();
        let probe = LinearProbe::fit(&half(0), &labels[..n / 2], 3).unwrap();
        assert!(probe.accuracy(&half(n / 2), &labels[n / 2..]).unwrap() > 0.98);
        let noise: Vec<f32> = (0..n * 5).map(|_| nn::rng::normal(&mut r)).collect();
        let noise = Tensor::from_vec(noise, (n, 5), &Device::Cpu).unwrap();
        let probe = LinearProbe::fit(&noise.narrow(0, 0, 300).unwrap(), &labels[..300], 3).unwrap();
        assert!(probe.accuracy(&noise.narrow(0, 300, 300).unwrap(), &labels[300..]).unwrap() < 0.45);
        assert!(LinearProbe::fit(&noise, &labels[..5], 3).is_err());
    }
}
