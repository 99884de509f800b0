//! Image tokenizers that a decoder can be trained on: QLIP's bits as sub-tokens, or LlamaGen's codebook.

use crate::artifact::{Architecture, Artifact, Placement};
use crate::eyes::Eyes;
use crate::{Error, Result};
use candle_core::DType;
use lm::Token;
use lm::vocab::{MAX_BITS, code_of, groups_of, table_rows};
use qlip::vq::{Quantizer, VqConfig, VqTokenizer};
use qlip::{Codes, Image, Pixels, Preprocess};

/// Pictures that go through a convolutional tokenizer at once.
const BATCH: usize = 16;

/// Most bits of a sub-token, where nothing else is asked.
const GROUP_BITS: usize = 14;

/// Pictures to tokens and back.
pub enum VisualTokenizer {
    /// QLIP: each cell's bits in groups, a sub-token each.
    Qlip {
        /// The model.
        eyes: Box<Eyes>,
        /// Bits of a sub-token.
        group_bits: usize,
    },
    /// LlamaGen's: the nearest entry of a codebook.
    Vq {
        /// The model.
        model: Box<VqTokenizer>,
        /// Cells along a picture's side.
        grid: usize,
    },
}

impl VisualTokenizer {
    /// From an image tokenizer's files. `group_bits` divides QLIP's bits (absent: the largest divisor up to 14); `grid` is the
    /// number of cells along a side for a tokenizer that takes any size (absent: pictures of 256 pixels).
    pub fn load(artifact: &Artifact, group_bits: Option<usize>, grid: Option<usize>, at: &Placement) -> Result<Self> {
        if artifact.architecture == Architecture::Vq {
            let config: VqConfig = artifact.config()?;
            config.check()?;
            let grid = grid.unwrap_or(256 / config.stride());
            let exact = Placement { weights: None, ..at.clone() };
            return Ok(Self::Vq { model: Box::new(VqTokenizer::new(&artifact.params(&exact)?, &config)?), grid });
        }
        let eyes = Eyes::load(artifact, at, false)?;
        let bits = eyes.model.bsq.bits;
        let group_bits = match group_bits {
            Some(g) if g == 0 || g > MAX_BITS || !bits.is_multiple_of(g) => {
                return Err(Error::invalid(format!("group_bits {g} does not divide the tokenizer's {bits} bits")));
            }
            Some(g) => g,
            None => (1..=GROUP_BITS).rev().find(|g| bits.is_multiple_of(*g)).unwrap_or(1),
        };
        Ok(Self::Qlip { eyes: Box::new(eyes), group_bits })
    }

    /// Cells along a picture's side.
    pub fn grid(&self) -> usize {
        match self {
            Self::Qlip { eyes, .. } => eyes.model.grid(),
            Self::Vq { grid, .. } => *grid,
        }
    }

    /// Pixels along a picture's side.
    pub fn side(&self) -> usize {
        match self {
            Self::Qlip { eyes, .. } => eyes.side(),
            Self::Vq { model, grid } => grid * model.config.stride(),
        }
    }

    /// Name of its folder beside a model.
    pub fn folder(&self) -> &'static str {
        match self {
            Self::Qlip { .. } => "qlip",
            Self::Vq { .. } => "vq",
        }
    }

    /// The same with a cell's whole code as one token.
    pub fn with_whole_codes(self) -> Result<Self> {
        match self {
            Self::Qlip { eyes, .. } if eyes.model.bsq.bits <= MAX_BITS => {
                Ok(Self::Qlip { group_bits: eyes.model.bsq.bits, eyes })
            }
            Self::Qlip { eyes, .. } => {
                Err(Error::invalid(format!("codes of {} bits; a token holds up to {MAX_BITS}", eyes.model.bsq.bits)))
            }
            Self::Vq { ref model, .. } if !model.config.codebook_size.is_power_of_two() => {
                Err(Error::invalid(format!("a codebook of {} is no number of bits", model.config.codebook_size)))
            }
            Self::Vq { .. } => Ok(self),
        }
    }

    /// Bits of a cell's code.
    pub fn code_bits(&self) -> usize {
        match self {
            Self::Qlip { eyes, .. } => eyes.model.bsq.bits,
            Self::Vq { model, .. } => model.config.codebook_size.max(2).ilog2() as usize,
        }
    }

    /// Whether each bit of a code says something by itself.
    pub fn has_bits(&self) -> bool {
        match self {
            Self::Qlip { .. } => true,
            Self::Vq { model, .. } => model.config.quantizer == Quantizer::Lfq,
        }
    }

    /// Tokens a cell.
    pub fn sub_tokens(&self) -> usize {
        match self {
            Self::Qlip { eyes, group_bits } => eyes.model.bsq.bits / group_bits,
            Self::Vq { .. } => 1,
        }
    }

    /// Rows of a token's table.
    pub fn vocab(&self) -> usize {
        match self {
            Self::Qlip { group_bits, .. } => 1 << group_bits,
            Self::Vq { model, .. } => model.config.codebook_size,
        }
    }

    /// Tokens of pictures that have the tokenizer's side.
    pub fn tokens(&self, images: &[Image]) -> Result<Vec<Vec<Token>>> {
        match self {
            Self::Qlip { eyes, group_bits } => {
                let codes = eyes.encode(images)?;
                let split = |i| {
                    let groups = |&c: &u64| groups_of(c, self.sub_tokens(), *group_bits);
                    codes.image(i).iter().flat_map(groups).collect()
                };
                Ok((0..codes.images()).map(split).collect())
            }
            Self::Vq { model, .. } => {
                let mut out = Vec::new();
                for chunk in images.chunks(BATCH) {
                    let pixels = Preprocess::half(self.side()).normalise(chunk, model.device())?;
                    let pixels = Pixels(pixels.0.to_dtype(model.dtype())?);
                    let found = model.quantise(&model.pre_quant(&model.encoder_out(&pixels)?)?)?;
                    out.extend(
                        found
                            .indices
                            .chunks(self.grid() * self.grid())
                            .map(|c| c.iter().map(|&c| Token::from(c)).collect()),
                    );
                }
                Ok(out)
            }
        }
    }

    /// Pictures of tokens.
    pub fn images(&self, tokens: &[Vec<Token>]) -> Result<Vec<Image>> {
        match self {
            Self::Qlip { eyes, group_bits } => {
                let cells = tokens.iter().flat_map(|t| t.chunks(self.sub_tokens()));
                let indices = cells.map(|c| code_of(c, *group_bits)).collect();
                eyes.decode(&Codes { bits: eyes.model.bsq.bits, grid: self.grid(), indices })
            }
            Self::Vq { model, grid } => {
                let mut out = Vec::new();
                for t in tokens {
                    let Pixels(p) = model.decode(&model.look_up(&table_rows(t)?, *grid, *grid)?)?;
                    out.extend(Preprocess::half(self.side()).images(&Pixels(p.to_dtype(DType::F32)?))?);
                }
                Ok(out)
            }
        }
    }

    /// A picture of which only the first tokens are drawn, grey below its last whole row.
    pub fn sketch(&self, tokens: &[Token]) -> Result<Image> {
        let (grid, per_row) = (self.grid(), self.grid() * self.sub_tokens());
        let rows = tokens.len() / per_row;
        let mut all = tokens[..rows * per_row].to_vec();
        all.resize(grid * per_row, 0);
        let whole = self.images(&[all])?.pop().ok_or_else(|| Error::invalid("no picture"))?;
        Ok(whole.grey_below(whole.height() * rows / grid))
    }
}
