//! Texture without a discriminator: Gram matrices of a trained network's features (Gatys et al. 2016; AToken).

use candle_core::Tensor;
use nn::ops::add_term;
use nn::{Error, Result};

/// Mean squared difference of the features' Gram matrices [pictures, channels, channels], averaged over the taps; features
/// [pictures, channels, rows, columns], their products divided by the number of places.
pub fn gram(got: &[Tensor], want: &[Tensor]) -> Result<Tensor> {
    let matrix = |f: &Tensor| -> Result<Tensor> {
        let (n, c, h, w) = f.dims4()?;
        let f = f.reshape((n, c, h * w))?;
        Ok((f.matmul(&f.transpose(1, 2)?.contiguous()?)? / (h * w) as f64)?)
    };
    let mut sum: Option<Tensor> = None;
    for (a, b) in got.iter().zip(want) {
        add_term(&mut sum, (matrix(a)? - matrix(b)?)?.sqr()?.mean_all()?)?;
    }
    let sum = sum.ok_or_else(|| Error::invalid("Gram matrices of no features"))?;
    Ok((sum / got.len() as f64)?)
}
