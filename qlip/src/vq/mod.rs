//! LlamaGen's image tokenizer (Sun et al. 2024, section 2.1): a convolutional encoder, the nearest entry of an
//! l2-normalised codebook, a convolutional decoder. Published tensor names. Beyond the paper, the codes may be signs, with
//! no codebook to learn ([`Quantizer::Lfq`]).

mod emu3;
mod net;
mod published;
mod quantizer;

pub use emu3::{Emu3Tokenizer, Emu3VqConfig};
pub use published::{DecoderLevels, llamagen_name};
pub use quantizer::{Quantised, Quantizer};

use crate::image::Pixels;
use candle_core::{DType, Device, Tensor};
use net::{Conv, GROUPS, Net};
use nn::stored::Stored;
use nn::{Error, Params, Result};
use quantizer::Codebook;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The published model arguments; the defaults are VQ-16's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "published field names")]
pub struct VqConfig {
    pub codebook_size: usize,
    pub codebook_embed_dim: usize,
    pub codebook_l2_norm: bool,
    pub commit_loss_beta: f64,
    pub entropy_loss_ratio: f64,
    pub encoder_ch_mult: Vec<usize>,
    pub decoder_ch_mult: Vec<usize>,
    pub z_channels: usize,
    pub ch: usize,
    pub num_res_blocks: usize,
    /// Levels, the finest 0, whose residual blocks are followed by attention; the coarsest if absent, as in LlamaGen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attn_levels: Option<Vec<usize>>,
    /// How a cell becomes a code.
    #[serde(skip_serializing_if = "Quantizer::is_nearest")]
    pub quantizer: Quantizer,
    /// A remark of the file's writer.
    pub dtype: Option<String>,
}

impl Default for VqConfig {
    fn default() -> Self {
        Self {
            codebook_size: 16384,
            codebook_embed_dim: 8,
            codebook_l2_norm: true,
            commit_loss_beta: 0.25,
            entropy_loss_ratio: 0.0,
            encoder_ch_mult: vec![1, 1, 2, 2, 4],
            decoder_ch_mult: vec![1, 1, 2, 2, 4],
            z_channels: 256,
            ch: 128,
            num_res_blocks: 2,
            attn_levels: None,
            quantizer: Quantizer::Nearest,
            dtype: None,
        }
    }
}

impl VqConfig {
    /// What tests train in a moment.
    #[cfg(test)]
    pub(crate) fn tiny() -> Self {
        Self {
            codebook_size: 16,
            codebook_embed_dim: 4,
            encoder_ch_mult: vec![1, 1],
            decoder_ch_mult: vec![1, 1],
            z_channels: 8,
            ch: 32,
            num_res_blocks: 1,
            ..Self::default()
        }
    }

    /// VQ-8: eight pixels a token.
    pub fn f8() -> Self {
        Self { encoder_ch_mult: vec![1, 2, 2, 4], decoder_ch_mult: vec![1, 2, 2, 4], ..Self::default() }
    }

    /// What the shapes of a file's tensors say (LlamaGen's names): published files come without a configuration.
    /// `prefix` goes before its names.
    pub fn of_tensors(stored: &Stored, prefix: &str, l2_norm: bool) -> Result<Self> {
        let shapes = stored.shapes().into_iter().filter_map(|(n, d)| Some((n.strip_prefix(prefix)?, d)));
        let shapes: HashMap<&str, &[usize]> = shapes.collect();
        let dims = |name: &str| {
            let found = shapes.get(name).filter(|d| d.len() >= 2).copied();
            found.ok_or_else(|| Error::invalid(format!("no image tokenizer as LlamaGen's: tensor `{name}` is missing")))
        };
        let (table, first) = (dims("quantize.embedding.weight")?, dims("encoder.conv_in.weight")?);
        let ch = first[0];
        let at = |half: &str, level: usize, what: &str| format!("{half}.conv_blocks.{level}.{what}.weight");
        let levels = (0..).take_while(|&l| shapes.contains_key(at("encoder", l, "res.0.conv1").as_str())).count();
        let (mut mult, mut attn) = (Vec::new(), Vec::new());
        for level in 0..levels {
            mult.push(dims(&at("encoder", level, "res.0.conv1"))?[0] / ch.max(1));
            if shapes.contains_key(at("encoder", level, "attn.0.q").as_str()) {
                attn.push(level);
            }
        }
        let res = |r: &usize| shapes.contains_key(at("encoder", 0, &format!("res.{r}.conv1")).as_str());
        let lowest = attn.as_slice() == [levels.saturating_sub(1)];
        let config = Self {
            codebook_size: table[0],
            codebook_embed_dim: table[1],
            codebook_l2_norm: l2_norm,
            decoder_ch_mult: mult.clone(),
            encoder_ch_mult: mult,
            z_channels: dims("encoder.conv_out.weight")?[0],
            ch,
            num_res_blocks: (0..).take_while(res).count(),
            attn_levels: (!lowest).then_some(attn),
            ..Self::default()
        };
        config.check()?;
        Ok(config)
    }

    /// Pixels along the side of a token.
    pub fn stride(&self) -> usize {
        1 << (self.encoder_ch_mult.len().max(1) - 1)
    }

    /// Whether a level has attention.
    fn attends(&self, level: usize) -> bool {
        match &self.attn_levels {
            Some(levels) => levels.contains(&level),
            None => level + 1 == self.encoder_ch_mult.len(),
        }
    }

    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        let widths = self.encoder_ch_mult.iter().chain(&self.decoder_ch_mult);
        if self.encoder_ch_mult.len() != self.decoder_ch_mult.len() || self.encoder_ch_mult.is_empty() {
            return Err(Error::invalid("VQ: encoder_ch_mult and decoder_ch_mult must be of one length"));
        }
        let fits = |m: &usize| *m > 0 && self.ch.checked_mul(*m).is_some_and(|c| c <= MOST_CHANNELS);
        if self.ch == 0 || !self.ch.is_multiple_of(GROUPS) || !widths.clone().all(fits) || self.codebook_size == 0 {
            return Err(Error::invalid(format!(
                "VQ: ch must be a multiple of {GROUPS}, multipliers and codebook_size positive, at most {MOST_CHANNELS} channels"
            )));
        }
        if self.encoder_ch_mult.len() > 16
            || self.num_res_blocks == 0
            || self.z_channels == 0
            || self.codebook_embed_dim == 0
        {
            return Err(Error::invalid(
                "VQ: at most 16 levels; num_res_blocks, z_channels, codebook_embed_dim positive",
            ));
        }
        let bits = self.codebook_embed_dim;
        if self.quantizer == Quantizer::Lfq && (bits > 31 || self.codebook_size != 1 << bits) {
            let why =
                format!("{} codes of {bits} signs; write codebook_size = 2^codebook_embed_dim", self.codebook_size);
            return Err(Error::invalid(format!("VQ: {why}")));
        }
        Ok(())
    }
}

/// More channels than any published tokenizer has, and few enough to be counted with.
const MOST_CHANNELS: usize = 1 << 16;

/// The tokenizer.
#[derive(Debug, Clone)]
pub struct VqTokenizer {
    /// Its configuration.
    pub config: VqConfig,
    encoder: Net,
    quant_conv: Conv,
    codebook: Codebook,
    painter: Option<Painter>,
}

/// The half that makes pictures, which some files do not hold.
#[derive(Debug, Clone)]
struct Painter {
    decoder: Net,
    post_quant_conv: Conv,
}

impl VqTokenizer {
    /// Takes the model's tensors.
    pub fn new(p: &Params, config: &VqConfig) -> Result<Self> {
        config.check()?;
        let d = config.codebook_embed_dim;
        Ok(Self {
            painter: Some(Painter {
                decoder: Net::decoder(&p.at("decoder"), config, 0)?,
                post_quant_conv: Conv::new(&p.at("post_quant_conv"), d, config.z_channels, 1)?,
            }),
            ..Self::seeing(p, config)?
        })
    }

    /// The half that reads pictures, of a file that holds no more.
    pub fn seeing(p: &Params, config: &VqConfig) -> Result<Self> {
        config.check()?;
        Ok(Self {
            encoder: Net::encoder(&p.at("encoder"), config)?,
            quant_conv: Conv::new(&p.at("quant_conv"), config.z_channels, config.codebook_embed_dim, 1)?,
            codebook: Codebook::new(&p.at("quantize"), config)?,
            painter: None,
            config: config.clone(),
        })
    }

    /// Whether it can make pictures.
    pub fn paints(&self) -> bool {
        self.painter.is_some()
    }

    fn painter(&self) -> Result<&Painter> {
        self.painter
            .as_ref()
            .ok_or_else(|| Error::invalid("this image tokenizer has no decoder: it reads pictures only"))
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.quant_conv.weight.device()
    }

    /// Type of its numbers.
    pub fn dtype(&self) -> DType {
        self.quant_conv.weight.dtype()
    }

    /// Pixels in -1..1 [pictures, 3, height, width], sides multiples of the stride, to the encoder's output.
    pub fn encoder_out(&self, pixels: &Pixels) -> Result<Tensor> {
        let (_, _, h, w) = pixels.0.dims4()?;
        let stride = self.config.stride();
        if h == 0 || w == 0 || !h.is_multiple_of(stride) || !w.is_multiple_of(stride) {
            return Err(Error::invalid(format!("pixels are {h}x{w}; the tokenizer takes multiples of {stride}")));
        }
        self.encoder.encode(&pixels.0)
    }

    /// The encoder's output in the codebook's width, before the nearest entry is taken.
    pub fn pre_quant(&self, encoder_out: &Tensor) -> Result<Tensor> {
        self.quant_conv.forward(encoder_out, 1)
    }

    /// The code of each cell.
    pub fn quantise(&self, pre_quant: &Tensor) -> Result<Quantised> {
        self.codebook.quantise(pre_quant, &self.config)
    }

    /// Codebook entries of indices, [pictures, dim, rows, columns].
    pub fn look_up(&self, indices: &[u32], rows: usize, columns: usize) -> Result<Tensor> {
        let n = self.config.codebook_size;
        if let Some(bad) = indices.iter().find(|&&i| i as usize >= n) {
            return Err(Error::invalid(format!("code {bad} is outside the codebook of {n}")));
        }
        let cells = rows * columns;
        if cells == 0 || !indices.len().is_multiple_of(cells) {
            return Err(Error::invalid(format!("{} codes do not fill grids of {rows}x{columns}", indices.len())));
        }
        let q = self.codebook.rows(indices, self.config.codebook_embed_dim, self.device())?;
        let q = q.to_dtype(self.quant_conv.weight.dtype())?;
        let shape = (indices.len() / cells, rows, columns, self.config.codebook_embed_dim);
        Ok(q.reshape(shape)?.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// Quantised values [pictures, dim, rows, columns] to pixels in about -1..1.
    pub fn decode(&self, quantised: &Tensor) -> Result<Pixels> {
        self.conv_out(&self.before_conv_out(quantised)?)
    }

    /// The same up to what the decoder's last layer reads.
    pub(crate) fn before_conv_out(&self, quantised: &Tensor) -> Result<Tensor> {
        let painter = self.painter()?;
        painter.decoder.before_conv_out(&painter.post_quant_conv.forward(quantised, 1)?, None)
    }

    /// The decoder's last layer.
    pub(crate) fn conv_out(&self, before: &Tensor) -> Result<Pixels> {
        Ok(Pixels(self.painter()?.decoder.conv_out.forward(before, 1)?))
    }

    /// Its kernels.
    pub(crate) fn conv_out_weight(&self) -> Result<&Tensor> {
        Ok(&self.painter()?.decoder.conv_out.weight)
    }
}
