//! The merged vocabulary: text rows first (marks among them), then the visual rows.

use crate::engine::Source;
use crate::head::BitwiseConfig;
use crate::shared_bits::bit_patterns;
use candle_core::{Device, Tensor};
use nn::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A token of a sequence: a row of a vocabulary, or above the text's rows a visual token, which is its bits and its cell (see
/// [`MergedVocab`]).
pub type Token = u64;

/// Bits of a token; the engine keeps the ones above for a token's head.
pub(crate) const TOKEN_BITS: usize = 60;

/// Most bits of a code that is one token.
pub const MAX_BITS: usize = 56;

/// Rows of the merged vocabulary. A visual code of `bits` is written as `bits / group_bits` sub-tokens, first group first,
/// each from a table of its own or all from one shared table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergedVocab {
    /// Text rows, marks included.
    pub text: usize,
    /// Bits a code.
    pub bits: usize,
    /// Bits a sub-token.
    pub group_bits: usize,
    /// One table for all sub-tokens of a code, instead of one each.
    #[serde(default)]
    pub shared_table: bool,
    /// Codes along the side of a picture's square grid.
    pub grid: usize,
    /// Visual tokens as bits, a token a code, without rows of a table; `group_bits` is not read then. A visual token is `text`
    /// plus its code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitwise: Option<BitwiseConfig>,
    /// A bitwise token holds its cell too, above its bits: `text + (cell << bits) + code`. What is read is then the code and a learned
    /// vector of the cell, so that a picture can be compared with another, or copied, without counting.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cell_positions: bool,
    /// Row of the mark before a picture (a text row).
    pub begin_image: Token,
    /// Row of the mark after it.
    pub end_image: Token,
}

/// A part of the vocabulary that a softmax runs over (UM3 equation 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partition {
    /// Text rows.
    Text,
    /// Rows of one sub-token.
    Visual(usize),
}

/// The groups of a code's bits, most significant first.
pub fn groups_of(code: u64, groups: usize, group_bits: usize) -> impl Iterator<Item = u64> {
    let mask = (1u64 << group_bits) - 1;
    (0..groups).map(move |sub| code >> ((groups - 1 - sub) * group_bits) & mask)
}

/// The code of groups of bits, as [`groups_of`] takes it apart.
pub fn code_of(groups: &[u64], group_bits: usize) -> u64 {
    groups.iter().fold(0, |code, &group| code << group_bits | group)
}

/// Tokens as rows of a table; one that no table can have is an error.
pub fn table_rows(tokens: &[Token]) -> Result<Vec<u32>> {
    let row = |&t: &Token| u32::try_from(t).map_err(|_| Error::invalid(format!("token {t} is a row of no table")));
    tokens.iter().map(row).collect()
}

impl MergedVocab {
    /// The bits of every row [rows, bits]: see [`bit_patterns`].
    pub fn bit_patterns(&self, device: &Device) -> Result<Tensor> {
        bit_patterns(self.text, self.groups(), self.group_bits, self.shared_table, device)
    }

    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        if let Some(b) = &self.bitwise {
            b.check()?;
            if b.bits != self.bits || self.bits > MAX_BITS || self.shared_table {
                return Err(Error::invalid(format!(
                    "vocabulary: a bitwise head of {} bits for codes of {} ({MAX_BITS} at most, no shared table)",
                    b.bits, self.bits
                )));
            }
            // half of a token's numbers are for the text's rows
            let half = TOKEN_BITS - 1;
            if self.text > 1 << half {
                return Err(Error::invalid(format!("vocabulary: {} text rows do not fit a token", self.text)));
            }
            let cells = self.grid.saturating_mul(self.grid) as u64;
            if self.cell_positions && (self.grid > 1 << 15 || cells > 1 << (half - self.bits)) {
                return Err(Error::invalid(format!(
                    "vocabulary: cell_positions: {cells} cells of {} bits do not fit a token of {TOKEN_BITS} bits",
                    self.bits
                )));
            }
        } else if self.cell_positions {
            return Err(Error::invalid("vocabulary: cell_positions needs a bitwise head"));
        } else if self.group_bits == 0
            || self.group_bits > 20
            || !self.bits.is_multiple_of(self.group_bits)
            || self.bits > 63
            || self.bits == 0
        {
            return Err(Error::invalid(format!(
                "vocabulary: {} bits do not divide into groups of {} (at most 20)",
                self.bits, self.group_bits
            )));
        }
        if self.begin_image as usize >= self.text || self.end_image as usize >= self.text || self.grid == 0 {
            return Err(Error::invalid(
                "vocabulary: the marks around a picture must be text rows, and the grid positive",
            ));
        }
        Ok(())
    }

    /// Sub-tokens a code.
    pub fn groups(&self) -> usize {
        self.bits / self.width().max(1)
    }

    /// Bits of a visual token.
    fn width(&self) -> usize {
        if self.bitwise.is_some() { self.bits } else { self.group_bits }
    }

    /// What the engine draws the `n`-th visual token of a picture from.
    pub fn visual_source(&self, n: usize) -> Source {
        let range = self.visual_range(n);
        match &self.bitwise {
            Some(_) => Source { head: 1, start: range.start as Token, rows: 0 },
            None => Source::rows(range),
        }
    }

    /// Tokens that the `n`-th visual token of a picture may be.
    pub fn visual_range(&self, n: usize) -> Range<usize> {
        if !self.cell_positions {
            return self.range(self.visual(n));
        }
        let start = self.text + (n << self.bits);
        start..start + (1 << self.bits)
    }

    /// Cells that have a learned vector.
    pub fn positions(&self) -> usize {
        if self.cell_positions { self.grid * self.grid } else { 0 }
    }

    /// Visual tokens a picture.
    pub fn tokens_per_image(&self) -> usize {
        self.grid * self.grid * self.groups()
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        if self.bitwise.is_some() {
            return self.text;
        }
        let tables = if self.shared_table { 1 } else { self.groups() };
        self.text + (tables << self.group_bits)
    }

    /// Rows of a partition.
    pub fn range(&self, p: Partition) -> Range<usize> {
        match p {
            Partition::Text => 0..self.text,
            Partition::Visual(sub) => {
                let table = if self.shared_table { 0 } else { sub };
                let start = self.text + (table << self.width());
                start..start + (self.positions().max(1) << self.width())
            }
        }
    }

    /// Partition of the `n`-th visual token of a picture.
    pub fn visual(&self, n: usize) -> Partition {
        Partition::Visual(n % self.groups())
    }

    /// Codes of one picture to token ids.
    pub fn to_tokens(&self, codes: &[u64]) -> Vec<Token> {
        let groups = codes.iter().flat_map(|&code| groups_of(code, self.groups(), self.width()));
        groups.enumerate().map(|(n, index)| self.visual_range(n).start as Token + index).collect()
    }

    /// Token ids of one picture back to codes; an error names a token that is not where it may be.
    pub fn to_codes(&self, tokens: &[Token]) -> Result<Vec<u64>> {
        if tokens.len() != self.tokens_per_image() {
            return Err(Error::invalid(format!(
                "{} visual tokens for a picture of {}",
                tokens.len(),
                self.tokens_per_image()
            )));
        }
        self.cells(tokens)
    }

    /// The same for the first cells of a picture, as many as are whole.
    pub fn cells(&self, tokens: &[Token]) -> Result<Vec<u64>> {
        let index = |(n, &t): (usize, &Token)| {
            let range = self.visual_range(n);
            if !range.contains(&(t as usize)) {
                return Err(Error::invalid(format!("token {t} is not what the picture's visual token {n} may be")));
            }
            Ok(t - range.start as Token)
        };
        let groups = tokens.iter().enumerate().map(index).collect::<Result<Vec<_>>>()?;
        Ok(groups.chunks_exact(self.groups()).map(|code| code_of(code, self.width())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_round_trip() {
        for (shared_table, bitwise, cell_positions) in
            [(false, false, false), (true, false, false), (false, true, false), (false, true, true)]
        {
            let v = MergedVocab {
                bitwise: bitwise.then(|| BitwiseConfig::of(28, 8)),
                cell_positions,
                text: 100,
                bits: 28,
                group_bits: 14,
                shared_table,
                grid: 2,
                begin_image: 2,
                end_image: 3,
            };
            v.check().unwrap();
            let codes = [0, (1 << 28) - 1, 123_456_789, 1 << 14];
            let tokens = v.to_tokens(&codes);
            assert!(tokens.iter().enumerate().all(|(i, &t)| v.range(v.visual(i)).contains(&(t as usize))));
            assert_eq!(v.to_codes(&tokens).unwrap(), codes);
            // the same code in two cells
            let twice = v.to_tokens(&[7, 7]);
            assert_eq!(twice[..v.groups()] == twice[v.groups()..], !cell_positions);
            let visual = if bitwise { 0 } else { 16384 << usize::from(!shared_table) };
            assert_eq!((v.rows(), tokens.len()), (100 + visual, if bitwise { 4 } else { 8 }));
        }
    }

    #[test]
    fn cells_have_room_in_a_token_or_are_refused() {
        let v = |bits, grid, bitwise: bool| MergedVocab {
            bitwise: bitwise.then(|| BitwiseConfig::of(bits, 8)),
            cell_positions: true,
            text: 100,
            bits,
            group_bits: 14,
            shared_table: false,
            grid,
            begin_image: 2,
            end_image: 3,
        };
        v(20, 8, true).check().unwrap();
        v(48, 8, true).check().unwrap();
        assert!(v(56, 8, true).check().unwrap_err().to_string().contains("64 cells of 56 bits do not fit"));
        assert!(v(20, 1 << 20, true).check().is_err());
        assert!(v(28, 2, false).check().unwrap_err().to_string().contains("needs a bitwise head"));
    }
}
