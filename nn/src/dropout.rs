//! Noise of a training: values and residual paths left out at random, what stays scaled up so that means are kept.

use crate::Result;
use crate::rng::{self, Rng};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Shares that are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DropoutConfig {
    /// Of the values of token embeddings.
    pub token: f64,
    /// Of the values that attention and feed-forward network add to the residual stream.
    pub residual: f64,
    /// Of the residual branches of a sequence, whole (stochastic depth): this share at the last layer, less in a straight
    /// line towards the first.
    pub path: f64,
}

impl DropoutConfig {
    /// Whether all are shares below one.
    pub fn check(&self) -> Result<()> {
        for (name, p) in [("token", self.token), ("residual", self.residual), ("path", self.path)] {
            if !(0.0..1.0).contains(&p) {
                return Err(crate::Error::invalid(format!("[dropout]: {name} = {p}: write a share from 0 to below 1")));
            }
        }
        Ok(())
    }

    /// Whether nothing is left out.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The noise of one step.
pub struct Dropout {
    config: DropoutConfig,
    rng: Rng,
}

impl Dropout {
    /// Noise from this stream.
    pub fn new(config: DropoutConfig, rng: Rng) -> Self {
        Self { config, rng }
    }

    /// Token embeddings [.., width].
    pub fn tokens(&mut self, x: &Tensor) -> Result<Tensor> {
        self.values(x, self.config.token)
    }

    /// What a layer's branch made of `before` [batch, tokens, width]: `before` plus what the branch added, thinned.
    pub fn branch(&mut self, before: &Tensor, after: &Tensor, layer: usize, layers: usize) -> Result<Tensor> {
        let path = self.config.path * layer as f64 / (layers.max(2) - 1) as f64;
        if self.config.residual == 0.0 && path == 0.0 {
            return Ok(after.clone());
        }
        let added = self.values(&(after - before)?, self.config.residual)?;
        if path == 0.0 {
            return Ok((before + added)?);
        }
        let batch = before.dim(0)?;
        let keep = Tensor::from_vec(self.mask(batch, path), (batch, 1, 1), before.device())?;
        Ok((before + added.broadcast_mul(&keep.to_dtype(before.dtype())?)?)?)
    }

    fn values(&mut self, x: &Tensor, p: f64) -> Result<Tensor> {
        if p == 0.0 {
            return Ok(x.clone());
        }
        let keep = Tensor::from_vec(self.mask(x.elem_count(), p), x.shape(), x.device())?;
        Ok((x * keep.to_dtype(x.dtype())?)?)
    }

    /// Zero with probability p, else 1 / (1 - p).
    fn mask(&mut self, n: usize, p: f64) -> Vec<f32> {
        let keep = (1.0 / (1.0 - p)) as f32;
        (0..n).map(|_| if f64::from(rng::uniform(&mut self.rng)) < p { 0.0 } else { keep }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn means_are_kept_and_paths_go_whole() {
        let config = DropoutConfig { token: 0.25, residual: 0.0, path: 0.5 };
        let mut d = Dropout::new(config, rng::keyed(1, &[]));
        let x = Tensor::ones((200, 10, 10), DType::F32, &Device::Cpu).unwrap();
        let mean = |t: &Tensor| t.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean(&d.tokens(&x).unwrap()) - 1.0).abs() < 0.03);
        let after = (&x * 3.0).unwrap();
        let last = d.branch(&x, &after, 3, 4).unwrap();
        let rows = last.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
        assert!(rows.iter().all(|r| r.iter().all(|v| *v == r[0]) && (r[0] == 1.0 || r[0] == 5.0)));
        assert!((mean(&last) - 3.0).abs() < 0.5);
        let first = d.branch(&x, &after, 0, 4).unwrap();
        assert_eq!(mean(&first), 3.0, "the first layer keeps its paths");
    }
}
