//! The layers of the convolutional encoder and decoder.

use super::VqConfig;
use candle_core::Tensor;
use nn::ops::{self, Activation, Mask};
use nn::{Init, Params, Result};

pub(super) const GROUPS: usize = 32;

/// A convolution with a bias.
#[derive(Debug, Clone)]
pub(super) struct Conv {
    pub weight: Tensor,
    bias: Tensor,
}

impl Conv {
    pub fn new(p: &Params, input: usize, output: usize, kernel: usize) -> Result<Self> {
        let std = ((input * kernel * kernel) as f32).powf(-0.5);
        Ok(Self {
            weight: p.get((output, input, kernel, kernel), "weight", Init::Normal(std))?,
            bias: p.get(output, "bias", Init::Const(0.0))?,
        })
    }

    pub fn forward(&self, x: &Tensor, stride: usize) -> Result<Tensor> {
        let kernel = self.weight.dim(2)?;
        if stride == 1 {
            return Ok(ops::conv2d_biased(x, &self.weight, &self.bias, kernel / 2, 1)?);
        }
        // one row below and one column to the right, as the reference pads
        let x = x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
        Ok(ops::conv2d_biased(&x, &self.weight, &self.bias, 0, stride)?)
    }
}

/// Group norm; in MoVQ's decoder (Zheng et al. 2022) scaled and shifted by what the cells say at each place.
#[derive(Debug, Clone)]
struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    /// Scale and shift from the cells.
    spatial: Option<(Conv, Conv)>,
}

impl GroupNorm {
    /// `cells` is the width of the cells that it looks at, or 0.
    fn new(p: &Params, channels: usize, cells: usize) -> Result<Self> {
        let norm = if cells == 0 { p.clone() } else { p.at("norm_layer") };
        let weight = norm.get(channels, "weight", Init::Const(1.0))?;
        let bias = norm.get(channels, "bias", Init::Const(0.0))?;
        let spatial = match cells {
            0 => None,
            n => Some((Conv::new(&p.at("conv_y"), n, channels, 1)?, Conv::new(&p.at("conv_b"), n, channels, 1)?)),
        };
        Ok(Self { weight, bias, spatial })
    }

    fn forward(&self, x: &Tensor, cells: Option<&Tensor>) -> Result<Tensor> {
        let y = ops::group_norm(x, &self.weight, &self.bias, GROUPS, 1e-6)?;
        let (Some((scale, shift)), Some(cells)) = (&self.spatial, cells) else { return Ok(y) };
        // one by one convolutions: before or after the cells are spread over their pixels is the same
        let (_, _, h, w) = x.dims4()?;
        let spread = |t: Tensor| t.upsample_nearest2d(h, w);
        Ok((y * spread(scale.forward(cells, 1)?)?)?.add(&spread(shift.forward(cells, 1)?)?)?)
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
    fn new(p: &Params, input: usize, output: usize, cells: usize) -> Result<Self> {
        let shortcut = if input == output { None } else { Some(Conv::new(&p.at("nin_shortcut"), input, output, 1)?) };
        Ok(Self {
            norm1: GroupNorm::new(&p.at("norm1"), input, cells)?,
            conv1: Conv::new(&p.at("conv1"), input, output, 3)?,
            norm2: GroupNorm::new(&p.at("norm2"), output, cells)?,
            conv2: Conv::new(&p.at("conv2"), output, output, 3)?,
            shortcut,
        })
    }

    fn forward(&self, x: &Tensor, cells: Option<&Tensor>) -> Result<Tensor> {
        let h = self.conv1.forward(&Activation::Silu.forward(&self.norm1.forward(x, cells)?)?, 1)?;
        let h = self.conv2.forward(&Activation::Silu.forward(&self.norm2.forward(&h, cells)?)?, 1)?;
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
    fn new(p: &Params, channels: usize, cells: usize) -> Result<Self> {
        let conv = |name: &str| Conv::new(&p.at(name), channels, channels, 1);
        Ok(Self {
            norm: GroupNorm::new(&p.at("norm"), channels, cells)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            out: conv("proj_out")?,
        })
    }

    fn forward(&self, x: &Tensor, cells: Option<&Tensor>) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let y = self.norm.forward(x, cells)?;
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

/// One resolution: residual blocks, each with attention where there is some, then a change of resolution.
#[derive(Debug, Clone)]
struct Level {
    res: Vec<ResBlock>,
    attn: Vec<AttnBlock>,
    resample: Option<Conv>,
}

impl Level {
    fn new(
        p: &Params,
        (blocks, cells): (usize, usize),
        (input, output): (usize, usize),
        attn: bool,
        resample: Option<&str>,
    ) -> Result<Self> {
        let res = |i: usize| ResBlock::new(&p.at("res").at(i), if i == 0 { input } else { output }, output, cells);
        let resample = resample.map(|name| Conv::new(&p.at(name).at("conv"), output, output, 3)).transpose()?;
        Ok(Self {
            res: (0..blocks).map(res).collect::<Result<_>>()?,
            attn: (0..if attn { blocks } else { 0 })
                .map(|i| AttnBlock::new(&p.at("attn").at(i), output, cells))
                .collect::<Result<_>>()?,
            resample,
        })
    }

    fn forward(&self, x: &Tensor, cells: Option<&Tensor>) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, res) in self.res.iter().enumerate() {
            x = res.forward(&x, cells)?;
            if let Some(attn) = self.attn.get(i) {
                x = attn.forward(&x, cells)?;
            }
        }
        Ok(x)
    }
}

/// Residual block, attention, residual block at the lowest resolution.
#[derive(Debug, Clone)]
struct Middle(ResBlock, AttnBlock, ResBlock);

impl Middle {
    fn new(p: &Params, channels: usize, cells: usize) -> Result<Self> {
        Ok(Self(
            ResBlock::new(&p.at(0), channels, channels, cells)?,
            AttnBlock::new(&p.at(1), channels, cells)?,
            ResBlock::new(&p.at(2), channels, channels, cells)?,
        ))
    }
    fn forward(&self, x: &Tensor, cells: Option<&Tensor>) -> Result<Tensor> {
        self.2.forward(&self.1.forward(&self.0.forward(x, cells)?, cells)?, cells)
    }
}

/// Encoder or decoder: the order of levels and middle differs.
#[derive(Debug, Clone)]
pub(super) struct Net {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    pub conv_out: Conv,
}

impl Net {
    pub fn encoder(p: &Params, c: &VqConfig) -> Result<Self> {
        let last = c.encoder_ch_mult.len() - 1;
        let mut width = c.ch;
        let mut levels = Vec::new();
        for (i, m) in c.encoder_ch_mult.iter().enumerate() {
            let at = p.at("conv_blocks").at(i);
            let down = (i != last).then_some("downsample");
            levels.push(Level::new(&at, (c.num_res_blocks, 0), (width, c.ch * m), c.attends(i), down)?);
            width = c.ch * m;
        }
        Ok(Self {
            conv_in: Conv::new(&p.at("conv_in"), 3, c.ch, 3)?,
            levels,
            middle: Middle::new(&p.at("mid"), width, 0)?,
            norm_out: GroupNorm::new(&p.at("norm_out"), width, 0)?,
            conv_out: Conv::new(&p.at("conv_out"), width, c.z_channels, 3)?,
        })
    }

    /// `cells` is the width of the cells that its norms look at, or 0.
    pub fn decoder(p: &Params, c: &VqConfig, cells: usize) -> Result<Self> {
        let last = c.decoder_ch_mult.len() - 1;
        let lowest = c.ch * c.decoder_ch_mult[last];
        let mut width = lowest;
        let mut levels = Vec::new();
        for (i, m) in c.decoder_ch_mult.iter().rev().enumerate() {
            let at = p.at("conv_blocks").at(i);
            let up = (i != last).then_some("upsample");
            levels.push(Level::new(&at, (c.num_res_blocks + 1, cells), (width, c.ch * m), c.attends(last - i), up)?);
            width = c.ch * m;
        }
        Ok(Self {
            conv_in: Conv::new(&p.at("conv_in"), c.z_channels, lowest, 3)?,
            levels,
            middle: Middle::new(&p.at("mid"), lowest, cells)?,
            norm_out: GroupNorm::new(&p.at("norm_out"), width, cells)?,
            conv_out: Conv::new(&p.at("conv_out"), width, 3, 3)?,
        })
    }

    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(x, 1)?;
        for level in &self.levels {
            x = level.forward(&x, None)?;
            if let Some(down) = &level.resample {
                x = down.forward(&x, 2)?;
            }
        }
        self.conv_out.forward(&self.before_out(&self.middle.forward(&x, None)?, None)?, 1)
    }

    /// From the cells to what the decoder's `conv_out` reads; `cells` is what norms look at.
    pub fn before_conv_out(&self, z: &Tensor, cells: Option<&Tensor>) -> Result<Tensor> {
        let mut x = self.middle.forward(&self.conv_in.forward(z, 1)?, cells)?;
        for level in &self.levels {
            x = level.forward(&x, cells)?;
            if let Some(up) = &level.resample {
                x = up.forward(&ops::double(&x)?, 1)?;
            }
        }
        self.before_out(&x, cells)
    }

    fn before_out(&self, x: &Tensor, cells: Option<&Tensor>) -> Result<Tensor> {
        Ok(Activation::Silu.forward(&self.norm_out.forward(x, cells)?)?)
    }
}
