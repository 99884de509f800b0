//! Pixels to the tokens that a vision tower starts from: patches, a class token before them, learned positions.

use crate::image::Pixels;
use candle_core::Tensor;
use nn::{Error, Init, Params, Result, ops};

/// Patch projection, class token where there is one, and position table, under their published names.
#[derive(Debug, Clone)]
pub(crate) struct PatchEmbeddings {
    patch: usize,
    side: usize,
    weight: Tensor,
    bias: Option<Tensor>,
    class: Option<Tensor>,
    positions: Tensor,
}

/// What differs between towers.
pub(crate) struct PatchConfig {
    pub width: usize,
    pub channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    /// Whether the patch projection has a bias (QLIP's has, CLIP's has not).
    pub bias: bool,
    /// Whether a class token goes first (SigLIP has none).
    pub class: bool,
    pub init_std: f32,
}

impl PatchEmbeddings {
    /// Tensors below `embeddings`.
    pub fn new(p: &Params, c: &PatchConfig) -> Result<Self> {
        let (d, grid) = (c.width, c.image_size / c.patch_size);
        let inputs = c.channels * c.patch_size * c.patch_size;
        let patch = p.at("patch_embedding");
        let shape = (d, c.channels, c.patch_size, c.patch_size);
        Ok(Self {
            patch: c.patch_size,
            side: c.image_size,
            weight: patch.get(shape, "weight", Init::Normal((inputs as f32).powf(-0.5)))?,
            bias: if c.bias { Some(patch.get(d, "bias", Init::Const(0.0))?) } else { None },
            class: match c.class {
                true => Some(p.get(d, "class_embedding", Init::Normal((d as f32).powf(-0.5)))?),
                false => None,
            },
            positions: p.at("position_embedding").get(
                (grid * grid + usize::from(c.class), d),
                "weight",
                Init::Normal(c.init_std),
            )?,
        })
    }

    /// Pixels [batch, channels, side, side] to tokens [batch, 1 + patches, width], or [batch, patches, width] without a class token.
    pub fn forward(&self, pixels: &Pixels) -> Result<Tensor> {
        let (b, ch, h, w) = pixels.0.dims4()?;
        if (h, w) != (self.side, self.side) {
            return Err(Error::invalid(format!("pixels are {h}x{w}; the tower takes {0}x{0}", self.side)));
        }
        let (p, gh, gw) = (self.patch, h / self.patch, w / self.patch);
        // a convolution whose stride is its kernel is a product with flattened patches
        let patches = pixels.0.reshape((b, ch, gh, p, gw, p))?.permute((0, 2, 4, 1, 3, 5))?.contiguous()?;
        let patches = patches.reshape((b, gh * gw, ch * p * p))?;
        let x = ops::linear(&patches, &self.weight.flatten_from(1)?, self.bias.as_ref())?;
        let x = match &self.class {
            Some(class) => {
                let d = class.dim(0)?;
                Tensor::cat(&[&class.reshape((1, 1, d))?.expand((b, 1, d))?, &x], 1)?
            }
            None => x,
        };
        Ok(x.broadcast_add(&self.positions)?)
    }
}
