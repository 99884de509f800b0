//! How far painted pixels are from the picture's.

use candle_core::{D, Tensor};
use nn::Result;

/// Below this squared error of normalised pixels a picture is as good as right (about 36 dB).
const RIGHT: f64 = 1e-3;

/// Mean over pictures of ln(mean squared error + [`RIGHT`]): PSNR up to a factor (Chen et al. 2021, HINet, arXiv 2105.06086, section 3.3). In the
/// plain mean a drawing's lost corner is nothing beside a photograph's grain; here each picture counts by how much of its own error goes.
/// `difference` is [pictures, ...].
pub fn log_mse(difference: &Tensor) -> Result<Tensor> {
    let each = difference.sqr()?.flatten_from(1)?.mean(D::Minus1)?;
    Ok((each + RIGHT)?.log()?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn every_picture_counts_by_its_own_error() {
        let d = Var::new(&[[[1f64, -1.0, 0.0, 0.0]], [[0.1, 0.0, 0.0, 0.1]]], &Device::Cpu).unwrap();
        let loss = log_mse(d.as_tensor()).unwrap();
        let (a, b) = (0.5 + RIGHT, 0.005 + RIGHT);
        assert!((loss.to_scalar::<f64>().unwrap() - (a.ln() + b.ln()) / 2.0).abs() < 1e-12);
        let slope =
            loss.backward().unwrap().get(d.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        // 2 d / 4 values / 2 pictures / (error + RIGHT)
        let want = [0.25 / a, -0.25 / a, 0.0, 0.0, 0.025 / b, 0.0, 0.0, 0.025 / b];
        assert!(slope.iter().zip(want).all(|(s, w)| (s - w).abs() < 1e-12), "{slope:?}");
    }
}
