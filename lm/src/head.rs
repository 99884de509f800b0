//! A bitwise head: a token's bits go in, and come out group by group, each group knowing the ones before it (after the
//! bitwise classifier of Infinity, Han et al. 2024, arXiv 2412.04431, made autoregressive over groups so that bits of a
//! token may depend on each other). No table with a row for each of 2^bits codes exists on either side.

use crate::engine::Choose;
use crate::vocab::MAX_BITS;
use candle_core::{Device, Tensor};
use nn::block::Linear;
use nn::ops::{self, Activation};
use nn::{Error, Init, Params, Result};
use serde::{Deserialize, Serialize};

/// Shape of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BitwiseConfig {
    /// Bits of a token, 1 to 56.
    pub bits: usize,
    /// Bits that are drawn at once; divides `bits`.
    pub group_bits: usize,
    /// Inner width.
    pub width: usize,
}

impl BitwiseConfig {
    /// For tokens of `bits` bits: the largest groups of at most four.
    pub fn of(bits: usize, width: usize) -> Self {
        Self { bits, group_bits: (1..=4).rev().find(|g| bits.is_multiple_of(*g)).unwrap_or(1), width }
    }

    /// Groups of a token.
    pub fn groups(&self) -> usize {
        self.bits / self.group_bits.max(1)
    }

    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        let divides = self.group_bits > 0 && self.group_bits <= 12 && self.bits.is_multiple_of(self.group_bits);
        if self.bits == 0 || self.bits > MAX_BITS || !divides || self.width == 0 {
            return Err(Error::invalid(format!(
                "bitwise: {} bits in groups of {}, width {}: use 1 to {MAX_BITS} bits in equal groups of at most 12",
                self.bits, self.group_bits, self.width
            )));
        }
        Ok(())
    }

    /// A group of a code; group 0 holds the most significant bits.
    fn group(&self, code: u64, g: usize) -> u32 {
        let shift = self.bits - (g + 1) * self.group_bits;
        (code >> shift & ((1 << self.group_bits) - 1)) as u32
    }

    /// Bits of codes as plus and minus one, most significant first, zero beyond the first `known` groups.
    fn signs(&self, codes: &[u64], known: usize, device: &Device) -> Result<Tensor> {
        let known = known * self.group_bits;
        let sign = |code: u64, i: usize| match i < known {
            true => f32::from((code >> (self.bits - 1 - i) & 1) as u8) * 2.0 - 1.0,
            false => 0.0,
        };
        let values: Vec<f32> = codes.iter().flat_map(|&c| (0..self.bits).map(move |i| sign(c, i))).collect();
        Ok(Tensor::from_vec(values, (codes.len(), self.bits), device)?)
    }
}

/// Embedding and head.
#[derive(Debug, Clone)]
pub struct BitwiseHead {
    config: BitwiseConfig,
    input: Linear,
    /// [cells, dim]: what a cell's place in the picture adds to its bits, where the vocabulary says so.
    positions: Option<Tensor>,
    trunk: Linear,
    known: Linear,
    inner: Linear,
    /// [groups, width]
    place: Tensor,
    /// [groups * 2^group_bits, width]
    output: Tensor,
}

impl BitwiseHead {
    /// Takes `bit_embeddings` and what lies below `bit_head`. With `cells` above zero a token holds its cell above its bits, and
    /// each cell has a learned vector, zero at first.
    pub fn new(p: &Params, c: &BitwiseConfig, dim: usize, cells: usize) -> Result<Self> {
        c.check()?;
        let place = p.at("bit_embeddings.position_embedding");
        let positions = (cells > 0).then(|| place.get((cells, dim), "weight", Init::Const(0.0))).transpose()?;
        let head = p.at("bit_head");
        let std = |inputs: usize| (inputs as f32).powf(-0.5);
        let rows = c.groups() << c.group_bits;
        Ok(Self {
            config: *c,
            input: Linear::new(&p.at("bit_embeddings"), c.bits, dim, true, 0.02)?,
            positions,
            trunk: Linear::new(&head.at("trunk"), dim, c.width, true, std(dim))?,
            known: Linear::new(&head.at("known"), c.bits, c.width, false, std(c.bits))?,
            inner: Linear::new(&head.at("inner"), c.width, c.width, true, std(c.width))?,
            place: head.at("place_embedding").get((c.groups(), c.width), "weight", Init::Normal(1.0))?,
            output: head.at("output").get((rows, c.width), "weight", Init::Const(0.0))?,
        })
    }

    /// Embeddings [codes, dim].
    pub fn embed(&self, codes: &[u64]) -> Result<Tensor> {
        let bits = self.config.bits;
        let cells = self.positions.as_ref().map_or(Ok(1), |p| p.dim(0))?;
        if let Some(bad) = codes.iter().find(|&&c| c >> bits >= cells as u64) {
            return Err(Error::invalid(format!("token {bad} has more than {bits} bits")));
        }
        let device = self.place.device();
        let x = self.config.signs(codes, self.config.groups(), device)?;
        let x = self.input.forward(&x.to_dtype(self.place.dtype())?)?;
        let Some(positions) = &self.positions else { return Ok(x) };
        let at: Vec<u32> = codes.iter().map(|c| (c >> bits) as u32).collect();
        Ok((x + positions.index_select(&Tensor::from_vec(at, codes.len(), device)?, 0)?)?)
    }

    /// Logits [positions, 2^group_bits] of group `g`, from hidden states [positions, dim] and codes whose groups before
    /// `g` are known.
    pub fn logits(&self, hidden: &Tensor, codes: &[u64], g: usize) -> Result<Tensor> {
        self.group(&self.trunk.forward(hidden)?, codes, g)
    }

    fn group(&self, trunk: &Tensor, codes: &[u64], g: usize) -> Result<Tensor> {
        let known = self.config.signs(codes, g, trunk.device())?.to_dtype(trunk.dtype())?;
        let x = (trunk + self.known.forward(&known)?)?.broadcast_add(&self.place.get(g)?)?;
        let x = self.inner.forward(&Activation::Silu.forward(&x)?)?;
        let rows = 1 << self.config.group_bits;
        let table = self.output.narrow(0, g * rows, rows)?;
        Ok(ops::linear(&Activation::Silu.forward(&x)?, &table, None)?)
    }

    /// Mean over positions of [`Self::losses`].
    pub fn loss(&self, hidden: &Tensor, codes: &[u64]) -> Result<Tensor> {
        Ok(self.losses(hidden, codes)?.mean_all()?)
    }

    /// The negative logarithm of each code's probability, in nats [positions]; hidden [positions, dim].
    pub fn losses(&self, hidden: &Tensor, codes: &[u64]) -> Result<Tensor> {
        let trunk = self.trunk.forward(hidden)?;
        let mut sum: Option<Tensor> = None;
        for g in 0..self.config.groups() {
            let targets: Vec<u32> = codes.iter().map(|&c| self.config.group(c, g)).collect();
            ops::add_term(&mut sum, ops::cross_entropy(&self.group(&trunk, codes, g)?, &targets)?)?;
        }
        sum.ok_or_else(|| Error::invalid("a bitwise head without groups"))
    }

    /// One token for each of the rows that `choose` answers for: it gets logits [rows, 2^group_bits] of a group and says
    /// what each row of `hidden` takes.
    pub fn draw(&self, hidden: &Tensor, choose: &mut Choose) -> Result<Vec<u64>> {
        let trunk = self.trunk.forward(hidden)?;
        let mut codes = vec![0u64; hidden.dim(0)?];
        for g in 0..self.config.groups() {
            let shift = self.config.bits - (g + 1) * self.config.group_bits;
            let chosen = choose(&self.group(&trunk, &codes, g)?)?;
            for (code, c) in codes.iter_mut().zip(chosen) {
                *code |= u64::from(c) << shift;
            }
        }
        Ok(codes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn head(config: BitwiseConfig) -> (BitwiseHead, Params) {
        let p = Params::for_training(Default::default(), &[], 3, DType::F32, &Device::Cpu);
        (BitwiseHead::new(&p, &config, 12, 0).unwrap(), p)
    }

    #[test]
    fn probabilities_of_all_codes_sum_to_one() {
        let config = BitwiseConfig { bits: 6, group_bits: 2, width: 16 };
        let (head, p) = head(config);
        // an output of zeros would make every code equally likely
        let table = p.vars()["bit_head.output.weight"].clone();
        let values: Vec<f32> = (0..table.elem_count()).map(|i| (i as f32 * 0.7).sin()).collect();
        table.set(&Tensor::from_vec(values, table.shape(), &Device::Cpu).unwrap()).unwrap();
        let hidden =
            Tensor::new(&[[0.3f32, -1.0, 0.5, 0.1, 0.9, -0.2, 0.4, 0.0, 1.0, -0.7, 0.2, 0.6]], &Device::Cpu).unwrap();
        let all: Vec<f64> = (0..64u64)
            .map(|c| (-f64::from(head.loss(&hidden, &[c]).unwrap().to_scalar::<f32>().unwrap())).exp())
            .collect();
        assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-5);
        let spread = all.iter().fold(0f64, |m, v| m.max(*v)) / all.iter().fold(1f64, |m, v| m.min(*v));
        assert!(spread > 1.5, "the codes are not equally likely");
        // the likeliest group each time, and its code's bits in their places
        let best = head
            .draw(&hidden, &mut |l| {
                let rows = l.to_vec2::<f32>()?;
                Ok(rows.iter().map(|r| crate::sample::argmax(r) as u32).collect())
            })
            .unwrap();
        assert!(best[0] < 64 && all[best[0] as usize] > 1.0 / 64.0);
    }

    #[test]
    fn odd_shapes_are_refused() {
        for (bits, group_bits) in [(0, 1), (57, 3), (20, 3), (20, 0), (26, 13)] {
            assert!(BitwiseConfig { bits, group_bits, width: 8 }.check().is_err(), "{bits} {group_bits}");
        }
        assert_eq!(BitwiseConfig::of(28, 8).group_bits, 4);
        assert_eq!(BitwiseConfig::of(18, 8).group_bits, 3);
        let (head, _) = head(BitwiseConfig { bits: 6, group_bits: 2, width: 16 });
        assert_eq!(head.embed(&[64]).unwrap_err().to_string(), "token 64 has more than 6 bits");
    }
}
