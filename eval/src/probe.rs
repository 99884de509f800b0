//! Linear probes: how much a frozen feature tells by one linear layer.

use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};

/// Most iterations of full-batch descent.
const ITERATIONS: usize = 3000;

/// The largest gradient at which the descent is at its end.
const FLAT: f32 = 2e-4;

/// Weights of the squared weights that are tried, strong to weak. Each kind of feature has its own best one: CLIP's probes
/// (Radford et al. 2021, appendix A.3) choose it on a held-out part too.
const DECAYS: [f64; 7] = [3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003];

/// One sample in so many is held out while the decay is chosen.
const HELD: usize = 5;

/// Multinomial logistic regression on features that are standardised by the training set.
pub struct LinearProbe {
    mean: Tensor,
    deviation: Tensor,
    layer: Layer,
}

/// weight [width, classes], bias [1, classes].
#[derive(Clone)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
}

impl LinearProbe {
    /// Fits features [samples, width] to classes: the decay on a held-out fifth, then everything.
    pub fn fit(features: &Tensor, labels: &[usize], classes: usize) -> Result<Self> {
        let (n, width) = features.dims2()?;
        if n != labels.len() || labels.iter().any(|&l| l >= classes) {
            return Err(Error::invalid(format!("a probe of {n} samples with {} labels", labels.len())));
        }
        let device = features.device();
        // the held-out ones last: every fifth of each class
        let mut seen = vec![0usize; classes];
        let (learn, held): (Vec<usize>, Vec<usize>) = (0..n).partition(|&i| {
            seen[labels[i]] += 1;
            !seen[labels[i]].is_multiple_of(HELD)
        });
        if held.is_empty() {
            return Err(Error::invalid(format!(
                "a probe of {n} samples: no class has {HELD}, so none can be held out"
            )));
        }
        let order: Vec<u32> = learn.iter().chain(&held).map(|&i| i as u32).collect();
        let labels: Vec<usize> = order.iter().map(|&i| labels[i as usize]).collect();
        let x = features.index_select(&Tensor::from_vec(order, n, device)?, 0)?.to_dtype(DType::F32)?;
        let mean = x.mean_keepdim(0)?;
        let deviation = (x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)? + 1e-6)?.sqrt()?;
        let x = x.broadcast_sub(&mean)?.broadcast_div(&deviation)?;
        let wanted = one_hot(&labels, classes, device)?;
        let curvature = largest_eigenvalue(&x)?;
        let (known, known_wanted) = (x.narrow(0, 0, learn.len())?, wanted.narrow(0, 0, learn.len())?);
        let (unseen, unseen_labels) = (x.narrow(0, learn.len(), held.len())?, &labels[learn.len()..]);
        let zero = |rows| Tensor::zeros((rows, classes), DType::F32, device);
        let mut layer = Layer { weight: zero(width)?, bias: zero(1)? };
        let mut best = (-1.0, DECAYS[0], layer.clone());
        let mut worse = 0;
        for decay in DECAYS {
            // a weaker decay takes longer than this one
            let Some(next) = layer.descend(&known, &known_wanted, decay, curvature)? else { break };
            layer = next;
            let share = layer.accuracy(&unseen, unseen_labels)?;
            worse = if share < best.0 { worse + 1 } else { 0 };
            if share > best.0 {
                best = (share, decay, layer.clone());
            }
            if worse == 2 {
                break;
            }
        }
        let (_, decay, start) = best;
        let unsettled =
            || Error::invalid(format!("a linear probe on {width} features did not settle in {ITERATIONS} iterations"));
        let layer = start.descend(&x, &wanted, decay, curvature)?.ok_or_else(unsettled)?;
        Ok(Self { mean, deviation, layer })
    }

    /// Share of samples whose class is found.
    pub fn accuracy(&self, features: &Tensor, labels: &[usize]) -> Result<f64> {
        let x = features.to_dtype(DType::F32)?.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)?;
        self.layer.accuracy(&x, labels)
    }
}

impl Layer {
    /// Nesterov's accelerated descent to the minimum from here, at the loss's own step size; none where that takes too long.
    fn descend(&self, x: &Tensor, wanted: &Tensor, decay: f64, curvature: f64) -> Result<Option<Self>> {
        let n = x.dim(0)?;
        // the softmax's curvature is at most a half, the features' their largest eigenvalue
        let step = 1.0 / (0.5 * (curvature + 1.0) + decay);
        let (mut at, mut ahead) = (self.clone(), self.clone());
        let mut since = 0;
        for _ in 0..ITERATIONS {
            let off = ((ahead.probabilities(x)? - wanted)? / n as f64)?;
            let slope = (x.t()?.matmul(&off)? + (&ahead.weight * decay)?)?;
            let off_bias = off.sum_keepdim(0)?;
            let steepest = |t: &Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
            if steepest(&slope)?.max(steepest(&off_bias)?) < FLAT {
                return Ok(Some(ahead));
            }
            let next = Self { weight: (&ahead.weight - (&slope * step)?)?, bias: (&ahead.bias - (off_bias * step)?)? };
            // momentum starts again where it points uphill (O'Donoghue and Candes 2015)
            let uphill = (&slope * (&next.weight - &at.weight)?)?.sum_all()?.to_scalar::<f32>()? > 0.0;
            since = if uphill { 0 } else { since + 1 };
            let momentum = since as f64 / (since + 3) as f64;
            let on = |next: &Tensor, at: &Tensor| next + ((next - at)? * momentum)?;
            ahead = Self { weight: on(&next.weight, &at.weight)?, bias: on(&next.bias, &at.bias)? };
            at = next;
        }
        Ok(None)
    }

    fn probabilities(&self, x: &Tensor) -> Result<Tensor> {
        let logits = x.matmul(&self.weight)?.broadcast_add(&self.bias)?;
        let e = logits.broadcast_sub(&logits.max_keepdim(1)?)?.exp()?;
        Ok(e.broadcast_div(&e.sum_keepdim(1)?)?)
    }

    fn accuracy(&self, x: &Tensor, labels: &[usize]) -> Result<f64> {
        let found = self.probabilities(x)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let right = found.iter().zip(labels).filter(|(f, l)| **f as usize == **l).count();
        Ok(right as f64 / labels.len().max(1) as f64)
    }
}

/// [samples, classes]: one at the sample's class.
fn one_hot(labels: &[usize], classes: usize, device: &Device) -> Result<Tensor> {
    let mut rows = vec![0f32; labels.len() * classes];
    labels.iter().enumerate().for_each(|(i, l)| rows[i * classes + l] = 1.0);
    Ok(Tensor::from_vec(rows, (labels.len(), classes), device)?)
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

    /// The class is a small difference of two columns that have much in common: only large weights tell it.
    #[test]
    fn the_decay_is_chosen_for_the_features() {
        let (n, width, classes) = (300, 10, 5);
        // classes in turns, as balanced lists have them
        let labels: Vec<usize> = (0..n).map(|i| i % classes).collect();
        let sample = |key| {
            let mut r = nn::rng::keyed(key, &[]);
            let mut rows = Vec::new();
            for &l in &labels {
                for k in 0..classes {
                    let (common, signal) = (nn::rng::normal(&mut r), if k == l { 0.1 } else { 0.0 });
                    rows.extend([1.0, -1.0].map(|sign| common + sign * signal + 0.03 * nn::rng::normal(&mut r)));
                }
            }
            Tensor::from_vec(rows, (n, width), &Device::Cpu).unwrap()
        };
        let (known, unseen) = (sample(5), sample(6));
        let wanted = one_hot(&labels, classes, &Device::Cpu).unwrap();
        let zero = |rows: usize| Tensor::zeros((rows, classes), DType::F32, &Device::Cpu).unwrap();
        let curvature = largest_eigenvalue(&known).unwrap();
        let fixed = DECAYS.map(|decay| {
            let layer = Layer { weight: zero(width), bias: zero(1) };
            let layer = layer.descend(&known, &wanted, decay, curvature).unwrap().unwrap();
            layer.accuracy(&unseen, &labels).unwrap()
        });
        let (best, worst) = fixed.iter().fold((0f64, 1f64), |(b, w), &x| (b.max(x), w.min(x)));
        assert!(worst < best - 0.05, "{fixed:?}");
        let chosen = LinearProbe::fit(&known, &labels, classes).unwrap().accuracy(&unseen, &labels).unwrap();
        assert!(chosen > best - 0.03, "{chosen} of {fixed:?}");
    }
}
