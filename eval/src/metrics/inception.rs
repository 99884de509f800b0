//! The Inception network of the Frechet distance (Szegedy et al. 2016; Heusel et al. 2017), as pytorch-fid ported it from TensorFlow's graph of 2015-12-05:
//! averages leave padding out, the last block takes a maximum, 1008 logits. The weights are the user's file (pt_inception-2015-12-05-6726825d.pth).

use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use nn::{Init, Params};
use qlip::Image;
use rayon::prelude::*;
use std::path::Path;

/// What batch normalisation adds to a variance.
const EPSILON: f64 = 1e-3;
/// Pixels along the side that the network was trained at.
const SIDE: usize = 299;

/// A convolution, batch normalisation, and what is below zero cut.
struct Conv {
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    stride: usize,
    /// Rows and columns.
    padding: (usize, usize),
}

impl Conv {
    fn new(
        p: &Params,
        name: &str,
        [i, o, rows, columns]: [usize; 4],
        stride: usize,
        padding: (usize, usize),
    ) -> Result<Self> {
        let p = p.at(name);
        let bn = |part: &str| p.at("bn").get(o, part, Init::Const(0.0));
        let (gamma, beta, mean, variance) = (bn("weight")?, bn("bias")?, bn("running_mean")?, bn("running_var")?);
        let scale = gamma.div(&(variance + EPSILON)?.sqrt()?)?;
        let shift = (beta - mean.mul(&scale)?)?;
        Ok(Self {
            weight: p.at("conv").get((o, i, rows, columns), "weight", Init::Const(0.0))?,
            scale: scale.reshape((1, o, 1, 1))?,
            shift: shift.reshape((1, o, 1, 1))?,
            stride,
            padding,
        })
    }

    /// The convolution alone.
    fn raw(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, columns) = self.padding;
        let x = x.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
        Ok(x.contiguous()?.conv2d(&self.weight, 0, self.stride, 1, 1)?)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.raw(x)?.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?.relu()?)
    }
}

/// What stands before a block's last branch.
#[derive(Clone, Copy)]
enum Pool {
    /// Mean of three by three, padding left out.
    Mean,
    /// Maximum of three by three.
    Most,
    /// Maximum at every second place.
    Half,
}

impl Pool {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Half => Ok(x.max_pool2d_with_stride(3, 2)?),
            // padding is never the maximum: what is below zero was cut
            Self::Most => Ok(x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?.max_pool2d_with_stride(3, 1)?),
            Self::Mean => {
                let mean =
                    |t: &Tensor| t.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?.avg_pool2d_with_stride(3, 1);
                let (_, _, h, w) = x.dims4()?;
                let there = mean(&Tensor::ones((1, 1, h, w), x.dtype(), x.device())?)?;
                Ok(mean(x)?.broadcast_div(&there)?)
            }
        }
    }
}

/// A branch: convolutions one after the other; the last two side by side where `forked`.
struct Branch {
    convs: Vec<Conv>,
    forked: bool,
}

impl Branch {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let plain = self.convs.len() - if self.forked { 2 } else { 0 };
        let mut x = x.clone();
        for c in &self.convs[..plain] {
            x = c.forward(&x)?;
        }
        match self.convs.get(plain..) {
            Some([a, b]) if self.forked => Ok(Tensor::cat(&[a.forward(&x)?, b.forward(&x)?], 1)?),
            _ => Ok(x),
        }
    }
}

/// Branches side by side; the last one after the pool, and the pool itself where it has none.
struct Block {
    branches: Vec<Branch>,
    pool: Pool,
}

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pooled = self.pool.forward(x)?;
        let last = self.branches.len() - 1;
        let mut out = Vec::with_capacity(self.branches.len());
        for (n, b) in self.branches.iter().enumerate() {
            out.push(b.forward(if n == last { &pooled } else { x })?);
        }
        Ok(Tensor::cat(&out, 1)?)
    }
}

/// A convolution of a branch: its name, channels out, rows and columns, stride, padding.
type Step<'a> = (&'a str, usize, [usize; 2], usize, (usize, usize));

const ONE: [usize; 2] = [1, 1];
const NONE: (usize, usize) = (0, 0);

fn branch(p: &Params, input: usize, steps: &[Step], forked: bool) -> Result<Branch> {
    let mut convs = Vec::new();
    let mut width = input;
    for (n, (name, out, [rows, columns], stride, padding)) in steps.iter().enumerate() {
        convs.push(Conv::new(p, name, [width, *out, *rows, *columns], *stride, *padding)?);
        // the second of a fork reads what the first one read
        if !(forked && n + 2 == steps.len()) {
            width = *out;
        }
    }
    Ok(Branch { convs, forked })
}

fn a(p: &Params, input: usize, pooled: usize) -> Result<Block> {
    let five: [Step; 2] = [("branch5x5_1", 48, ONE, 1, NONE), ("branch5x5_2", 64, [5, 5], 1, (2, 2))];
    let three: [Step; 3] = [
        ("branch3x3dbl_1", 64, ONE, 1, NONE),
        ("branch3x3dbl_2", 96, [3, 3], 1, (1, 1)),
        ("branch3x3dbl_3", 96, [3, 3], 1, (1, 1)),
    ];
    let branches = vec![
        branch(p, input, &[("branch1x1", 64, ONE, 1, NONE)], false)?,
        branch(p, input, &five, false)?,
        branch(p, input, &three, false)?,
        branch(p, input, &[("branch_pool", pooled, ONE, 1, NONE)], false)?,
    ];
    Ok(Block { branches, pool: Pool::Mean })
}

fn b(p: &Params, input: usize) -> Result<Block> {
    let three: [Step; 3] = [
        ("branch3x3dbl_1", 64, ONE, 1, NONE),
        ("branch3x3dbl_2", 96, [3, 3], 1, (1, 1)),
        ("branch3x3dbl_3", 96, [3, 3], 2, NONE),
    ];
    let branches = vec![
        branch(p, input, &[("branch3x3", 384, [3, 3], 2, NONE)], false)?,
        branch(p, input, &three, false)?,
        branch(p, input, &[], false)?,
    ];
    Ok(Block { branches, pool: Pool::Half })
}

fn c(p: &Params, input: usize, width: usize) -> Result<Block> {
    let (row, column) = (([1, 7], (0, 3)), ([7, 1], (3, 0)));
    let seven: [Step; 3] = [
        ("branch7x7_1", width, ONE, 1, NONE),
        ("branch7x7_2", width, row.0, 1, row.1),
        ("branch7x7_3", 192, column.0, 1, column.1),
    ];
    let twice: [Step; 5] = [
        ("branch7x7dbl_1", width, ONE, 1, NONE),
        ("branch7x7dbl_2", width, column.0, 1, column.1),
        ("branch7x7dbl_3", width, row.0, 1, row.1),
        ("branch7x7dbl_4", width, column.0, 1, column.1),
        ("branch7x7dbl_5", 192, row.0, 1, row.1),
    ];
    let branches = vec![
        branch(p, input, &[("branch1x1", 192, ONE, 1, NONE)], false)?,
        branch(p, input, &seven, false)?,
        branch(p, input, &twice, false)?,
        branch(p, input, &[("branch_pool", 192, ONE, 1, NONE)], false)?,
    ];
    Ok(Block { branches, pool: Pool::Mean })
}

fn d(p: &Params, input: usize) -> Result<Block> {
    let three: [Step; 2] = [("branch3x3_1", 192, ONE, 1, NONE), ("branch3x3_2", 320, [3, 3], 2, NONE)];
    let seven: [Step; 4] = [
        ("branch7x7x3_1", 192, ONE, 1, NONE),
        ("branch7x7x3_2", 192, [1, 7], 1, (0, 3)),
        ("branch7x7x3_3", 192, [7, 1], 1, (3, 0)),
        ("branch7x7x3_4", 192, [3, 3], 2, NONE),
    ];
    let branches =
        vec![branch(p, input, &three, false)?, branch(p, input, &seven, false)?, branch(p, input, &[], false)?];
    Ok(Block { branches, pool: Pool::Half })
}

fn e(p: &Params, input: usize, pool: Pool) -> Result<Block> {
    let three: [Step; 3] = [
        ("branch3x3_1", 384, ONE, 1, NONE),
        ("branch3x3_2a", 384, [1, 3], 1, (0, 1)),
        ("branch3x3_2b", 384, [3, 1], 1, (1, 0)),
    ];
    let twice: [Step; 4] = [
        ("branch3x3dbl_1", 448, ONE, 1, NONE),
        ("branch3x3dbl_2", 384, [3, 3], 1, (1, 1)),
        ("branch3x3dbl_3a", 384, [1, 3], 1, (0, 1)),
        ("branch3x3dbl_3b", 384, [3, 1], 1, (1, 0)),
    ];
    let branches = vec![
        branch(p, input, &[("branch1x1", 320, ONE, 1, NONE)], false)?,
        branch(p, input, &three, true)?,
        branch(p, input, &twice, true)?,
        branch(p, input, &[("branch_pool", 192, ONE, 1, NONE)], false)?,
    ];
    Ok(Block { branches, pool })
}

/// The network.
pub struct Inception {
    stem: Vec<Conv>,
    blocks: Vec<Block>,
    /// [1008, 2048] and [1008].
    head: (Tensor, Tensor),
}

/// What pictures become, a row each.
#[derive(Debug, Default)]
pub struct Features {
    /// Of the last block, 2048 wide: for FID, KID, precision and recall.
    pub pooled: Vec<Vec<f32>>,
    /// Seven channels of Mixed_6d's first convolution, before normalisation, 2023 wide at 299 pixels: for sFID (Nash et al. 2021).
    pub spatial: Vec<Vec<f32>>,
    /// 1008 wide, for the Inception score.
    pub logits: Vec<Vec<f32>>,
}

/// The block whose first convolution is sFID's: Mixed_6d.
const SPATIAL: usize = 6;
/// Its channels that count.
const CHANNELS: usize = 7;
/// Pictures that go through at once.
const BATCH: usize = 16;

impl Inception {
    /// Of pytorch-fid's weights, a .pth or safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let stored = nn::stored::Stored::map_files(vec![path.to_path_buf()])?;
        Self::new(&Params::from_tensors(path.display().to_string(), stored, DType::F32, &Device::Cpu))
    }

    /// Of tensors under torchvision's names.
    pub fn new(p: &Params) -> Result<Self> {
        let stem = [
            ("Conv2d_1a_3x3", [3, 32, 3, 3], 2, NONE),
            ("Conv2d_2a_3x3", [32, 32, 3, 3], 1, NONE),
            ("Conv2d_2b_3x3", [32, 64, 3, 3], 1, (1, 1)),
            ("Conv2d_3b_1x1", [64, 80, 1, 1], 1, NONE),
            ("Conv2d_4a_3x3", [80, 192, 3, 3], 1, NONE),
        ];
        let stem = stem.into_iter().map(|(name, shape, stride, padding)| Conv::new(p, name, shape, stride, padding));
        let blocks = vec![
            a(&p.at("Mixed_5b"), 192, 32)?,
            a(&p.at("Mixed_5c"), 256, 64)?,
            a(&p.at("Mixed_5d"), 288, 64)?,
            b(&p.at("Mixed_6a"), 288)?,
            c(&p.at("Mixed_6b"), 768, 128)?,
            c(&p.at("Mixed_6c"), 768, 160)?,
            c(&p.at("Mixed_6d"), 768, 160)?,
            c(&p.at("Mixed_6e"), 768, 192)?,
            d(&p.at("Mixed_7a"), 768)?,
            e(&p.at("Mixed_7b"), 1280, Pool::Mean)?,
            e(&p.at("Mixed_7c"), 2048, Pool::Most)?,
        ];
        let fc = p.at("fc");
        let head = (fc.get((1008, 2048), "weight", Init::Const(0.0))?, fc.get(1008, "bias", Init::Const(0.0))?);
        Ok(Self { stem: stem.collect::<Result<_>>()?, blocks, head })
    }

    /// Features of pixels [pictures, 3, rows, columns] in -1..1, at whatever size they have.
    pub fn look(&self, pixels: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let mut x = pixels.clone();
        for (n, conv) in self.stem.iter().enumerate() {
            x = conv.forward(&x)?;
            if n == 2 || n == 4 {
                x = Pool::Half.forward(&x)?;
            }
        }
        let mut spatial = x.clone();
        for (n, block) in self.blocks.iter().enumerate() {
            if n == SPATIAL {
                spatial = block.branches[0].convs[0].raw(&x)?.narrow(1, 0, CHANNELS)?;
            }
            x = block.forward(&x)?;
        }
        let pooled = x.mean((D::Minus2, D::Minus1))?;
        let logits = pooled.matmul(&self.head.0.t()?)?.broadcast_add(&self.head.1)?;
        Ok((pooled, spatial, logits))
    }

    /// Features of pictures of any size, resized as pytorch-fid does: bilinear without smoothing.
    pub fn features(&self, pictures: impl Iterator<Item = Result<Image>>) -> Result<Features> {
        let mut out = Features::default();
        let mut pictures = pictures.peekable();
        while pictures.peek().is_some() {
            let images = pictures.by_ref().take(BATCH).collect::<Result<Vec<_>>>()?;
            let rows: Vec<Vec<f32>> = images.par_iter().map(|i| bilinear(i, SIDE)).collect();
            let pixels = Tensor::from_vec(rows.concat(), (images.len(), 3, SIDE, SIDE), &Device::Cpu)?;
            let (pooled, spatial, logits) = self.look(&pixels)?;
            out.pooled.extend(pooled.to_vec2::<f32>()?);
            // as TensorFlow lays them out: channels last
            out.spatial.extend(spatial.permute((0, 2, 3, 1))?.flatten_from(1)?.to_vec2::<f32>()?);
            out.logits.extend(logits.to_vec2::<f32>()?);
        }
        if out.pooled.len() < 2 {
            return Err(Error::invalid(format!("{} pictures; statistics need two or more", out.pooled.len())));
        }
        Ok(out)
    }
}

/// A picture [3, side, side] in -1..1: torch's bilinear interpolation with align_corners = False and no smoothing, of values in 0..1.
fn bilinear(image: &Image, side: usize) -> Vec<f32> {
    let (w, h) = (image.width(), image.height());
    let places = |n: usize| -> Vec<(usize, usize, f32)> {
        let place = |i: usize| {
            let at = ((i as f32 + 0.5) * (n as f32 / side as f32) - 0.5).max(0.0);
            let low = (at as usize).min(n - 1);
            (low, (low + 1).min(n - 1), at - low as f32)
        };
        (0..side).map(place).collect()
    };
    let (rows, columns) = (places(h), places(w));
    let mut out = Vec::with_capacity(3 * side * side);
    for channel in 0..3 {
        let value = |x: usize, y: usize| f32::from(image.rgb()[3 * (y * w + x) + channel]) / 255.0;
        for &(top, below, fy) in &rows {
            for &(left, right, fx) in &columns {
                let upper = value(left, top) * (1.0 - fx) + value(right, top) * fx;
                let lower = value(left, below) * (1.0 - fx) + value(right, below) * fx;
                out.push(2.0 * (upper * (1.0 - fy) + lower * fy) - 1.0);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resizing_is_torchs() {
        // by hand after torch's definition: [[0, 1], [0.2, 0.4]] at 4 x 4, a quarter and three quarters of the way
        let grey = |v: u8| [v, v, v];
        let image = Image::from_rgb(2, 2, [grey(0), grey(255), grey(51), grey(102)].concat());
        let want = [[0.0, 0.25, 0.75, 1.0], [0.05, 0.25, 0.65, 0.85], [0.15, 0.25, 0.45, 0.55], [0.2, 0.25, 0.35, 0.4]];
        let got = bilinear(&image, 4);
        for (g, w) in got[..16].iter().zip(want.iter().flatten()) {
            assert!((g - (2.0 * w - 1.0)).abs() < 1e-6, "{g} {w}");
        }
        let whole = bilinear(&image, 2);
        assert!(whole.iter().zip([-1.0, 1.0, -0.6, -0.2].repeat(3)).all(|(g, w)| (g - w).abs() < 1e-6), "{whole:?}");
    }
}
