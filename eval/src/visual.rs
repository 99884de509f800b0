//! What an image tokenizer's tokens tell a linear layer, and the entropy of codes.

use crate::probe::LinearProbe;
use crate::{Error, Result};
use candle_core::Tensor;
use qlip::Image;
use qlip::data::Pictures;
use rayon::prelude::*;
use std::collections::HashMap;
use unified::eyes::Eyes;
use unified::photos::centre;

/// Pictures that go through the tokenizer at once.
const BATCH: usize = 50;

/// Accuracies in 0..1.
#[derive(Debug, Clone, Copy)]
pub struct Probes {
    /// Of a linear layer on all quantised tokens of a picture, side by side.
    pub quantised: f64,
    /// The same before quantisation.
    pub latents: f64,
}

/// What a batch of pictures becomes, a picture in a row: [batch, cells * bits].
struct Seen {
    latents: Tensor,
    corners: Tensor,
}

fn see(eyes: &Eyes, images: &[Image]) -> Result<Seen> {
    let pixels = eyes.preprocess.normalise(images, eyes.model.logit_scale.device())?;
    let out = eyes.model.encode(&pixels)?;
    let corners = eyes.model.bsq.quantize(&out.latents)?;
    let rows = |t: &Tensor| t.reshape((images.len(), ()));
    Ok(Seen { latents: rows(&out.latents.0)?, corners: rows(&corners)? })
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

/// Fits probes on `probed` pictures of `train` and tries them on `n` of `test`.
pub fn probes(eyes: &Eyes, train: &Pictures, test: &Pictures, n: usize, probed: usize) -> Result<Probes> {
    let (tested, learned, side) = (evenly(test, n), evenly(train, probed), eyes.side());
    if tested.is_empty() || learned.is_empty() {
        return Err(Error::invalid("no pictures to probe: --limit must be 1 or more"));
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
        latents.push(seen.latents);
        corners.push(seen.corners);
        Ok(())
    })?;
    let fit = |rows: &[Tensor]| LinearProbe::fit(&Tensor::cat(rows, 0)?, &taught, train.classes.len());
    let (of_latents, of_corners) = (fit(&latents)?, fit(&corners)?);
    let (mut found_latents, mut found_corners) = (0.0, 0.0);
    let mut at = 0;
    each_batch(test, &tested, side, |images| {
        let wanted = &labels[at..at + images.len()];
        let seen = see(eyes, images)?;
        found_latents += of_latents.accuracy(&seen.latents, wanted)? * images.len() as f64;
        found_corners += of_corners.accuracy(&seen.corners, wanted)? * images.len() as f64;
        at += images.len();
        Ok(())
    })?;
    let share = |x: f64| x / tested.len() as f64;
    Ok(Probes { quantised: share(found_corners), latents: share(found_latents) })
}

/// Of counts, in bits.
pub fn entropy<K>(counts: &HashMap<K, usize>) -> f64 {
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
