//! Codes that stay: the same bits for what looks the same (after the consistency terms of Liu et al. 2024, arXiv 2409.19283, for audio).
//!
//! A decoder does not mind which of two near codes a cell has. A model that predicts codes does: what it cannot know from the picture
//! is noise to it. Both terms are hinges: no pull on a latent that is half the way to the right corner.

use crate::bsq::{Latents, signs};
use crate::image::Pixels;
use crate::model::Qlip;
use candle_core::{D, DType, Tensor};
use nn::{Exec, Result, rng};

/// Half of the way from zero to a corner, in units of that way.
const MARGIN: f64 = 0.5;

/// A term of the loss, and the share of cells whose code is right.
pub struct Stayed {
    /// Mean over cells of the sum over bits of max(0, MARGIN - bit times wanted sign).
    pub loss: Tensor,
    /// Of 1.
    pub same: f64,
}

/// The first bits of `latents` [pictures, cells, bits] against those that the tokenizer `before` gives the same pictures.
pub fn kept(before: &Qlip, pixels: &Pixels, latents: &Tensor) -> Result<Stayed> {
    let wanted = Exec::exact(|| before.encode(pixels))?.latents.0.detach();
    let (pictures, cells, bits) = wanted.dims3()?;
    let whole = Tensor::ones((pictures, cells), DType::F32, latents.device())?;
    stayed(&latents.narrow(D::Minus1, 0, bits)?.contiguous()?, &wanted, latents.dim(D::Minus1)?, &whole)
}

/// The bits of cells that stay as they are, where a rectangle of cells is replaced by the next picture's, against `latents`, those of
/// the whole pictures. The first half of the pictures is asked: each costs the tower once more.
pub fn consistency(model: &Qlip, step: usize, pixels: &Pixels, latents: &Tensor) -> Result<Stayed> {
    let n = pixels.0.dim(0)?;
    let asked = n.div_ceil(2);
    let device = pixels.0.device();
    let next: Vec<u32> = (0..asked).map(|i| ((i + 1) % n) as u32).collect();
    let others = pixels.0.index_select(&Tensor::new(next, device)?, 0)?;
    let grid = model.grid();
    let kept: Vec<Vec<f32>> = (0..asked).map(|row| outside(step, row, grid)).collect();
    let side = pixels.0.dim(3)?;
    let seen: Vec<f32> = kept.iter().flat_map(|cells| enlarged(cells, grid, side)).collect();
    let seen = Tensor::from_vec(seen, (asked, 1, side, side), device)?.to_dtype(pixels.0.dtype())?;
    let own = pixels.0.narrow(0, 0, asked)?.broadcast_mul(&seen)?;
    let mixed = Pixels((own + others.broadcast_mul(&seen.affine(-1.0, 1.0)?)?)?);
    let Latents(found) = model.encode(&mixed)?.latents;
    let cells = Tensor::from_vec(kept.concat(), (asked, grid * grid), device)?;
    stayed(&found, &latents.narrow(0, 0, asked)?.detach(), latents.dim(D::Minus1)?, &cells)
}

/// Which cells of a grid lie outside of a rectangle of a quarter to three quarters of its side (1), row by row.
fn outside(step: usize, row: usize, grid: usize) -> Vec<f32> {
    let mut stream = rng::keyed(rng::name_key("consistency"), &[step as u64, row as u64]);
    let mut span = || {
        let long = (grid / 4 + rng::below(&mut stream, grid / 2 + 1)).max(1);
        let start = rng::below(&mut stream, grid - long.min(grid) + 1);
        start..start + long
    };
    let (rows, columns) = (span(), span());
    let inside = |cell: usize| rows.contains(&(cell / grid)) && columns.contains(&(cell % grid));
    (0..grid * grid).map(|cell| if inside(cell) { 0.0 } else { 1.0 }).collect()
}

/// The cells' values as pixels of a picture.
fn enlarged(cells: &[f32], grid: usize, side: usize) -> impl Iterator<Item = f32> {
    let at = move |y: usize, x: usize| cells[(y * grid / side) * grid + x * grid / side];
    (0..side * side).map(move |i| at(i / side, i % side))
}

/// Of `found` against the signs of `wanted`, both [pictures, cells, some bits] of `bits`, in the cells where `counted` [pictures, cells] is 1.
fn stayed(found: &Tensor, wanted: &Tensor, bits: usize, counted: &Tensor) -> Result<Stayed> {
    let signs = signs(wanted)?;
    let along = ((found * &signs)? * (bits as f64).sqrt())?;
    let lacks = along.affine(-1.0, MARGIN)?.relu()?.sum(D::Minus1)?;
    let counted = counted.to_dtype(lacks.dtype())?;
    let all = counted.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?.max(1.0);
    let same = along.min(D::Minus1)?.gt(0f64)?.to_dtype(lacks.dtype())?;
    let same = (same * &counted)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()? / all;
    Ok(Stayed { loss: ((lacks * counted)?.sum_all()? / all)?, same })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn a_bit_on_the_wrong_side_and_one_near_zero_are_pulled_and_no_other() {
        // four bits: corners at 0.5, so the margin is 0.25
        let found = Var::new(&[[[0.6f64, -0.1, 0.1, -0.6], [0.3, 0.3, 0.3, 0.3]]], &Device::Cpu).unwrap();
        let wanted = Tensor::new(&[[[1f64, 1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]]], &Device::Cpu).unwrap();
        let first = Tensor::new(&[[1f32, 0.0]], &Device::Cpu).unwrap();
        let s = stayed(&found, &wanted, 4, &first).unwrap();
        assert!((s.loss.to_scalar::<f64>().unwrap() - (0.7 + 0.3)).abs() < 1e-12);
        assert_eq!(s.same, 0.0);
        let slope = s.loss.backward().unwrap().get(found.as_tensor()).unwrap().to_vec3::<f64>().unwrap();
        assert_eq!(slope, [[[0.0, -2.0, -2.0, 0.0], [0.0; 4]]]);
        let both = stayed(&found, &found.abs().unwrap(), 4, &Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap());
        assert_eq!(both.unwrap().same, 0.5);
    }

    #[test]
    fn rectangles_leave_cells_and_take_some() {
        for grid in [1, 2, 8, 17] {
            for step in 0..50 {
                let cells = outside(step, 3, grid);
                assert_eq!(cells.len(), grid * grid);
                let taken = cells.iter().filter(|&&c| c == 0.0).count();
                assert!(taken > 0 && taken < grid * grid || grid == 1, "{grid}: {taken}");
            }
        }
        let cells = [1.0, 0.0, 0.0, 1.0];
        let pixels: Vec<f32> = enlarged(&cells, 2, 4).collect();
        assert_eq!(pixels, [1., 1., 0., 0., 1., 1., 0., 0., 0., 0., 1., 1., 0., 0., 1., 1.]);
    }
}
