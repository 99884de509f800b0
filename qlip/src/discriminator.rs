//! Discriminators for adversarial training of the pixel decoder: PatchGAN (Isola et al. 2017) and the residual
//! discriminator of StyleGAN2 (Karras et al. 2020).
//!
//! They are training's alone: their tensors are saved with its state and never exported.

use candle_core::{D, Tensor};
use nn::ops::conv2d;
use nn::{Error, Init, Params, Result};
use serde::{Deserialize, Serialize};

/// Which, and how large.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum DiscriminatorConfig {
    /// A grid of judgements, each about a patch.
    Patch {
        /// Channels of the first layer.
        width: usize,
        /// Halvings of the resolution.
        layers: usize,
    },
    /// One judgement a picture, whose side must be a power of two.
    StyleGan {
        /// Channels at resolution r are `channel_base / r`, at most `channel_max`.
        channel_base: usize,
        /// Most channels.
        channel_max: usize,
    },
}

/// Pictures that share their spread of features in StyleGAN2's last layer.
const SPREAD_GROUP: usize = 4;

/// A discriminator.
#[derive(Debug, Clone)]
pub enum Discriminator {
    /// PatchGAN.
    Patch(Patch),
    /// StyleGAN2's.
    StyleGan(StyleGan),
}

impl Discriminator {
    /// Takes the tensors below this place, for pictures of `side` pixels.
    pub fn new(p: &Params, c: &DiscriminatorConfig, side: usize) -> Result<Self> {
        match *c {
            DiscriminatorConfig::Patch { width, layers } => Ok(Self::Patch(Patch::new(p, width, layers, side)?)),
            DiscriminatorConfig::StyleGan { channel_base, channel_max } => {
                Ok(Self::StyleGan(StyleGan::new(p, channel_base, channel_max, side)?))
            }
        }
    }

    /// Logits of "real" for pixels [pictures, 3, side, side]: [pictures, cells] or [pictures, 1].
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        match self {
            Self::Patch(d) => d.forward(pixels),
            Self::StyleGan(d) => d.forward(pixels),
        }
    }

    /// The same with tensors that no gradient reaches: what the generator plays against.
    pub fn held(&self) -> Self {
        match self {
            Self::Patch(d) => Self::Patch(d.map(&Tensor::detach)),
            Self::StyleGan(d) => Self::StyleGan(d.map(&Tensor::detach)),
        }
    }
}

/// max(x, 0.2 x)
fn leaky(x: &Tensor) -> Result<Tensor> {
    let slope = x.ge(0f64)?.to_dtype(x.dtype())?.affine(0.8, 0.2)?;
    Ok((x * slope)?)
}

fn row(t: &Tensor) -> Result<Tensor> {
    Ok(t.reshape((1, (), 1, 1))?)
}

/// Convolutions of 4 x 4, halving, normed over the batch; then two that keep the resolution.
#[derive(Debug, Clone)]
pub struct Patch {
    layers: Vec<PatchLayer>,
}

#[derive(Debug, Clone)]
struct PatchLayer {
    weight: Tensor,
    /// Of the first and last layer.
    bias: Option<Tensor>,
    /// Weight and bias of the norm in between.
    norm: Option<(Tensor, Tensor)>,
    stride: usize,
}

impl Patch {
    fn new(p: &Params, width: usize, halvings: usize, side: usize) -> Result<Self> {
        // two layers of 4 x 4 without a halving take a row and a column each
        if halvings == 0 || width == 0 || side >> halvings < 4 {
            return Err(Error::invalid(format!("[discriminator]: {halvings} layers do not fit {side} pixels")));
        }
        let channels = |i: usize| width * (1 << i.min(3));
        let mut input = 3;
        let mut layers = Vec::new();
        for i in 0..halvings + 2 {
            let last = i == halvings + 1;
            let output = if last { 1 } else { channels(i) };
            let p = p.at("main").at(i);
            let normed = i > 0 && !last;
            layers.push(PatchLayer {
                weight: p.get((output, input, 4, 4), "weight", Init::Normal(0.02))?,
                bias: if normed { None } else { Some(p.get(output, "bias", Init::Const(0.0))?) },
                norm: if normed {
                    let p = p.at("norm");
                    Some((p.get(output, "weight", Init::Const(1.0))?, p.get(output, "bias", Init::Const(0.0))?))
                } else {
                    None
                },
                stride: if i < halvings { 2 } else { 1 },
            });
            input = output;
        }
        Ok(Self { layers })
    }

    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = pixels.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = conv2d(&x, &layer.weight, 1, layer.stride)?;
            if let Some(bias) = &layer.bias {
                x = x.broadcast_add(&row(bias)?)?;
            }
            if let Some((weight, bias)) = &layer.norm {
                let centred = x.broadcast_sub(&x.mean_keepdim((0, 2, 3))?)?;
                let spread = (centred.sqr()?.mean_keepdim((0, 2, 3))? + 1e-5)?.sqrt()?;
                x = centred.broadcast_div(&spread)?.broadcast_mul(&row(weight)?)?.broadcast_add(&row(bias)?)?;
            }
            if i + 1 < self.layers.len() {
                x = leaky(&x)?;
            }
        }
        Ok(x.flatten_from(1)?)
    }

    fn map(&self, f: &impl Fn(&Tensor) -> Tensor) -> Self {
        let layer = |l: &PatchLayer| PatchLayer {
            weight: f(&l.weight),
            bias: l.bias.as_ref().map(f),
            norm: l.norm.as_ref().map(|(w, b)| (f(w), f(b))),
            stride: l.stride,
        };
        Self { layers: self.layers.iter().map(layer).collect() }
    }
}

/// A layer whose weight is drawn at unit size and scaled when it is used ("equalised learning rate").
#[derive(Debug, Clone)]
struct Scaled {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Scaled {
    fn new(p: &Params, shape: &[usize], bias: bool) -> Result<Self> {
        let weight = p.get(shape, "weight", Init::Normal(1.0))?;
        Ok(Self { weight, bias: if bias { Some(p.get(shape[0], "bias", Init::Const(0.0))?) } else { None } })
    }

    fn weight(&self) -> Result<Tensor> {
        let inputs: usize = self.weight.dims()[1..].iter().product();
        Ok((&self.weight * (inputs as f64).powf(-0.5))?)
    }

    /// x [pictures, in, h, w]; with `down`, blurred and halved.
    fn conv(&self, x: &Tensor, down: bool) -> Result<Tensor> {
        let weight = self.weight()?;
        let kernel = weight.dim(2)?;
        let y = match (down, kernel) {
            (false, k) => conv2d(x, &weight, k / 2, 1)?,
            (true, 1) => conv2d(&blur(x, 1)?, &weight, 0, 2)?,
            (true, k) => conv2d(&blur(x, k / 2 + 1)?, &weight, 0, 2)?,
        };
        match &self.bias {
            Some(b) => Ok(y.broadcast_add(&row(b)?)?),
            None => Ok(y),
        }
    }

    /// x [pictures, in]
    fn linear(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight()?.t()?)?;
        match &self.bias {
            Some(b) => Ok(y.broadcast_add(b)?),
            None => Ok(y),
        }
    }

    fn map(&self, f: &impl Fn(&Tensor) -> Tensor) -> Self {
        Self { weight: f(&self.weight), bias: self.bias.as_ref().map(f) }
    }
}

/// Zeros around, then each pixel mixed with its neighbours by [1, 3, 3, 1] / 8 along both axes; loses three rows and
/// columns.
fn blur(x: &Tensor, padding: usize) -> Result<Tensor> {
    let x = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let along = |x: &Tensor, dim: usize| -> Result<Tensor> {
        let n = x.dim(dim)? - 3;
        let part = |i: usize, w: f64| -> Result<Tensor> { Ok((x.narrow(dim, i, n)? * w)?) };
        Ok((((part(0, 0.125)? + part(1, 0.375)?)? + part(2, 0.375)?)? + part(3, 0.125)?)?)
    };
    along(&along(&x, 2)?, 3)
}

/// Leaky activation with the gain that keeps the variance.
fn active(x: &Tensor) -> Result<Tensor> {
    Ok((leaky(x)? * std::f64::consts::SQRT_2)?)
}

/// Residual blocks, each halving, down to 4 x 4; then the spread of the batch, a convolution and two layers.
#[derive(Debug, Clone)]
pub struct StyleGan {
    from_rgb: Scaled,
    blocks: Vec<[Scaled; 3]>,
    conv: Scaled,
    fc: Scaled,
    out: Scaled,
}

impl StyleGan {
    fn new(p: &Params, base: usize, most: usize, side: usize) -> Result<Self> {
        if !side.is_power_of_two() || side < 8 || base == 0 || most == 0 {
            let why = format!("[discriminator]: stylegan takes pictures of a power of two pixels, not {side}");
            return Err(Error::invalid(why + "; use kind = \"patch\""));
        }
        let channels = |r: usize| (base / r).clamp(1, most);
        let mut blocks = Vec::new();
        let mut r = side;
        while r > 4 {
            let (p, c, next) = (p.at(format!("b{r}")), channels(r), channels(r / 2));
            blocks.push([
                Scaled::new(&p.at("conv0"), &[c, c, 3, 3], true)?,
                Scaled::new(&p.at("conv1"), &[next, c, 3, 3], true)?,
                Scaled::new(&p.at("skip"), &[next, c, 1, 1], false)?,
            ]);
            r /= 2;
        }
        let (last, p4) = (channels(4), p.at("b4"));
        Ok(Self {
            from_rgb: Scaled::new(&p.at(format!("b{side}")).at("fromrgb"), &[channels(side), 3, 1, 1], true)?,
            blocks,
            conv: Scaled::new(&p4.at("conv"), &[last, last + 1, 3, 3], true)?,
            fc: Scaled::new(&p4.at("fc"), &[last, last * 16], true)?,
            out: Scaled::new(&p4.at("out"), &[1, last], true)?,
        })
    }

    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = active(&self.from_rgb.conv(pixels, false)?)?;
        for [conv0, conv1, skip] in &self.blocks {
            let y = active(&conv1.conv(&active(&conv0.conv(&x, false)?)?, true)?)?;
            x = ((y + skip.conv(&x, true)?)? * 0.5f64.sqrt())?;
        }
        let x = active(&self.conv.conv(&with_spread(&x)?, false)?)?;
        let x = active(&self.fc.linear(&x.flatten_from(1)?)?)?;
        self.out.linear(&x)
    }

    fn map(&self, f: &impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            from_rgb: self.from_rgb.map(f),
            blocks: self.blocks.iter().map(|b| b.each_ref().map(|l| l.map(f))).collect(),
            conv: self.conv.map(f),
            fc: self.fc.map(f),
            out: self.out.map(f),
        }
    }
}

/// One more channel: the mean over features and places of their deviation within a group of pictures.
fn with_spread(x: &Tensor) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let group = (1..=SPREAD_GROUP.min(n)).rev().find(|g| n.is_multiple_of(*g)).unwrap_or(1);
    let y = x.reshape((group, n / group, c * h * w))?;
    let centred = y.broadcast_sub(&y.mean_keepdim(0)?)?;
    let spread = (centred.sqr()?.mean(0)? + 1e-8)?.sqrt()?.mean(D::Minus1)?;
    let all = spread.unsqueeze(0)?.broadcast_as((group, n / group))?.contiguous()?.reshape((n, 1, 1, 1))?;
    Ok(Tensor::cat(&[x, &all.broadcast_as((n, 1, h, w))?.contiguous()?], 1)?)
}
