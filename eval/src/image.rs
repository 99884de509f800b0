//! How alike two pictures are. Every function says which variant of its metric it is.

use qlip::Image;

/// Mean squared difference of 8-bit levels over all pixels and channels; the pictures have the same size.
pub fn mse(a: &Image, b: &Image) -> f64 {
    let sum: f64 = a.rgb().iter().zip(b.rgb()).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
    sum / a.rgb().len() as f64
}

/// Peak signal-to-noise ratio in dB, range 255; infinite for equal pictures.
pub fn psnr(a: &Image, b: &Image) -> f64 {
    10.0 * (255.0 * 255.0 / mse(a, b)).log10()
}

/// `ssim@gauss11`: 11 taps of deviation 1.5, population variance, windows inside the picture only, range 255, mean over
/// channels (pytorch-msssim's). `None` for a picture with a side below 11.
pub fn ssim(a: &Image, b: &Image) -> Option<f64> {
    let (w, h) = (a.width(), a.height());
    if w < 11 || h < 11 || (w, h) != (b.width(), b.height()) {
        return None;
    }
    let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
    let raw: Vec<f64> = (-5..=5).map(|i| (-f64::from(i * i) / (2.0 * 1.5 * 1.5)).exp()).collect();
    let total: f64 = raw.iter().sum();
    let taps: Vec<f64> = raw.iter().map(|t| t / total).collect();
    let mut sum = 0.0;
    for c in 0..3 {
        let plane = |img: &Image| -> Vec<f64> { img.rgb().iter().skip(c).step_by(3).map(|&v| f64::from(v)).collect() };
        let (x, y) = (plane(a), plane(b));
        let times = |p: &[f64], q: &[f64]| -> Vec<f64> { p.iter().zip(q).map(|(p, q)| p * q).collect() };
        let blur = |p: &[f64]| filter(p, w, h, &taps);
        let (mx, my) = (blur(&x), blur(&y));
        let (xx, yy, xy) = (blur(&times(&x, &x)), blur(&times(&y, &y)), blur(&times(&x, &y)));
        let windows = mx.len();
        let mean: f64 = (0..windows)
            .map(|i| {
                let (vx, vy, cov) = (xx[i] - mx[i] * mx[i], yy[i] - my[i] * my[i], xy[i] - mx[i] * my[i]);
                let contrast = (2.0 * cov + c2) / (vx + vy + c2);
                (2.0 * mx[i] * my[i] + c1) / (mx[i] * mx[i] + my[i] * my[i] + c1) * contrast
            })
            .sum::<f64>()
            / windows as f64;
        sum += mean;
    }
    Some(sum / 3.0)
}

/// Separable filter, windows inside the picture only.
fn filter(p: &[f64], w: usize, h: usize, taps: &[f64]) -> Vec<f64> {
    let n = taps.len();
    let (ow, oh) = (w - n + 1, h - n + 1);
    let mut rows = vec![0f64; ow * h];
    for y in 0..h {
        for x in 0..ow {
            rows[y * ow + x] = taps.iter().enumerate().map(|(i, t)| t * p[y * w + x + i]).sum();
        }
    }
    let mut out = vec![0f64; ow * oh];
    for y in 0..oh {
        for x in 0..ow {
            out[y * ow + x] = taps.iter().enumerate().map(|(i, t)| t * rows[(y + i) * ow + x]).sum();
        }
    }
    out
}
