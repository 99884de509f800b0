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

/// Which structural similarity (Wang et al. 2004). All have K1 = 0.01, K2 = 0.03 and are means over channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ssim {
    /// 11 taps of deviation 1.5, population variance, windows inside the picture, range 255 (pytorch-msssim, BSQ).
    Gauss11,
    /// A box of 7, sample variance, windows inside (scikit-image's default).
    Uni7,
    /// The same on values in 0..1 with a range of 2, as LlamaGen measures: higher than the others.
    LlamaGen,
    /// Gauss11 on luma alone.
    Luma,
    /// Gauss11 at every pixel of the reflected picture (torchmetrics).
    TorchMetrics,
}

/// Means of the similarity, and of its contrast term, of one channel.
fn plane_ssim(x: &[f64], y: &[f64], (w, h): (usize, usize), kind: Ssim) -> Option<(f64, f64)> {
    let taps: Vec<f64> = match kind {
        Ssim::Uni7 | Ssim::LlamaGen => vec![1.0 / 7.0; 7],
        _ => {
            let raw: Vec<f64> = (-5..=5).map(|i| (-f64::from(i * i) / (2.0 * 1.5 * 1.5)).exp()).collect();
            let total: f64 = raw.iter().sum();
            raw.iter().map(|t| t / total).collect()
        }
    };
    let reach = taps.len() / 2;
    let (x, y, w, h) = match kind {
        Ssim::TorchMetrics if w > reach && h > reach => {
            (reflected(x, w, h, reach), reflected(y, w, h, reach), w + 2 * reach, h + 2 * reach)
        }
        _ => (x.to_vec(), y.to_vec(), w, h),
    };
    if w < taps.len() || h < taps.len() {
        return None;
    }
    let range = if kind == Ssim::LlamaGen { 510.0 } else { 255.0 };
    let (c1, c2) = ((0.01f64 * range).powi(2), (0.03f64 * range).powi(2));
    let sample = if matches!(kind, Ssim::Uni7 | Ssim::LlamaGen) { 49.0 / 48.0 } else { 1.0 };
    let times = |p: &[f64], q: &[f64]| -> Vec<f64> { p.iter().zip(q).map(|(p, q)| p * q).collect() };
    let blur = |p: &[f64]| filter(p, w, h, &taps);
    let (mx, my) = (blur(&x), blur(&y));
    let (xx, yy, xy) = (blur(&times(&x, &x)), blur(&times(&y, &y)), blur(&times(&x, &y)));
    let (mut all, mut contrasts) = (0.0, 0.0);
    for i in 0..mx.len() {
        let (vx, vy) = (sample * (xx[i] - mx[i] * mx[i]), sample * (yy[i] - my[i] * my[i]));
        let contrast = (2.0 * sample * (xy[i] - mx[i] * my[i]) + c2) / (vx + vy + c2);
        all += (2.0 * mx[i] * my[i] + c1) / (mx[i] * mx[i] + my[i] * my[i] + c1) * contrast;
        contrasts += contrast;
    }
    Some((all / mx.len() as f64, contrasts / mx.len() as f64))
}

/// A plane with `reach` pixels more on every side, mirrored at the outermost ones.
fn reflected(p: &[f64], w: usize, h: usize, reach: usize) -> Vec<f64> {
    let inner = |i: usize, n: usize| {
        let i = i.abs_diff(reach);
        if i >= n { 2 * (n - 1) - i } else { i }
    };
    let row = |y: usize| (0..w + 2 * reach).map(move |x| p[inner(y, h) * w + inner(x, w)]);
    (0..h + 2 * reach).flat_map(row).collect()
}

/// Channels as planes; luma alone where the kind asks for it.
fn planes(img: &Image, kind: Ssim) -> Vec<Vec<f64>> {
    if kind == Ssim::Luma {
        let luma = |p: &[u8]| 0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2]);
        return vec![img.rgb().chunks_exact(3).map(luma).collect()];
    }
    (0..3).map(|c| img.rgb().iter().skip(c).step_by(3).map(|&v| f64::from(v)).collect()).collect()
}

/// Structural similarity; `None` where a side is shorter than the window or the pictures differ in size.
pub fn ssim_of(a: &Image, b: &Image, kind: Ssim) -> Option<f64> {
    let size = (a.width(), a.height());
    if size != (b.width(), b.height()) {
        return None;
    }
    let (a, b) = (planes(a, kind), planes(b, kind));
    let each = a.iter().zip(&b).map(|(x, y)| plane_ssim(x, y, size, kind).map(|s| s.0));
    let each: Vec<f64> = each.collect::<Option<_>>()?;
    Some(each.iter().sum::<f64>() / each.len() as f64)
}

/// `ssim@gauss11`.
pub fn ssim(a: &Image, b: &Image) -> Option<f64> {
    ssim_of(a, b, Ssim::Gauss11)
}

const SCALES: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/// Multi-scale similarity (Wang et al. 2003) over five scales; `None` below 161 pixels a side. As pytorch-msssim computes it, by channel,
/// or as torchmetrics does.
pub fn ms_ssim(a: &Image, b: &Image, torchmetrics: bool) -> Option<f64> {
    let size = (a.width(), a.height());
    if size != (b.width(), b.height()) || size.0.min(size.1) <= 160 {
        return None;
    }
    let kind = if torchmetrics { Ssim::TorchMetrics } else { Ssim::Gauss11 };
    let channels: Vec<Vec<(f64, f64)>> = planes(a, kind)
        .into_iter()
        .zip(planes(b, kind))
        .map(|(mut x, mut y)| {
            let (mut w, mut h) = size;
            let mut terms = Vec::new();
            for _ in SCALES {
                let (whole, _) = plane_ssim(&x, &y, (w, h), kind)?;
                // torchmetrics takes the contrast from windows inside the picture, whatever the similarity's are
                terms.push((whole, plane_ssim(&x, &y, (w, h), Ssim::Gauss11)?.1));
                let halve = |p: &[f64]| halved(p, w, h, !torchmetrics);
                (x, y) = (halve(&x).0, halve(&y).0);
                (w, h) = halve(&vec![0.0; w * h]).1;
            }
            Some(terms)
        })
        .collect::<Option<_>>()?;
    let combined = |terms: &[(f64, f64)]| {
        let term = |(i, t): (usize, &(f64, f64))| (if i == 4 { t.0 } else { t.1 }).max(0.0).powf(SCALES[i]);
        terms.iter().enumerate().map(term).product::<f64>()
    };
    if !torchmetrics {
        return Some(channels.iter().map(|t| combined(t)).sum::<f64>() / channels.len() as f64);
    }
    let n = channels.len() as f64;
    let mean = |i: usize| {
        let sum = |f: fn(&(f64, f64)) -> f64| channels.iter().map(|c| f(&c[i])).sum::<f64>() / n;
        (sum(|t| t.0), sum(|t| t.1))
    };
    Some(combined(&(0..5).map(mean).collect::<Vec<_>>()))
}

/// Means of 2 x 2 pixels; an odd side is padded by a row of zeros on either end where asked, which count.
fn halved(p: &[f64], w: usize, h: usize, pad: bool) -> (Vec<f64>, (usize, usize)) {
    let (pw, ph) = if pad { (w % 2, h % 2) } else { (0, 0) };
    let (ow, oh) = ((w + 2 * pw - 2) / 2 + 1, (h + 2 * ph - 2) / 2 + 1);
    let at = |x: usize, y: usize| match (x.checked_sub(pw), y.checked_sub(ph)) {
        (Some(x), Some(y)) if x < w && y < h => p[y * w + x],
        _ => 0.0,
    };
    let mean = |(x, y): (usize, usize)| {
        (at(2 * x, 2 * y) + at(2 * x + 1, 2 * y) + at(2 * x, 2 * y + 1) + at(2 * x + 1, 2 * y + 1)) / 4.0
    };
    ((0..oh).flat_map(|y| (0..ow).map(move |x| (x, y))).map(mean).collect(), (ow, oh))
}

/// Mean absolute difference of 8-bit levels.
pub fn mae(a: &Image, b: &Image) -> f64 {
    let sum: f64 = a.rgb().iter().zip(b.rgb()).map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs()).sum();
    sum / a.rgb().len() as f64
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
