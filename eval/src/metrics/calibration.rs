//! How far confidence is from accuracy.

/// Expected calibration error (Guo et al. 2017, equation 3): rows of probabilities in bins of equal width by their largest; the mean over rows of
/// how far each bin's mean confidence is from its accuracy. A bin is open at its lower end.
pub fn ece(rows: &[Vec<f64>], gold: &[usize], bins: usize) -> f64 {
    let mut sums = vec![(0.0, 0.0); bins.max(1)];
    for (row, gold) in rows.iter().zip(gold) {
        let (best, sure) =
            row.iter().enumerate().fold((0, f64::NEG_INFINITY), |b, (i, v)| if *v > b.1 { (i, *v) } else { b });
        let bin = ((sure * bins as f64).ceil() as usize).clamp(1, bins.max(1)) - 1;
        sums[bin].0 += sure;
        sums[bin].1 += f64::from(best == *gold);
    }
    sums.iter().map(|(sure, right)| (sure - right).abs()).sum::<f64>() / rows.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sure_and_wrong_is_far_and_half_and_half_is_near() {
        assert!((ece(&[vec![1.0, 0.0], vec![0.9, 0.1]], &[1, 1], 15) - 0.95).abs() < 1e-12);
        assert!(ece(&[vec![0.5, 0.5], vec![0.5, 0.5]], &[0, 1], 15).abs() < 1e-12);
    }
}
