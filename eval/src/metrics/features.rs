//! Distances between sets of features: kernel distance (KID), Inception score, precision and recall. The Frechet distance is in
//! [`crate::frechet`].

/// Rows of features.
pub type Rows = [Vec<f64>];

/// Kernel inception distance (Binkowski et al. 2018), unbiased, of all rows: the kernel is (x.y / d + 1)^3.
pub fn kid(a: &Rows, b: &Rows) -> f64 {
    let d = a.first().map_or(1, Vec::len).max(1) as f64;
    let kernel = |x: &[f64], y: &[f64]| (x.iter().zip(y).map(|(p, q)| p * q).sum::<f64>() / d + 1.0).powi(3);
    let within = |rows: &Rows| {
        let n = rows.len() as f64;
        let mut sum = 0.0;
        for (i, x) in rows.iter().enumerate() {
            sum += rows.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, y)| kernel(x, y)).sum::<f64>();
        }
        sum / (n * (n - 1.0))
    };
    let between: f64 = a.iter().map(|x| b.iter().map(|y| kernel(x, y)).sum::<f64>()).sum();
    within(a) + within(b) - 2.0 * between / (a.len() * b.len()) as f64
}

/// Inception score (Salimans et al. 2016) of logits in consecutive splits: mean and population deviation.
pub fn inception_score(logits: &Rows, splits: usize) -> (f64, f64) {
    let log_softmax = |row: &Vec<f64>| -> Vec<f64> {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = row.iter().map(|v| (v - most).exp()).sum::<f64>().ln() + most;
        row.iter().map(|v| v - total).collect()
    };
    let logs: Vec<Vec<f64>> = logits.iter().map(log_softmax).collect();
    let each = logs.len() / splits.max(1);
    let score = |part: &[Vec<f64>]| {
        let n = part.len() as f64;
        let width = part.first().map_or(0, Vec::len);
        let mean: Vec<f64> = (0..width).map(|c| part.iter().map(|r| r[c].exp()).sum::<f64>() / n).collect();
        let kl = |r: &Vec<f64>| r.iter().zip(&mean).map(|(l, m)| l.exp() * (l - m.ln())).sum::<f64>();
        (part.iter().map(kl).sum::<f64>() / n).exp()
    };
    let scores: Vec<f64> = (0..splits).map(|s| score(&logs[s * each..(s + 1) * each])).collect();
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let spread = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / scores.len() as f64;
    (mean, spread.sqrt())
}

/// Improved precision and recall (Kynkaanniemi et al. 2019): the share of one set within the other's spheres, each as wide as the
/// distance to its k-th neighbour.
pub fn precision_recall(real: &Rows, fake: &Rows, k: usize) -> (f64, f64) {
    let distance = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(p, q)| (p - q).powi(2)).sum::<f64>().sqrt();
    let radii = |rows: &Rows| -> Vec<f64> {
        let radius = |x: &Vec<f64>| {
            let mut all: Vec<f64> = rows.iter().map(|y| distance(x, y)).collect();
            all.sort_by(f64::total_cmp);
            // the first is the point itself
            all[k.min(all.len() - 1)]
        };
        rows.iter().map(radius).collect()
    };
    let share = |of: &Rows, within: &Rows| {
        let radii = radii(within);
        let inside = |x: &&Vec<f64>| within.iter().zip(&radii).any(|(y, r)| distance(x, y) <= *r);
        of.iter().filter(inside).count() as f64 / of.len() as f64
    };
    (share(fake, real), share(real, fake))
}
