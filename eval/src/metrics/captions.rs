//! CIDEr-D (Vedantam et al. 2015), BLEU (Papineni et al. 2002) and ROUGE-L (Lin 2004) as pycocoevalcap 1.2 computes them, on tokens that
//! single blanks part. METEOR and SPICE need Java programs of their own and are left out.

use std::collections::{BTreeMap, HashMap, HashSet};

/// A caption and the references of its picture.
pub struct Case {
    /// The caption.
    pub hypothesis: String,
    /// The references.
    pub references: Vec<String>,
}

/// Scores of a corpus and of each caption.
pub struct Scores {
    /// cider, rouge_l, bleu1 to bleu4.
    pub corpus: BTreeMap<&'static str, f64>,
    /// The same of each case; BLEU with the package's smoothing.
    pub each: Vec<BTreeMap<&'static str, f64>>,
}

/// Weights by n-gram.
type Weights = HashMap<Vec<String>, f64>;

type Grams<'a> = HashMap<Vec<&'a str>, f64>;

fn grams(text: &str, n: usize) -> Grams<'_> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut out = HashMap::new();
    for w in words.windows(n) {
        *out.entry(w.to_vec()).or_insert(0.0) += 1.0;
    }
    out
}

const BLEU: [&str; 4] = ["bleu1", "bleu2", "bleu3", "bleu4"];

/// All scores of a corpus.
pub fn score(cases: &[Case]) -> Scores {
    let cider = cider(cases);
    let rouge: Vec<f64> = cases.iter().map(rouge_l).collect();
    let (bleu, bleu_each) = bleu(cases);
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
    let mut corpus = BTreeMap::from([("cider", mean(&cider)), ("rouge_l", mean(&rouge))]);
    corpus.extend(BLEU.into_iter().zip(bleu));
    let each = (0..cases.len()).map(|i| {
        let mut s = BTreeMap::from([("cider", cider[i]), ("rouge_l", rouge[i])]);
        s.extend(BLEU.into_iter().zip(bleu_each[i]));
        s
    });
    Scores { corpus, each: each.collect() }
}

/// CIDEr-D of each caption: clipped counts, a penalty for other lengths (sigma 6), times 10.
fn cider(cases: &[Case]) -> Vec<f64> {
    const SIGMA: f64 = 6.0;
    let mut seen: HashMap<Vec<&str>, f64> = HashMap::new();
    for case in cases {
        let all: HashSet<Vec<&str>> =
            case.references.iter().flat_map(|r| (1..=4).flat_map(|n| grams(r, n).into_keys())).collect();
        all.into_iter().for_each(|g| *seen.entry(g).or_insert(0.0) += 1.0);
    }
    let log_n = (cases.len().max(1) as f64).ln();
    // weights by length of n-gram, their norms, and the length that the penalty sees
    let vector = |text: &str| -> (Vec<Weights>, Vec<f64>, f64) {
        let mut vectors = Vec::new();
        let mut norms = Vec::new();
        let mut length = 0.0;
        for n in 1..=4 {
            let mut v = HashMap::new();
            for (g, tf) in grams(text, n) {
                let df = seen.get(&g).copied().unwrap_or(0.0).max(1.0).ln();
                if n == 2 {
                    length += tf;
                }
                v.insert(g.iter().map(|w| (*w).to_owned()).collect(), tf * (log_n - df));
            }
            // sums in one order, whatever order the map has
            let mut squares: Vec<f64> = v.values().map(|x: &f64| x * x).collect();
            squares.sort_by(f64::total_cmp);
            norms.push(squares.iter().sum::<f64>().sqrt());
            vectors.push(v);
        }
        (vectors, norms, length)
    };
    cases
        .iter()
        .map(|case| {
            let (hyp, hyp_norm, hyp_len) = vector(&case.hypothesis);
            let mut total = 0.0;
            for r in &case.references {
                let (reference, norm, len) = vector(r);
                let delta: f64 = hyp_len - len;
                for n in 0..4 {
                    let mut terms: Vec<f64> = hyp[n]
                        .iter()
                        .map(|(g, w)| {
                            let other = reference[n].get(g).copied().unwrap_or(0.0);
                            w.min(other) * other
                        })
                        .collect();
                    terms.sort_by(f64::total_cmp);
                    let mut value: f64 = terms.iter().sum();
                    if hyp_norm[n] != 0.0 && norm[n] != 0.0 {
                        value /= hyp_norm[n] * norm[n];
                    }
                    total += value * (-(delta * delta) / (2.0 * SIGMA * SIGMA)).exp() / 4.0;
                }
            }
            total / case.references.len().max(1) as f64 * 10.0
        })
        .collect()
}

/// Longest common subsequence against every reference: the best precision and the best recall, whoever's they are.
fn rouge_l(case: &Case) -> f64 {
    const BETA: f64 = 1.2;
    // the package splits at single blanks, so that an empty caption is one empty word
    let hypothesis: Vec<&str> = case.hypothesis.split(' ').collect();
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for r in &case.references {
        let reference: Vec<&str> = r.split(' ').collect();
        let lcs = lcs(&reference, &hypothesis) as f64;
        precision = precision.max(lcs / hypothesis.len() as f64);
        recall = recall.max(lcs / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

fn lcs(a: &[&str], b: &[&str]) -> usize {
    let mut before = vec![0; b.len() + 1];
    for x in a {
        let mut row = vec![0; b.len() + 1];
        for (j, y) in b.iter().enumerate() {
            row[j + 1] = if x == y { before[j] + 1 } else { before[j + 1].max(row[j]) };
        }
        before = row;
    }
    before[b.len()]
}

/// BLEU 1 to 4 of the corpus and of each caption, against the closest reference length.
fn bleu(cases: &[Case]) -> ([f64; 4], Vec<[f64; 4]>) {
    const SMALL: f64 = 1e-9;
    const TINY: f64 = 1e-15;
    let (mut guess, mut correct) = ([0.0; 4], [0.0; 4]);
    let (mut length, mut reference_length) = (0.0, 0.0);
    let mut each = Vec::new();
    for case in cases {
        let words = case.hypothesis.split_whitespace().count();
        let lengths = case.references.iter().map(|r| r.split_whitespace().count());
        let closest = lengths.map(|l| (l.abs_diff(words), l)).min().map_or(0, |p| p.1);
        let (mut g, mut c) = ([0.0; 4], [0.0; 4]);
        for n in 0..4 {
            g[n] = words.saturating_sub(n) as f64;
            let mut most: Grams = HashMap::new();
            for r in &case.references {
                for (gram, count) in grams(r, n + 1) {
                    let m = most.entry(gram).or_insert(0.0);
                    *m = m.max(count);
                }
            }
            let own = grams(&case.hypothesis, n + 1);
            c[n] = own.iter().map(|(gram, count)| count.min(most.get(gram).copied().unwrap_or(0.0))).sum();
            guess[n] += g[n];
            correct[n] += c[n];
        }
        length += words as f64;
        reference_length += closest as f64;
        let mut own = [0.0; 4];
        let mut product = 1.0;
        for n in 0..4 {
            product *= (c[n] + TINY) / (g[n] + SMALL);
            own[n] = product.powf(1.0 / (n + 1) as f64);
        }
        let ratio = (words as f64 + TINY) / (closest as f64 + SMALL);
        if ratio < 1.0 {
            own.iter_mut().for_each(|b| *b *= (1.0 - 1.0 / ratio).exp());
        }
        each.push(own);
    }
    let mut all = [0.0; 4];
    let mut product = 1.0;
    for n in 0..4 {
        product *= correct[n] / (guess[n] + SMALL);
        all[n] = product.powf(1.0 / (n + 1) as f64);
    }
    let ratio = (length + TINY) / (reference_length + SMALL);
    if ratio < 1.0 {
        all.iter_mut().for_each(|b| *b *= (1.0 - 1.0 / ratio).exp());
    }
    (all, each)
}
