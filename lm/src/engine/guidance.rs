//! Classifier-free guidance: how a request's contexts become one row of logits.

/// The first context's logits plus each scale times what the next one says beyond it; the last is the main context. With `uncertain`, a scale
/// goes from itself, where the main context is certain, in a straight line to that, where it finds every choice as likely as another.
pub(super) fn mixed(rows: &[&[f32]], scales: &[f32], uncertain: Option<f32>) -> Vec<f32> {
    let Some((first, rest)) = rows.split_first() else { return Vec::new() };
    let doubt = uncertain.map(|to| (to, rest.last().map_or(0.0, |main| doubt(main))));
    let mut out = first.to_vec();
    for ((before, after), &s) in rows.iter().zip(rest).zip(scales) {
        let s = doubt.map_or(s, |(to, doubt)| s + (to - s) * doubt);
        for ((m, b), a) in out.iter_mut().zip(*before).zip(*after) {
            *m += s * (a - b);
        }
    }
    out
}

/// Entropy of what logits say, of the largest that it can be.
fn doubt(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut weighed) = (0f64, 0f64);
    for &l in logits {
        let x = f64::from(l - most);
        sum += x.exp();
        // what cannot come has no part, and minus infinity times nothing is no number
        weighed += if x.is_finite() { x * x.exp() } else { 0.0 };
    }
    let entropy = sum.ln() - weighed / sum;
    (entropy / (logits.len().max(2) as f64).ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_grows_with_doubt() {
        assert!((doubt(&[1.0; 16]) - 1.0).abs() < 1e-6);
        assert!(doubt(&[30.0, 0.0, 0.0, f32::NEG_INFINITY]) < 1e-6);
        // two of four: half of the bits
        assert!((doubt(&[5.0, 5.0, f32::NEG_INFINITY, f32::NEG_INFINITY]) - 0.5).abs() < 1e-6);
        let (uncond, even, sure) = ([1.0, 0.0], [0.0, 0.0], [40.0, 0.0]);
        assert_eq!(mixed(&[&uncond, &even], &[2.0], None), [-1.0, 0.0]);
        assert_eq!(mixed(&[&uncond, &even], &[2.0], Some(6.0)), [-5.0, 0.0]);
        assert_eq!(mixed(&[&uncond, &sure], &[2.0], Some(6.0)), mixed(&[&uncond, &sure], &[2.0], None));
        assert_eq!(mixed(&[&even], &[], Some(6.0)), even);
        assert_eq!(mixed(&[&uncond, &even, &sure], &[1.0, 3.0], None), [120.0, 0.0]);
    }
}
