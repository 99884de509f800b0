//! Emu3's image and video tokenizer (Wang et al. 2024, section 2.2): MoVQ's encoder and decoder with convolutions in time. A code
//! stands for 8 x 8 pixels of 4 frames; a picture is 4 equal frames, of which the first is kept.

use super::net::Net;
use super::quantizer::Codebook;
use super::{VqConfig, quantizer::Quantised};
use crate::image::Pixels;
use candle_core::{IndexOp, Tensor};
use nn::ops::Activation;
use nn::{Error, Init, Params, Result};

/// Its sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Emu3VqConfig {
    /// Of encoder, decoder and codebook.
    pub net: VqConfig,
    /// Frames of a code, a power of two.
    pub temporal_downsample_factor: usize,
}

/// A convolution over time, rows and columns; time sees what was before it alone.
#[derive(Debug, Clone)]
struct Conv3d {
    /// A kernel [output, input, rows, columns] for each step of time, the earliest first.
    taps: Vec<Tensor>,
    bias: Tensor,
    time_stride: usize,
}

impl Conv3d {
    fn new(p: &Params, (input, output): (usize, usize), (time, side): (usize, usize), stride: usize) -> Result<Self> {
        let std = ((input * time * side * side) as f32).powf(-0.5);
        let weight = p.get((output, input, time, side, side), "conv.weight", Init::Normal(std))?;
        let taps = (0..time).map(|t| Ok(weight.i((.., .., t))?.contiguous()?)).collect::<Result<_>>()?;
        Ok(Self { taps, bias: p.get(output, "conv.bias", Init::Const(0.0))?, time_stride: stride })
    }

    /// [batch, time, channels, rows, columns] to the same with time divided by the stride. Two empty frames go before the first,
    /// whatever the kernel's length, as in the reference.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, t, _, h, w) = x.dims5()?;
        let side = self.taps[0].dim(2)?;
        let padded = t + 2;
        let frames = (padded.saturating_sub(self.taps.len())) / self.time_stride + 1;
        if padded < self.taps.len() {
            return Err(Error::invalid(format!("{t} frames are too few for the image tokenizer")));
        }
        let mut out = Vec::with_capacity(frames);
        for frame in 0..frames {
            let mut sum: Option<Tensor> = None;
            for (k, tap) in self.taps.iter().enumerate() {
                // the frame among the padded ones; the empty ones add nothing
                let Some(at) = (frame * self.time_stride + k).checked_sub(2).filter(|&at| at < t) else { continue };
                let x = x.i((.., at))?.contiguous()?;
                let y = x.conv2d(tap, side / 2, 1, 1, 1)?;
                sum = Some(match sum {
                    Some(s) => (s + y)?,
                    None => y,
                });
            }
            let channels = self.bias.dim(0)?;
            let sum = match sum {
                Some(s) => s,
                None => Tensor::zeros((b, channels, h, w), x.dtype(), x.device())?,
            };
            out.push(sum.broadcast_add(&self.bias.reshape((1, channels, 1, 1))?)?);
        }
        Ok(Tensor::stack(&out, 1)?)
    }
}

/// Batch norm with the statistics of the training.
#[derive(Debug, Clone)]
struct BatchNorm {
    scale: Tensor,
    shift: Tensor,
}

impl BatchNorm {
    fn new(p: &Params, channels: usize) -> Result<Self> {
        let get = |name: &str, value: f32| p.get(channels, name, Init::Const(value));
        let (weight, bias) = (get("weight", 1.0)?, get("bias", 0.0)?);
        let (mean, var) = (get("running_mean", 0.0)?, get("running_var", 1.0)?);
        let scale = weight.div(&(var + 1e-5)?.sqrt()?)?;
        let shift = (bias - (mean * &scale)?)?;
        let shape = (1, 1, channels, 1, 1);
        Ok(Self { scale: scale.reshape(shape)?, shift: shift.reshape(shape)? })
    }
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?)
    }
}

/// A residual block over time and space.
#[derive(Debug, Clone)]
struct TimeBlock {
    norm1: BatchNorm,
    conv1: Conv3d,
    norm2: BatchNorm,
    conv2: Conv3d,
}

impl TimeBlock {
    fn new(p: &Params, channels: usize) -> Result<Self> {
        let conv = |name: &str| Conv3d::new(&p.at(name), (channels, channels), (3, 3), 1);
        Ok(Self {
            norm1: BatchNorm::new(&p.at("norm1"), channels)?,
            conv1: conv("conv1")?,
            norm2: BatchNorm::new(&p.at("norm2"), channels)?,
            conv2: conv("conv2")?,
        })
    }
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&Activation::Silu.forward(&self.norm1.forward(x)?)?)?;
        let h = self.conv2.forward(&Activation::Silu.forward(&self.norm2.forward(&h)?)?)?;
        Ok((x + h)?)
    }
}

/// The tokenizer.
#[derive(Debug, Clone)]
pub struct Emu3Tokenizer {
    /// Its sizes.
    pub config: Emu3VqConfig,
    encoder: Net,
    shorten: Vec<Conv3d>,
    encoder_blocks: Vec<TimeBlock>,
    quant_conv: Conv3d,
    codebook: Codebook,
    post_quant_conv: Conv3d,
    decoder_blocks: Vec<TimeBlock>,
    lengthen: Vec<Conv3d>,
    decoder: Net,
}

impl Emu3Tokenizer {
    /// Takes the tensors, levels and blocks under LlamaGen's names.
    pub fn new(p: &Params, config: &Emu3VqConfig) -> Result<Self> {
        let (c, factor) = (&config.net, config.temporal_downsample_factor);
        c.check()?;
        if !factor.is_power_of_two() || factor > 64 {
            return Err(Error::invalid(format!("temporal_downsample_factor {factor} is not a power of two")));
        }
        let (z, d, halvings) = (c.z_channels, c.codebook_embed_dim, factor.ilog2() as usize);
        let (encoder, decoder) = (p.at("encoder"), p.at("decoder"));
        let blocks = |p: &Params| {
            (0..c.num_res_blocks).map(|i| TimeBlock::new(&p.at("time_res_stack").at(i), z)).collect::<Result<Vec<_>>>()
        };
        let time = |p: &Params, kernel: usize, stride: usize| {
            let conv = |i| Conv3d::new(&p.at("time_conv").at(i).at("conv"), (z, z), (kernel, 3), stride);
            (0..halvings).map(conv).collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            encoder: Net::encoder(&encoder, c)?,
            shorten: time(&encoder, 4, 2)?,
            encoder_blocks: blocks(&encoder)?,
            quant_conv: Conv3d::new(&p.at("quant_conv"), (z, d), (3, 1), 1)?,
            codebook: Codebook::new(&p.at("quantize"), c)?,
            post_quant_conv: Conv3d::new(&p.at("post_quant_conv"), (d, z), (3, 1), 1)?,
            decoder_blocks: blocks(&decoder)?,
            lengthen: time(&decoder, 3, 1)?,
            decoder: Net::decoder(&decoder, c, d)?,
            config: config.clone(),
        })
    }

    /// Pictures [pictures, 3, height, width] as frames [pictures, frames, 3, height, width].
    pub fn frames(&self, pixels: &Pixels) -> Result<Tensor> {
        let (b, c, h, w) = pixels.0.dims4()?;
        let shape = (b, self.config.temporal_downsample_factor, c, h, w);
        Ok(pixels.0.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?)
    }

    /// The encoder's output [videos, time, channels, rows, columns] of frames [videos, frames, 3, height, width].
    pub fn encoder_out(&self, frames: &Tensor) -> Result<Tensor> {
        let (b, t, _, h, w) = frames.dims5()?;
        let stride = self.config.net.stride();
        if h == 0 || w == 0 || !h.is_multiple_of(stride) || !w.is_multiple_of(stride) {
            return Err(Error::invalid(format!("pixels are {h}x{w}; the tokenizer takes multiples of {stride}")));
        }
        if t == 0 || !t.is_multiple_of(self.config.temporal_downsample_factor) {
            let factor = self.config.temporal_downsample_factor;
            return Err(Error::invalid(format!("{t} frames; the tokenizer takes multiples of {factor}")));
        }
        let x = self.encoder.encode(&frames.flatten(0, 1)?)?;
        let (_, c, h, w) = x.dims4()?;
        let mut x = x.reshape((b, t, c, h, w))?;
        for conv in &self.shorten {
            x = Activation::Silu.forward(&conv.forward(&x)?)?;
        }
        for block in &self.encoder_blocks {
            x = block.forward(&x)?;
        }
        Ok(x)
    }

    /// The same in the codebook's width.
    pub fn pre_quant(&self, encoder_out: &Tensor) -> Result<Tensor> {
        self.quant_conv.forward(encoder_out)
    }

    /// Type of the weights, which is that of the pixels.
    pub fn dtype(&self) -> candle_core::DType {
        self.decoder.conv_out.weight.dtype()
    }

    /// Codes of each video, time by time and row by row.
    pub fn codes(&self, pre_quant: &Tensor) -> Result<Vec<u32>> {
        let Quantised { indices, .. } = self.codebook.quantise(&pre_quant.flatten(0, 1)?, &self.config.net)?;
        Ok(indices)
    }

    /// Frames [videos, frames, 3, height, width] in about -1..1 of codes (time, rows, columns).
    pub fn decode(&self, codes: &[u32], (time, rows, columns): (usize, usize, usize)) -> Result<Tensor> {
        let (c, cells) = (&self.config.net, time * rows * columns);
        if let Some(bad) = codes.iter().find(|&&i| i as usize >= c.codebook_size) {
            return Err(Error::invalid(format!("code {bad} is outside the codebook of {}", c.codebook_size)));
        }
        if cells == 0 || codes.is_empty() || !codes.len().is_multiple_of(cells) {
            return Err(Error::invalid(format!("{} codes do not fill {time} x {rows} x {columns}", codes.len())));
        }
        let d = c.codebook_embed_dim;
        let device = self.decoder.conv_out.weight.device();
        let cells = self.codebook.rows(codes, d, device)?.to_dtype(self.decoder.conv_out.weight.dtype())?;
        let cells = cells.reshape((codes.len() / (time * rows * columns), time, rows, columns, d))?;
        let cells = cells.permute((0, 1, 4, 2, 3))?.contiguous()?;
        // what is painted and what its norms look at grow in time alike
        let mut x = Tensor::cat(&[&self.post_quant_conv.forward(&cells)?, &cells], 0)?;
        for block in &self.decoder_blocks {
            x = block.forward(&x)?;
        }
        for conv in &self.lengthen {
            let (b, t, c, h, w) = x.dims5()?;
            let doubled = x.unsqueeze(2)?.broadcast_as((b, t, 2, c, h, w))?.contiguous()?;
            x = Activation::Silu.forward(&conv.forward(&doubled.reshape((b, 2 * t, c, h, w))?)?)?;
        }
        let videos = x.dim(0)? / 2;
        let part = |from| -> Result<Tensor> { Ok(x.narrow(0, from, videos)?.contiguous()?.flatten(0, 1)?) };
        let before = self.decoder.before_conv_out(&part(0)?, Some(&part(videos)?))?;
        let frames = self.decoder.conv_out.forward(&before, 1)?;
        let (n, c, h, w) = frames.dims4()?;
        Ok(frames.reshape((videos, n / videos.max(1), c, h, w))?)
    }

    /// Pictures of codes: the first frame of each.
    pub fn pictures(&self, codes: &[u32], rows: usize, columns: usize) -> Result<Pixels> {
        Ok(Pixels(self.decode(codes, (1, rows, columns))?.i((.., 0))?.contiguous()?))
    }
}
