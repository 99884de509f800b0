//! LPIPS (Zhang et al. 2018): distance of two pictures in the features of a trained network, layer by layer weighted.
//!
//! The trunk (VGG16 or AlexNet, torchvision's names) and the heads (`lin0.model.1.weight`, ...) come from files of the
//! user. Both are held; the gradient goes to the pictures alone.

use super::relu;
use candle_core::{DType, Tensor};
use nn::ops::{add_term, conv2d, max_pool2d};
use nn::{Error, Init, Params, Result, checkpoint};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which trunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Trunk {
    /// VGG16: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
    Vgg,
    /// AlexNet: its five activations.
    Alex,
}

/// Where the weights are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LpipsConfig {
    /// Which trunk.
    pub net: Trunk,
    /// Safetensors file of the trunk (torchvision's names: `features.0.weight`, ...).
    pub trunk: PathBuf,
    /// Safetensors file of the heads (`lin0.model.1.weight`, ...); the trunk's file if absent.
    #[serde(default)]
    pub heads: Option<PathBuf>,
}

/// Input scaling of the published network, for pixels in -1..1.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// A step of a trunk.
enum Layer {
    /// Kernels, bias, padding, stride; then ReLU.
    Conv { weight: Tensor, bias: Tensor, padding: usize, stride: usize },
    /// Window and stride.
    Pool(usize, usize),
    /// The features are compared here.
    Tap,
}

/// The distance.
pub struct Lpips {
    layers: Vec<Layer>,
    /// Weights of the channels [channels], a tap each.
    heads: Vec<Tensor>,
    shift: Tensor,
    scale: Tensor,
}

impl Trunk {
    /// Convolutions (index in torchvision's `features`, channels in and out, kernel, padding, stride), pools and taps.
    fn layers(self, p: &Params) -> Result<(Vec<Layer>, Vec<usize>)> {
        let mut layers = Vec::new();
        let mut widths = Vec::new();
        let conv = |layers: &mut Vec<Layer>, at: usize, [i, o, k, padding, stride]: [usize; 5]| -> Result<()> {
            let p = p.at("features").at(at);
            let weight = p.get((o, i, k, k), "weight", Init::Const(0.0))?;
            let bias = p.get(o, "bias", Init::Const(0.0))?.reshape((1, o, 1, 1))?;
            layers.push(Layer::Conv { weight, bias, padding, stride });
            Ok(())
        };
        match self {
            Self::Vgg => {
                let mut width = 3;
                let mut at = 0;
                for (block, (convs, out)) in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)].into_iter().enumerate() {
                    if block > 0 {
                        layers.push(Layer::Pool(2, 2));
                        at += 1;
                    }
                    for _ in 0..convs {
                        conv(&mut layers, at, [width, out, 3, 1, 1])?;
                        (width, at) = (out, at + 2);
                    }
                    layers.push(Layer::Tap);
                    widths.push(out);
                }
            }
            Self::Alex => {
                let sizes = [
                    (0, [3, 64, 11, 2, 4]),
                    (3, [64, 192, 5, 2, 1]),
                    (6, [192, 384, 3, 1, 1]),
                    (8, [384, 256, 3, 1, 1]),
                ];
                for (i, (at, size)) in sizes.into_iter().chain([(10, [256, 256, 3, 1, 1])]).enumerate() {
                    if i == 1 || i == 2 {
                        layers.push(Layer::Pool(3, 2));
                    }
                    conv(&mut layers, at, size)?;
                    layers.push(Layer::Tap);
                    widths.push(size[1]);
                }
            }
        }
        Ok((layers, widths))
    }
}

impl Lpips {
    /// Reads trunk and heads.
    pub fn load(c: &LpipsConfig, device: &candle_core::Device) -> Result<Self> {
        let read = |path: &PathBuf| -> Result<Params> {
            Ok(Params::from_tensors(path.display().to_string(), checkpoint::load(path)?, DType::F32, device))
        };
        let trunk = read(&c.trunk)?;
        let heads = c.heads.as_ref().map(read).transpose()?.unwrap_or_else(|| trunk.clone());
        Self::new(c.net, &trunk, &heads)
    }

    /// Takes the tensors.
    pub fn new(net: Trunk, trunk: &Params, heads: &Params) -> Result<Self> {
        let (layers, widths) = net.layers(trunk)?;
        let head = |(i, &width): (usize, &usize)| -> Result<Tensor> {
            let p = heads.at(format!("lin{i}")).at("model").at(1);
            Ok(p.get((1, width, 1, 1), "weight", Init::Const(0.0))?.flatten_all()?)
        };
        let row = |v: [f32; 3]| Tensor::new(&v, trunk.device())?.reshape((1, 3, 1, 1));
        Ok(Self {
            layers,
            heads: widths.iter().enumerate().map(head).collect::<Result<_>>()?,
            shift: row(SHIFT)?,
            scale: row(SCALE)?,
        })
    }

    /// Features [pictures, channels, rows, columns] at each tap of pixels [pictures, 3, height, width] in -1..1.
    pub fn features(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let mut x = pixels.broadcast_sub(&self.shift)?.broadcast_div(&self.scale)?;
        let mut taps = Vec::with_capacity(self.heads.len());
        for layer in &self.layers {
            match layer {
                Layer::Conv { weight, bias, padding, stride } => {
                    x = relu(&conv2d(&x, weight, *padding, *stride)?.broadcast_add(bias)?)?;
                }
                Layer::Pool(kernel, stride) => x = max_pool2d(&x, *kernel, *stride)?,
                Layer::Tap => taps.push(x.clone()),
            }
        }
        Ok(taps)
    }

    /// Distance of each pair [pictures], and its part at each tap.
    pub fn distance(&self, a: &[Tensor], b: &[Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
        let mut layers = Vec::with_capacity(self.heads.len());
        for ((a, b), head) in a.iter().zip(b).zip(&self.heads) {
            layers.push(layer_distance(a, b, head)?);
        }
        let mut sum = None;
        for l in &layers {
            add_term(&mut sum, l.clone())?;
        }
        let sum = sum.ok_or_else(|| Error::invalid("LPIPS of no layers"))?;
        Ok((sum, layers))
    }
}

/// Weighted squared difference of the channels' unit vectors, averaged over places: [pictures].
pub fn layer_distance(a: &Tensor, b: &Tensor, head: &Tensor) -> Result<Tensor> {
    // a zero vector has no direction: its root gets a floor, or the gradient would be infinite
    let unit = |f: &Tensor| -> Result<Tensor> {
        let length = f.sqr()?.sum_keepdim(1)?.maximum(1e-24)?.sqrt()?;
        Ok(f.broadcast_div(&(length + 1e-10)?)?)
    };
    let d = (unit(a)? - unit(b)?)?.sqr()?;
    let weighted = d.broadcast_mul(&head.reshape((1, (), 1, 1))?)?.sum(1)?;
    Ok(weighted.flatten_from(1)?.mean(1)?)
}
