//! LlamaGen's image tokenizer (Sun et al. 2024, section 2.1): a convolutional encoder, the nearest entry of an
//! l2-normalised codebook, a convolutional decoder. Published tensor names.

use crate::image::Pixels;
use candle_core::{D, DType, Device, Tensor};
use nn::ops::{self, Activation, Mask};
use nn::{Error, Init, Params, Result};
use serde::{Deserialize, Serialize};

/// The published model arguments; the defaults are VQ-16's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
            dtype: None,
        }
    }
}

impl VqConfig {
    /// VQ-8: eight pixels a token.
    pub fn f8() -> Self {
        Self { encoder_ch_mult: vec![1, 2, 2, 4], decoder_ch_mult: vec![1, 2, 2, 4], ..Self::default() }
    }

    /// Pixels along the side of a token.
    pub fn stride(&self) -> usize {
        1 << (self.encoder_ch_mult.len().max(1) - 1)
    }

    /// Whether the numbers fit together.
    pub fn check(&self) -> Result<()> {
        let widths = self.encoder_ch_mult.iter().chain(&self.decoder_ch_mult);
        if self.encoder_ch_mult.len() != self.decoder_ch_mult.len() || self.encoder_ch_mult.is_empty() {
            return Err(Error::invalid("VQ: encoder_ch_mult and decoder_ch_mult must be of one length"));
        }
        if !self.ch.is_multiple_of(GROUPS) || widths.clone().any(|&m| m == 0) || self.codebook_size == 0 {
            return Err(Error::invalid("VQ: ch must be a multiple of 32, multipliers and codebook_size positive"));
        }
        Ok(())
    }
}

const GROUPS: usize = 32;

#[derive(Debug, Clone)]
struct Conv {
    weight: Tensor,
    bias: Tensor,
}

impl Conv {
    fn new(p: &Params, input: usize, output: usize, kernel: usize) -> Result<Self> {
        let std = ((input * kernel * kernel) as f32).powf(-0.5);
        Ok(Self {
            weight: p.get((output, input, kernel, kernel), "weight", Init::Normal(std))?,
            bias: p.get(output, "bias", Init::Const(0.0))?,
        })
    }

    fn forward(&self, x: &Tensor, stride: usize) -> Result<Tensor> {
        let kernel = self.weight.dim(2)?;
        let y = match (stride, kernel) {
            (1, _) => x.conv2d(&self.weight, kernel / 2, 1, 1, 1)?,
            // one row below and one column to the right, as the reference pads
            _ => {
                let x = x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
                x.conv2d(&self.weight, 0, stride, 1, 1)?
            }
        };
        Ok(y.broadcast_add(&self.bias.reshape((1, (), 1, 1))?)?)
    }
}

#[derive(Debug, Clone)]
struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    fn new(p: &Params, channels: usize) -> Result<Self> {
        let weight = p.get(channels, "weight", Init::Const(1.0))?;
        Ok(Self { weight, bias: p.get(channels, "bias", Init::Const(0.0))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shape = x.dims4()?;
        let g = x.reshape((shape.0, GROUPS, ()))?;
        let centred = g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?;
        let spread = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        let y = centred.broadcast_div(&spread)?.reshape(shape)?;
        let row = |t: &Tensor| t.reshape((1, (), 1, 1));
        Ok(y.broadcast_mul(&row(&self.weight)?)?.broadcast_add(&row(&self.bias)?)?)
    }
}

#[derive(Debug, Clone)]
struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl ResBlock {
    fn new(p: &Params, input: usize, output: usize) -> Result<Self> {
        let shortcut = if input == output { None } else { Some(Conv::new(&p.at("nin_shortcut"), input, output, 1)?) };
        Ok(Self {
            norm1: GroupNorm::new(&p.at("norm1"), input)?,
            conv1: Conv::new(&p.at("conv1"), input, output, 3)?,
            norm2: GroupNorm::new(&p.at("norm2"), output)?,
            conv2: Conv::new(&p.at("conv2"), output, output, 3)?,
            shortcut,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&Activation::Silu.forward(&self.norm1.forward(x)?)?, 1)?;
        let h = self.conv2.forward(&Activation::Silu.forward(&self.norm2.forward(&h)?)?, 1)?;
        match &self.shortcut {
            Some(c) => Ok((c.forward(x, 1)? + h)?),
            None => Ok((x + h)?),
        }
    }
}

/// Attention of every cell to every cell, one head.
#[derive(Debug, Clone)]
struct AttnBlock {
    norm: GroupNorm,
    q: Conv,
    k: Conv,
    v: Conv,
    out: Conv,
}

impl AttnBlock {
    fn new(p: &Params, channels: usize) -> Result<Self> {
        let conv = |name: &str| Conv::new(&p.at(name), channels, channels, 1);
        Ok(Self {
            norm: GroupNorm::new(&p.at("norm"), channels)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            out: conv("proj_out")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let y = self.norm.forward(x)?;
        let cells = |conv: &Conv| -> Result<Tensor> {
            let t = conv.forward(&y, 1)?.reshape((b, c, h * w))?.transpose(1, 2)?.contiguous()?;
            Ok(t.reshape((b, h * w, 1, c))?)
        };
        let scale = (c as f64).powf(-0.5) as f32;
        let y = ops::attention(&cells(&self.q)?, &cells(&self.k)?, &cells(&self.v)?, scale, &Mask::Full)?;
        let y = y.reshape((b, h * w, c))?.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))?;
        Ok((x + self.out.forward(&y, 1)?)?)
    }
}

/// One resolution: residual blocks, each with attention at the lowest, then a change of resolution.
#[derive(Debug, Clone)]
struct Level {
    res: Vec<ResBlock>,
    attn: Vec<AttnBlock>,
    resample: Option<Conv>,
}

impl Level {
    fn new(p: &Params, blocks: usize, input: usize, output: usize, attn: bool, resample: Option<&str>) -> Result<Self> {
        let res = |i: usize| ResBlock::new(&p.at("res").at(i), if i == 0 { input } else { output }, output);
        let resample = resample.map(|name| Conv::new(&p.at(name).at("conv"), output, output, 3)).transpose()?;
        Ok(Self {
            res: (0..blocks).map(res).collect::<Result<_>>()?,
            attn: (0..if attn { blocks } else { 0 })
                .map(|i| AttnBlock::new(&p.at("attn").at(i), output))
                .collect::<Result<_>>()?,
            resample,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, res) in self.res.iter().enumerate() {
            x = res.forward(&x)?;
            if let Some(attn) = self.attn.get(i) {
                x = attn.forward(&x)?;
            }
        }
        Ok(x)
    }
}

/// Residual block, attention, residual block at the lowest resolution.
#[derive(Debug, Clone)]
struct Middle(ResBlock, AttnBlock, ResBlock);

impl Middle {
    fn new(p: &Params, channels: usize) -> Result<Self> {
        Ok(Self(
            ResBlock::new(&p.at(0), channels, channels)?,
            AttnBlock::new(&p.at(1), channels)?,
            ResBlock::new(&p.at(2), channels, channels)?,
        ))
    }
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.2.forward(&self.1.forward(&self.0.forward(x)?)?)
    }
}

/// Encoder or decoder: the order of levels and middle differs.
#[derive(Debug, Clone)]
struct Net {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl Net {
    fn encoder(p: &Params, c: &VqConfig) -> Result<Self> {
        let last = c.encoder_ch_mult.len() - 1;
        let mut width = c.ch;
        let mut levels = Vec::new();
        for (i, m) in c.encoder_ch_mult.iter().enumerate() {
            let at = p.at("conv_blocks").at(i);
            let down = (i != last).then_some("downsample");
            levels.push(Level::new(&at, c.num_res_blocks, width, c.ch * m, i == last, down)?);
            width = c.ch * m;
        }
        Ok(Self {
            conv_in: Conv::new(&p.at("conv_in"), 3, c.ch, 3)?,
            levels,
            middle: Middle::new(&p.at("mid"), width)?,
            norm_out: GroupNorm::new(&p.at("norm_out"), width)?,
            conv_out: Conv::new(&p.at("conv_out"), width, c.z_channels, 3)?,
        })
    }

    fn decoder(p: &Params, c: &VqConfig) -> Result<Self> {
        let last = c.decoder_ch_mult.len() - 1;
        let lowest = c.ch * c.decoder_ch_mult[last];
        let mut width = lowest;
        let mut levels = Vec::new();
        for (i, m) in c.decoder_ch_mult.iter().rev().enumerate() {
            let at = p.at("conv_blocks").at(i);
            let up = (i != last).then_some("upsample");
            levels.push(Level::new(&at, c.num_res_blocks + 1, width, c.ch * m, i == 0, up)?);
            width = c.ch * m;
        }
        Ok(Self {
            conv_in: Conv::new(&p.at("conv_in"), c.z_channels, lowest, 3)?,
            levels,
            middle: Middle::new(&p.at("mid"), lowest)?,
            norm_out: GroupNorm::new(&p.at("norm_out"), width)?,
            conv_out: Conv::new(&p.at("conv_out"), width, 3, 3)?,
        })
    }

    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(x, 1)?;
        for level in &self.levels {
            x = level.forward(&x)?;
            if let Some(down) = &level.resample {
                x = down.forward(&x, 2)?;
            }
        }
        self.out(&self.middle.forward(&x)?)
    }

    fn decode(&self, z: &Tensor) -> Result<Tensor> {
        let mut x = self.middle.forward(&self.conv_in.forward(z, 1)?)?;
        for level in &self.levels {
            x = level.forward(&x)?;
            if let Some(up) = &level.resample {
                let (_, _, h, w) = x.dims4()?;
                x = up.forward(&x.upsample_nearest2d(2 * h, 2 * w)?, 1)?;
            }
        }
        self.out(&x)
    }

    fn out(&self, x: &Tensor) -> Result<Tensor> {
        self.conv_out.forward(&Activation::Silu.forward(&self.norm_out.forward(x)?)?, 1)
    }
}

/// What quantising gives.
pub struct Quantised {
    /// Codebook row of each cell, row by row, [pictures * cells].
    pub indices: Vec<u32>,
    /// The straight-through value z + (entry - z), [pictures, dim, rows, columns].
    pub values: Tensor,
    /// mean (entry - z)^2 with z held.
    pub vq_loss: Tensor,
    /// The same with the entry held, times commit_loss_beta.
    pub commit_loss: Tensor,
}

/// The tokenizer.
#[derive(Debug, Clone)]
pub struct VqTokenizer {
    /// Its configuration.
    pub config: VqConfig,
    encoder: Net,
    decoder: Net,
    quant_conv: Conv,
    post_quant_conv: Conv,
    codebook: Tensor,
}

impl VqTokenizer {
    /// Takes the model's tensors.
    pub fn new(p: &Params, config: &VqConfig) -> Result<Self> {
        config.check()?;
        let (n, d) = (config.codebook_size, config.codebook_embed_dim);
        Ok(Self {
            encoder: Net::encoder(&p.at("encoder"), config)?,
            decoder: Net::decoder(&p.at("decoder"), config)?,
            quant_conv: Conv::new(&p.at("quant_conv"), config.z_channels, d, 1)?,
            post_quant_conv: Conv::new(&p.at("post_quant_conv"), d, config.z_channels, 1)?,
            codebook: p.at("quantize.embedding").get((n, d), "weight", Init::Normal(1.0 / (n as f32).sqrt()))?,
            config: config.clone(),
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.codebook.device()
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

    /// Entries of the codebook [entries, dim], normalised where the config says so.
    fn entries(&self) -> Result<Tensor> {
        if self.config.codebook_l2_norm { unit(&self.codebook) } else { Ok(self.codebook.clone()) }
    }

    /// The nearest entry of each cell.
    pub fn quantise(&self, pre_quant: &Tensor) -> Result<Quantised> {
        let (b, d, h, w) = pre_quant.dims4()?;
        let z = pre_quant.permute((0, 2, 3, 1))?.contiguous()?.reshape((b * h * w, d))?;
        let z = if self.config.codebook_l2_norm { unit(&z)? } else { z };
        let entries = self.entries()?;
        // |z|^2 is the same for every entry
        let lengths = entries.sqr()?.sum(1)?.unsqueeze(0)?;
        let distance = lengths.broadcast_sub(&(z.matmul(&entries.t()?)? * 2.0)?)?;
        let ids = distance.argmin(D::Minus1)?;
        let q = entries.index_select(&ids, 0)?;
        let vq_loss = (&q - z.detach())?.sqr()?.mean_all()?;
        let commit_loss = ((q.detach() - &z)?.sqr()?.mean_all()? * self.config.commit_loss_beta)?;
        let through = (&z + (&q - &z)?.detach())?;
        let values = through.reshape((b, h, w, d))?.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(Quantised { indices: ids.to_dtype(DType::U32)?.to_vec1()?, values, vq_loss, commit_loss })
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
        let ids = Tensor::from_slice(indices, indices.len(), self.codebook.device())?;
        let q = self.entries()?.index_select(&ids, 0)?;
        let shape = (indices.len() / cells, rows, columns, self.config.codebook_embed_dim);
        Ok(q.reshape(shape)?.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// Quantised values [pictures, dim, rows, columns] to pixels in about -1..1.
    pub fn decode(&self, quantised: &Tensor) -> Result<Pixels> {
        Ok(Pixels(self.decoder.decode(&self.post_quant_conv.forward(quantised, 1)?)?))
    }
}

/// Rows divided by their length (at least 1e-12).
fn unit(x: &Tensor) -> Result<Tensor> {
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
    Ok(x.broadcast_div(&length)?)
}
