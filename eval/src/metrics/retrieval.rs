//! Retrieval of pictures by captions and of captions by pictures: recall at k, ranks.

use std::collections::BTreeMap;

/// How equal scores count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// Against: what is as near goes before.
    Pessimistic,
    /// For: what is as near goes after.
    Optimistic,
}

/// Ranks of the first right picture of each caption, and of the first right caption of each picture.
pub struct Ranks {
    /// By caption.
    pub images: Vec<usize>,
    /// By picture.
    pub texts: Vec<usize>,
}

impl Ranks {
    /// Of scores [captions][pictures]; caption i belongs to picture `owner[i]`.
    pub fn of(scores: &[Vec<f64>], owner: &[usize], ties: Ties) -> Self {
        let before = |other: f64, right: f64| match ties {
            Ties::Pessimistic => other >= right,
            Ties::Optimistic => other > right,
        };
        let image = |(row, &own): (&Vec<f64>, &usize)| {
            1 + row.iter().enumerate().filter(|(j, s)| *j != own && before(**s, row[own])).count()
        };
        let pictures = scores.first().map_or(0, Vec::len);
        let text = |picture: usize| {
            let own: Vec<usize> = (0..owner.len()).filter(|&i| owner[i] == picture).collect();
            let best = own.iter().map(|&i| scores[i][picture]).fold(f64::NEG_INFINITY, f64::max);
            1 + (0..owner.len()).filter(|&i| owner[i] != picture && before(scores[i][picture], best)).count()
        };
        Self { images: scores.iter().zip(owner).map(image).collect(), texts: (0..pictures).map(text).collect() }
    }

    /// R@1, 5, 10, median and mean ranks of both ways, by the names of tests/fixtures/metrics.
    pub fn scores(&self) -> BTreeMap<String, f64> {
        let mut out = BTreeMap::new();
        for (name, ranks) in [("image", &self.images), ("text", &self.texts)] {
            let n = ranks.len().max(1) as f64;
            for k in [1, 5, 10] {
                let within = ranks.iter().filter(|&&r| r <= k).count() as f64;
                out.insert(format!("{name}_retrieval_R@{k}"), within / n);
            }
            out.insert(format!("{name}_mean_rank"), ranks.iter().sum::<usize>() as f64 / n);
            out.insert(format!("{name}_median_rank"), median(ranks));
        }
        out
    }
}

fn median(ranks: &[usize]) -> f64 {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2] as f64,
        n => (sorted[n / 2 - 1] + sorted[n / 2]) as f64 / 2.0,
    }
}
