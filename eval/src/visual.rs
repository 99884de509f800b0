//! A visual tokenizer by itself: reconstruction, zero-shot accuracy, what its tokens tell a linear layer, code entropy.

use crate::image::{psnr, ssim};
use crate::probe::LinearProbe;
use crate::{Error, Result};
use candle_core::Tensor;
use qlip::data::Pictures;
use qlip::{Image, Pixels};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use unified::eyes::Eyes;
use unified::photos::centre;

/// Pictures that go through the tokenizer at once.
const BATCH: usize = 50;

/// What was measured; shares are in 0..1.
#[derive(Debug, Clone, Serialize)]
pub struct VisualReport {
    /// Test pictures.
    pub photos: usize,
    /// Training pictures of the probes.
    pub probed: usize,
    /// Mean PSNR in dB.
    pub psnr: f64,
    /// Mean `ssim@gauss11`.
    pub ssim: f64,
    /// Accuracy from the class token against the class names; absent for a tokenizer without a text tower.
    pub zero_shot: Option<f64>,
    /// Accuracy of a linear layer on all quantised tokens of a picture, side by side.
    pub probe_quantized: f64,
    /// The same before quantisation.
    pub probe_latents: f64,
    /// Entropy of the codes in bits a cell: the sum over groups of bits, as if those were independent.
    pub code_entropy: f64,
    /// Bits a cell.
    pub bits: usize,
}

/// What a batch of pictures becomes.
struct Seen {
    /// Features of the class tokens [batch, width].
    pooled: Tensor,
    /// Corners [batch, cells, bits].
    corners: Tensor,
    /// Latents of a picture in a row [batch, cells * bits].
    latent_rows: Tensor,
    /// Corners, likewise.
    corner_rows: Tensor,
}

fn see(eyes: &Eyes, images: &[Image]) -> Result<Seen> {
    let pixels = eyes.preprocess.normalise(images, eyes.model.logit_scale.device())?;
    let out = eyes.model.encode(&pixels)?;
    let corners = eyes.model.bsq.quantize(&out.latents)?;
    let rows = |t: &Tensor| t.reshape((images.len(), ()));
    Ok(Seen { latent_rows: rows(&out.latents.0)?, corner_rows: rows(&corners)?, corners, pooled: out.pooled })
}

/// Pictures, cut to the tokenizer's side, `BATCH` at a time.
fn each_batch(
    photos: &Pictures,
    chosen: &[usize],
    side: usize,
    mut f: impl FnMut(&[Image]) -> Result<()>,
) -> Result<()> {
    for chunk in chosen.chunks(BATCH) {
        let images: Vec<Image> =
            chunk.par_iter().map(|&i| Ok(centre(&photos.image(i)?, side))).collect::<Result<_>>()?;
        f(&images)?;
    }
    Ok(())
}

/// `n` pictures at equal distances: the first ones of a folder may all be of one class.
fn evenly(photos: &Pictures, n: usize) -> Vec<usize> {
    let n = n.min(photos.len());
    (0..n).map(|i| i * photos.len() / n).collect()
}

/// Measures a tokenizer on `n` pictures of `test`, with probes from `probed` of `train`; a class in words is its caption.
pub fn measure(eyes: &Eyes, train: &Pictures, test: &Pictures, n: usize, probed: usize) -> Result<VisualReport> {
    let (tested, learned, side) = (evenly(test, n), evenly(train, probed), eyes.side());
    let (n, probed) = (tested.len(), learned.len());
    if n == 0 || probed == 0 {
        return Err(Error::invalid("no pictures to measure on: --limit and --probe must be 1 or more"));
    }
    if train.classes != test.classes {
        return Err(Error::invalid("the training and test pictures have other classes: give both splits of one set"));
    }
    let labels_of = |photos: &Pictures, chosen: &[usize]| -> Result<Vec<usize>> {
        let all = photos.labels()?;
        Ok(chosen.iter().map(|&i| all[i]).collect())
    };
    let (taught, labels) = (labels_of(train, &learned)?, labels_of(test, &tested)?);
    let (mut latents, mut corners) = (Vec::new(), Vec::new());
    each_batch(train, &learned, side, |images| {
        let seen = see(eyes, images)?;
        latents.push(seen.latent_rows);
        corners.push(seen.corner_rows);
        Ok(())
    })?;
    let fit = |rows: &[Tensor]| LinearProbe::fit(&Tensor::cat(rows, 0)?, &taught, train.classes.len());
    let (of_latents, of_corners) = (fit(&latents)?, fit(&corners)?);

    let texts = if eyes.has_text() { Some(eyes.class_vectors(&test.classes)?) } else { None };
    let (mut db, mut similar, mut right) = (0.0, 0.0, 0usize);
    let (mut found_latents, mut found_corners) = (0.0, 0.0);
    let (bits, group) = (eyes.model.bsq.bits, eyes.model.bsq.group);
    let mut codes: Vec<HashMap<u32, usize>> = vec![HashMap::new(); bits / group];
    let mut at = 0;
    each_batch(test, &tested, side, |images| {
        let wanted = &labels[at..at + images.len()];
        let seen = see(eyes, images)?;
        let zhat = eyes.model.expand(&seen.corners)?;
        let back = eyes.preprocess.images(&Pixels(eyes.model.paint(&zhat)?.0.0))?;
        let scores: Vec<(f64, f64)> =
            images.par_iter().zip(&back).map(|(a, b)| (psnr(a, b), ssim(a, b).unwrap_or(f64::NAN))).collect();
        db += scores.iter().map(|s| s.0).sum::<f64>();
        similar += scores.iter().map(|s| s.1).sum::<f64>();
        found_latents += of_latents.accuracy(&seen.latent_rows, wanted)? * images.len() as f64;
        found_corners += of_corners.accuracy(&seen.corner_rows, wanted)? * images.len() as f64;
        if let Some(texts) = &texts {
            let rows = eyes.rank(&seen.pooled, texts)?;
            right += rows.iter().zip(wanted).filter(|(row, l)| lm::sample::argmax(row) == **l).count();
        }
        let signs = seen.corners.flatten_all()?.to_vec1::<f32>()?;
        for cell in signs.chunks_exact(bits) {
            for (g, part) in cell.chunks_exact(group).enumerate() {
                let code = part.iter().fold(0, |c, &v| c << 1 | u32::from(v > 0.0));
                *codes[g].entry(code).or_default() += 1;
            }
        }
        at += images.len();
        Ok(())
    })?;
    let share = |x: f64| x / n as f64;
    Ok(VisualReport {
        photos: n,
        probed,
        psnr: share(db),
        ssim: share(similar),
        zero_shot: texts.is_some().then(|| share(right as f64)),
        probe_quantized: share(found_corners),
        probe_latents: share(found_latents),
        code_entropy: codes.iter().map(entropy).sum(),
        bits,
    })
}

/// Of counts, in bits.
fn entropy(counts: &HashMap<u32, usize>) -> f64 {
    let n: usize = counts.values().sum();
    // sorted, so that the sum is the same every time
    let mut all: Vec<usize> = counts.values().copied().collect();
    all.sort_unstable();
    all.iter().map(|&c| c as f64 / n as f64).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_of_even_and_lopsided_codes() {
        let even: HashMap<u32, usize> = (0..8).map(|c| (c, 5)).collect();
        assert!((entropy(&even) - 3.0).abs() < 1e-12);
        let lopsided = HashMap::from([(0, 3), (9, 1)]);
        assert!((entropy(&lopsided) - 0.811_278_124_459_132_9).abs() < 1e-12);
    }
}
