//! Classifier-free guidance: how a request's contexts become one row of logits.

/// The first context's logits plus each scale times what the next one says beyond it; the last is the main context.
pub(super) fn mixed(rows: &[&[f32]], scales: &[f32]) -> Vec<f32> {
    let Some((first, rest)) = rows.split_first() else { return Vec::new() };
    let mut out = first.to_vec();
    for ((before, after), s) in rows.iter().zip(rest).zip(scales) {
        for ((m, b), a) in out.iter_mut().zip(*before).zip(*after) {
            *m += s * (a - b);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_context_adds_what_it_says_beyond_the_one_before() {
        let (uncond, even, sure) = ([1.0, 0.0], [0.0, 0.0], [40.0, 0.0]);
        assert_eq!(mixed(&[&uncond, &even], &[2.0]), [-1.0, 0.0]);
        assert_eq!(mixed(&[&even], &[]), even);
        assert_eq!(mixed(&[&uncond, &even, &sure], &[1.0, 3.0]), [120.0, 0.0]);
    }
}
