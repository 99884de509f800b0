//! How near pictures are to their captions, as three programs say it. Which towers the vectors come from is part of the number.

/// The three of unit-free vectors, a picture and its caption a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipScores {
    /// Mean of 2.5 max(cos, 0) (Hessel et al. 2021, equation 1).
    pub hessel: f64,
    /// torchmetrics: the mean of 100 cos, not below 0.
    pub torchmetrics: f64,
    /// GigaGAN's and LlamaGen's evaluation: the mean of cos.
    pub gigagan: f64,
}

/// Of pictures' and captions' vectors.
pub fn clip_scores(images: &[Vec<f64>], texts: &[Vec<f64>]) -> ClipScores {
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    let near =
        |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>() / (length(a) * length(b));
    let all: Vec<f64> = images.iter().zip(texts).map(near).collect();
    let mean = |f: fn(f64) -> f64| all.iter().map(|v| f(*v)).sum::<f64>() / all.len().max(1) as f64;
    ClipScores { hessel: mean(|c| 2.5 * c.max(0.0)), torchmetrics: mean(|c| 100.0 * c).max(0.0), gigagan: mean(|c| c) }
}
