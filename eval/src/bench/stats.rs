//! How sure a number is: intervals of means over questions about the same pictures, and comparisons of two runs item by item.

use nn::rng;
use rayon::prelude::*;

/// 97.5% of a normal distribution lie below.
const Z: f64 = 1.959_963_984_540_054;

/// 95% interval of a mean of values with clusters. Shares of single items are Wilson's (right at 0 and 100% too); other means have a
/// cluster-robust error: sums of residuals by cluster, with G / (G - 1).
pub fn interval(values: &[f64], clusters: &[&str]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let mut residuals: std::collections::BTreeMap<&str, f64> = std::collections::BTreeMap::new();
    values.iter().zip(clusters).for_each(|(v, c)| *residuals.entry(c).or_default() += v - mean);
    let single = residuals.len() == values.len();
    if single && values.iter().all(|v| *v == 0.0 || *v == 1.0) {
        let (z2, p) = (Z * Z, mean);
        let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        return Some((centre - half, centre + half));
    }
    let g = residuals.len() as f64;
    if g < 2.0 {
        return None;
    }
    let error = (residuals.values().map(|r| r * r).sum::<f64>() * g / (g - 1.0)).sqrt() / n;
    Some((mean - Z * error, mean + Z * error))
}

/// A difference of two runs over the same items.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Mean of the second less mean of the first.
    pub delta: f64,
    /// 95% interval, by a bootstrap over clusters that draws both runs alike.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// 90% interval: two one-sided tests at 5% find the runs equivalent where it lies within the margin (Schuirmann 1987).
    pub inner: (f64, f64),
    /// Two-sided probability of so large a difference where there is none: exact McNemar for right and wrong in clusters of one, else the
    /// bootstrap's.
    pub p: f64,
    /// The smallest true difference that this many items would find four times in five.
    pub detectable: f64,
}

/// Compares values of the same items; `draws` bootstrap samples with a seed.
pub fn difference(a: &[f64], b: &[f64], clusters: &[&str], draws: usize, seed: u64) -> Option<Difference> {
    let n = a.len();
    if n == 0 || b.len() != n || clusters.len() != n {
        return None;
    }
    let mut place = std::collections::BTreeMap::new();
    let mut sums: Vec<(f64, f64)> = Vec::new();
    for i in 0..n {
        let at = *place.entry(clusters[i]).or_insert_with(|| {
            sums.push((0.0, 0.0));
            sums.len() - 1
        });
        sums[at].0 += b[i] - a[i];
        sums[at].1 += 1.0;
    }
    let delta = sums.iter().map(|s| s.0).sum::<f64>() / n as f64;
    let g = sums.len();
    // each draw has random numbers of its own, so that threads change nothing
    let mut means: Vec<f64> = (0..draws)
        .into_par_iter()
        .map(|draw| {
            let mut r = rng::keyed(seed, &[draw as u64]);
            let (mut d, mut m) = (0.0, 0.0);
            for _ in 0..g {
                let s = sums[rng::below(&mut r, g)];
                d += s.0;
                m += s.1;
            }
            d / m
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means[((draws as f64 * q) as usize).min(draws - 1)];
    let below = means.iter().filter(|m| **m <= 0.0).count() as f64;
    let above = means.iter().filter(|m| **m >= 0.0).count() as f64;
    let binary = g == n && a.iter().chain(b).all(|v| *v == 0.0 || *v == 1.0);
    let p = if binary {
        let won = a.iter().zip(b).filter(|(x, y)| y > x).count();
        let lost = a.iter().zip(b).filter(|(x, y)| y < x).count();
        mcnemar(won, lost)
    } else {
        (2.0 * (below.min(above) + 1.0) / (draws as f64 + 1.0)).min(1.0)
    };
    let error = (sums.iter().map(|s| (s.0 - delta * s.1).powi(2)).sum::<f64>()).sqrt() / n as f64;
    // 80% power at 5%: z of 0.975 and of 0.8
    Some(Difference {
        delta,
        low: at(0.025),
        high: at(0.975),
        inner: (at(0.05), at(0.95)),
        p,
        detectable: (Z + 0.841_621_2) * error,
    })
}

/// Exact two-sided McNemar: how likely so uneven a split of the changed items is at even chances.
pub fn mcnemar(won: usize, lost: usize) -> f64 {
    let n = won + lost;
    if n == 0 {
        return 1.0;
    }
    let less = won.min(lost);
    // log binomials, so that thousands of items do not overflow
    let log_half = -(n as f64) * std::f64::consts::LN_2;
    let mut log_choose = 0.0;
    let mut sum = 0.0;
    for k in 0..=less {
        sum += (log_choose + log_half).exp();
        log_choose += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

/// Holm's correction: probabilities in the order given, corrected for how many there are.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut out = vec![0.0; p.len()];
    let mut most = 0.0f64;
    for (rank, i) in order.into_iter().enumerate() {
        most = most.max((p[i] * (p.len() - rank) as f64).min(1.0));
        out[i] = most;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_and_tests_of_known_cases() {
        // Wilson at 0 of 10: statsmodels proportion_confint(0, 10, method="wilson")
        let names: Vec<String> = (0..10).map(|i| i.to_string()).collect();
        let clusters: Vec<&str> = names.iter().map(String::as_str).collect();
        let (low, high) = interval(&[0.0; 10], &clusters).unwrap();
        assert!(low.abs() < 1e-12 && (high - 0.277_532_799_862_889).abs() < 1e-12, "{low} {high}");
        // scipy.stats.binomtest(3, 13).pvalue
        assert!((mcnemar(3, 10) - 0.092_285_156_25).abs() < 1e-12);
        assert_eq!(mcnemar(0, 0), 1.0);
        assert_eq!(holm(&[0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]);
    }

    /// Coverage of the paired bootstrap on simulated runs whose true difference is 0.1.
    #[test]
    fn the_interval_holds_the_truth_as_often_as_it_says() {
        let mut held = 0;
        for trial in 0..200u64 {
            let mut r = rng::keyed(7, &[trial]);
            let n = 150;
            let names: Vec<String> = (0..n).map(|i| (i / 3).to_string()).collect();
            let clusters: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut a = Vec::new();
            let mut b = Vec::new();
            let mut shared = 0.0;
            for i in 0..n {
                if i % 3 == 0 {
                    shared = f64::from(rng::normal(&mut r));
                }
                let x = f64::from(rng::normal(&mut r));
                a.push(x + shared);
                b.push(x + 0.1 + 0.5 * f64::from(rng::normal(&mut r)) + shared);
            }
            let d = difference(&a, &b, &clusters, 400, trial).unwrap();
            held += usize::from(d.low <= 0.1 && 0.1 <= d.high);
        }
        assert!((180..=199).contains(&held), "{held} of 200");
    }
}
