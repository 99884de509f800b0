//! Tables of codes in training: a row is its own vector plus a sum over its bits, which all rows share. In a short training a
//! row is seen a few hundred times, a bit in every picture. What is written is the sums, so the checkpoint is an ordinary one.

use candle_core::{Device, Tensor};
use nn::{Error, Init, Params, Result};
use std::collections::BTreeMap;

/// What the rows of one table with the same bit have in common.
pub struct SharedBits {
    /// The table's name, and its rows' own vectors [rows, width].
    table: String,
    own: Tensor,
    /// [rows, bits], plus and minus one; zero for rows that are no codes.
    patterns: Tensor,
    /// Its name, and the vectors [bits, width].
    name: String,
    by_bit: Tensor,
}

impl SharedBits {
    /// For a table that `params` already has. `patterns` [rows, bits] are its rows' bits ([`bit_patterns`]); the vectors are a
    /// parameter called `name`, new ones of this deviation.
    pub fn new(params: &Params, table: &str, name: &str, patterns: &Tensor, std: f32) -> Result<Self> {
        let own = params.vars().get(table).ok_or_else(|| missing(table))?.as_tensor().clone();
        let (width, bits) = (own.dim(1)?, patterns.dim(1)?);
        let init = if std == 0.0 { Init::Const(0.0) } else { Init::Normal(std) };
        Ok(Self {
            by_bit: params.get((bits, width), name, init)?,
            patterns: patterns.clone(),
            table: table.to_owned(),
            name: name.to_owned(),
            own,
        })
    }

    /// The table [rows, width] as it is read and written.
    pub fn rows(&self) -> Result<Tensor> {
        self.sum(&self.own, &self.by_bit)
    }

    /// Puts the sums into the table of a checkpoint and takes the vectors out of it.
    pub fn join(&self, weights: &mut BTreeMap<String, Tensor>) -> Result<()> {
        let by_bit = weights.remove(&self.name).ok_or_else(|| missing(&self.name))?;
        let own = weights.get(&self.table).ok_or_else(|| missing(&self.table))?;
        let rows = self.sum(own, &by_bit)?;
        weights.insert(self.table.clone(), rows);
        Ok(())
    }

    fn sum(&self, own: &Tensor, by_bit: &Tensor) -> Result<Tensor> {
        Ok((own + self.patterns.matmul(by_bit)?)?)
    }
}

fn missing(name: &str) -> Error {
    Error::invalid(format!("shared bits: there is no parameter {name}"))
}

/// Bits of the rows of a table: `before` rows that are no codes, then 2^`group_bits` rows for each of `groups` groups of bits,
/// or once for all of them if they share a table. [rows, bits]: plus or minus one in the columns of the row's group,
/// most significant bit first, zero elsewhere.
pub fn bit_patterns(
    before: usize,
    groups: usize,
    group_bits: usize,
    shared_table: bool,
    device: &Device,
) -> Result<Tensor> {
    let tables = if shared_table { 1 } else { groups };
    let (rows, bits) = (before + (tables << group_bits), tables * group_bits);
    let mut out = vec![0f32; rows * bits];
    for (row, out) in out.chunks_exact_mut(bits.max(1)).skip(before).enumerate() {
        let (table, code) = (row >> group_bits, row & ((1 << group_bits) - 1));
        for (bit, value) in out[table * group_bits..][..group_bits].iter_mut().enumerate() {
            let set = code >> (group_bits - 1 - bit) & 1 == 1;
            *value = if set { 1.0 } else { -1.0 };
        }
    }
    Ok(Tensor::from_vec(out, (rows, bits), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use std::collections::HashMap;

    #[test]
    fn rows_know_their_bits() {
        let patterns = |before, groups, group_bits, shared| {
            bit_patterns(before, groups, group_bits, shared, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap()
        };
        let one_before = patterns(1, 2, 2, false);
        assert_eq!(one_before.len(), 9);
        assert_eq!(one_before[0], [0.0; 4]);
        // the first group's code 2, the second's code 1
        assert_eq!(one_before[3], [1.0, -1.0, 0.0, 0.0]);
        assert_eq!(one_before[6], [0.0, 0.0, -1.0, 1.0]);
        assert_eq!(patterns(0, 2, 1, true), [[-1.0], [1.0]]);
    }

    #[test]
    fn the_written_table_is_the_one_that_was_read() {
        let params = Params::for_training(HashMap::new(), &[], 7, DType::F32, &Device::Cpu);
        params.get((8, 3), "table", Init::Normal(1.0)).unwrap();
        let patterns = bit_patterns(0, 2, 2, false, &Device::Cpu).unwrap();
        let shared = SharedBits::new(&params, "table", "shared", &patterns, 1.0).unwrap();
        let read = shared.rows().unwrap();
        let mut weights: BTreeMap<String, Tensor> =
            params.vars().into_iter().map(|(k, v)| (k, v.as_tensor().clone())).collect();
        assert_eq!(weights.len(), 2);
        shared.join(&mut weights).unwrap();
        let written = weights.remove("table").unwrap();
        assert!(weights.is_empty());
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(read), values(written));
        assert!(SharedBits::new(&params, "none", "shared", &patterns, 1.0).is_err());
        assert!(shared.join(&mut weights).is_err());
    }
}
