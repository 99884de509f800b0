//! Metrics of declared benchmarks, by the kind of their answers.

use super::{Declared, Kind};
use crate::bench::choice::can_infer;
use crate::bench::{Answer, Files, Item, Notes, Scores, likelihood, matching};
use crate::metrics::calibration::ece;
use crate::metrics::captions::{Case, score};
use crate::metrics::ptb::tokenised;
use crate::metrics::vqa::{Rule, accuracy};
use crate::metrics::yes_no;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

const OF_WORDS: [&str; 16] = [
    "exact_match@strict",
    "exact_match@ignore_case_punctuation",
    "contains@lowercase",
    "letter@vlmevalkit",
    "vqa_acc@official",
    "vqa_acc@lmms",
    "vqa_acc@llava",
    "vqa_acc@m4c",
    "vqa_acc@vlmevalkit",
    "yes_no@strict",
    "yes_no@llava",
    "yes_no@lmms",
    "yes_no@vlmevalkit",
    "cider@pycocoevalcap",
    "bleu4@pycocoevalcap",
    "rouge_l@pycocoevalcap",
];
const OF_LIKELIHOODS: [&str; 4] = ["acc@lm_eval", "acc_norm@lm_eval", "acc_bytes@lm_eval", "ece@15bins"];
const OF_TEXTS: [&str; 5] = [
    "nats_per_token@model",
    "bits_per_byte@model",
    "bits_per_byte@lm_eval",
    "byte_perplexity@lm_eval",
    "word_perplexity@lm_eval",
];
const OF_DRAWINGS: [&str; 1] = ["drawn@sheet"];
const OF_CLASSES: [&str; 4] =
    ["acc1@clip_benchmark", "acc5@clip_benchmark", "mean_per_class_recall@clip_benchmark", "ece@15bins"];

/// Metrics that answers of a kind can be given.
pub(super) fn metrics_of(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Words => &OF_WORDS,
        Kind::Likelihood => &OF_LIKELIHOODS,
        Kind::Text => &OF_TEXTS,
        Kind::Draw => &OF_DRAWINGS,
        Kind::Classes => &OF_CLASSES,
    }
}

/// Scores, each metric over all items and over those of each group.
pub(super) fn scores(
    task: &Declared,
    items: &[Item],
    answers: &[Answer],
    files: &Files,
    notes: &mut Notes,
) -> Result<Scores> {
    let mut out = Scores::default();
    match task.ask.kind {
        Kind::Words => of_words(task, items, answers, &mut out)?,
        Kind::Likelihood => {
            let all = likelihood::score(items, answers, files, notes)?;
            all.0.into_iter().filter(|m| task.score.metrics.contains(&m.0)).for_each(|(k, m)| drop(out.0.insert(k, m)));
            if task.score.metrics.iter().any(|m| m == "ece@15bins") {
                let rows: Vec<Vec<f64>> = answers.iter().map(|a| probabilities(&a.line["ll"])).collect();
                out.value("ece@15bins", ece(&rows, &golds(items, "gold"), 15));
            }
        }
        Kind::Text => of_texts(task, items, answers, &mut out)?,
        Kind::Draw => sheets(task, items, answers, files, notes, &mut out)?,
        Kind::Classes => {
            let Some((all, rows)) = matching::nearness(items, answers, "label") else {
                return Err(Error::invalid("answers without `scores`: how near the picture is to each class"));
            };
            all.0.into_iter().filter(|m| task.score.metrics.contains(&m.0)).for_each(|(k, m)| drop(out.0.insert(k, m)));
            if task.score.metrics.iter().any(|m| m == "ece@15bins") {
                out.value("ece@15bins", ece(&rows, &golds(items, "label"), 15));
            }
        }
    }
    Ok(grouped(items, out))
}

fn golds(items: &[Item], fact: &str) -> Vec<usize> {
    items.iter().map(|i| i.number(fact)).collect()
}

/// Probabilities among the choices.
fn probabilities(ll: &Value) -> Vec<f64> {
    let ll: Vec<f64> = ll.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let most = ll.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = ll.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

/// The means again by each value of the groups' columns: `acc/subject=law@lm_eval`.
fn grouped(items: &[Item], all: Scores) -> Scores {
    let mut out = Scores::default();
    for (name, metric) in all.0 {
        let (stem, variant) = name.split_once('@').unwrap_or((&name, ""));
        let mut by: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
        for (i, v) in &metric.of {
            for (column, value) in items[*i].facts["groups"].as_object().into_iter().flatten() {
                let value = value.as_str().unwrap_or_default();
                by.entry(format!("{stem}/{column}={value}@{variant}")).or_default().push((*i, *v));
            }
        }
        by.into_iter().for_each(|(k, of)| out.mean(k, of));
        out.0.insert(name, metric);
    }
    out
}

/// As lm-evaluation-harness's exact_match sees texts with ignore_case and ignore_punctuation, without blanks at the ends.
fn flexible(text: &str) -> String {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    text.trim().to_owned()
}

fn of_words(task: &Declared, items: &[Item], answers: &[Answer], out: &mut Scores) -> Result<()> {
    for name in &task.score.metrics {
        let (metric, variant) = name.split_once('@').unwrap_or((name, ""));
        let each = |f: &dyn Fn(&str, &Item) -> f64| -> Vec<(usize, f64)> {
            items.iter().zip(answers).map(|(i, a)| f(&a.text, i)).enumerate().collect()
        };
        match metric {
            "exact_match" if variant == "strict" => {
                out.mean(name, each(&|a, i| f64::from(i.texts("answers").iter().any(|g| g.trim() == a.trim()))));
            }
            "exact_match" => {
                let fits = |a: &str, i: &Item| i.texts("answers").iter().any(|g| flexible(g) == flexible(a));
                out.mean(name, each(&|a, i| f64::from(fits(a, i))));
            }
            "contains" => {
                let fits = |a: &str, i: &Item| {
                    i.texts("answers").iter().any(|g| a.to_lowercase().contains(&g.trim().to_lowercase()))
                };
                out.mean(name, each(&|a, i| f64::from(fits(a, i))));
            }
            "letter" => {
                let fits = |a: &str, i: &Item| {
                    let letter = i.facts["gold"].as_u64().map(|g| char::from(b'A' + g.min(25) as u8).to_string());
                    can_infer(a, &i.texts("choices")).is_some_and(|l| Some(l) == letter)
                };
                out.mean(name, each(&|a, i| f64::from(fits(a, i))));
            }
            "vqa_acc" => {
                let rule = match variant {
                    "official" => Rule::Official,
                    "lmms" => Rule::Lmms,
                    "llava" => Rule::Llava,
                    "m4c" => Rule::M4c,
                    _ => Rule::VlmEvalKit,
                };
                out.mean(name, each(&|a, i| accuracy(rule, a, &i.texts("answers"))));
            }
            "yes_no" => {
                let said: Vec<(String, bool)> = items
                    .iter()
                    .zip(answers)
                    .map(|(i, a)| (a.text.clone(), i.texts("answers").iter().any(|g| g.eq_ignore_ascii_case("yes"))))
                    .collect();
                for (k, v) in yes_no::pope(variant, &said) {
                    out.value(format!("{k}@{variant}"), v);
                }
            }
            _ => {
                let case = |(i, a): (&Item, &Answer)| Case {
                    hypothesis: tokenised(&a.text),
                    references: i.texts("answers").iter().map(|r| tokenised(r)).collect(),
                };
                let s = score(&items.iter().zip(answers).map(case).collect::<Vec<_>>());
                match metric {
                    "bleu4" => out.value(name, s.corpus["bleu4"]),
                    _ => out.mean(name, s.each.iter().map(|e| e[metric]).enumerate().collect()),
                }
            }
        }
    }
    Ok(())
}

fn of_texts(task: &Declared, items: &[Item], answers: &[Answer], out: &mut Scores) -> Result<()> {
    let (mut nats, mut tokens, mut bytes, mut words) = (0.0, 0.0, 0.0, 0.0);
    for (item, answer) in items.iter().zip(answers) {
        let (Some(n), Some(t)) = (answer.line["nats"].as_f64(), answer.line["tokens"].as_f64()) else {
            let why = "needs `nats`, the text's negative log-likelihood, and `tokens`, how many were predicted";
            return Err(Error::invalid(format!("answer {}: {why}", item.id)));
        };
        let text = item.text("question");
        nats += n;
        tokens += t;
        bytes += text.len() as f64;
        // Python's re.split(r"\s+", text)
        words += blanks(text) as f64 + 1.0;
    }
    for name in &task.score.metrics {
        let value = match name.split('@').next().unwrap_or_default() {
            "nats_per_token" => nats / f64::max(tokens, 1.0),
            "bits_per_byte" => nats / f64::max(bytes, 1.0) / std::f64::consts::LN_2,
            "byte_perplexity" => (nats / f64::max(bytes, 1.0)).exp(),
            _ => (nats / f64::max(words, 1.0)).exp(),
        };
        out.value(name, value);
    }
    Ok(())
}

/// Runs of blanks.
fn blanks(text: &str) -> usize {
    let mut last = false;
    text.chars().filter(|c| !std::mem::replace(&mut last, c.is_whitespace()) && c.is_whitespace()).count()
}

/// A sheet of the drawings of each group, below the run's folder; nothing judges them but people.
fn sheets(
    task: &Declared,
    items: &[Item],
    answers: &[Answer],
    files: &Files,
    notes: &mut Notes,
    out: &mut Scores,
) -> Result<()> {
    let mut groups: BTreeMap<String, Vec<qlip::Image>> = BTreeMap::new();
    let mut drawn = Vec::new();
    for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
        let image = answer.picture(files)?;
        drawn.push((i, f64::from(image.is_some())));
        let Some(image) = image else { continue };
        let of = item.facts["groups"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some(format!("{k}-{}", v.as_str()?)));
        let of: Vec<String> = of.collect();
        let of = if of.is_empty() { vec!["all".to_owned()] } else { of };
        of.into_iter().for_each(|g| groups.entry(g).or_default().push(image.clone()));
    }
    let dir = files.out.join("sheets");
    std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    for (group, images) in &groups {
        let safe: String = group.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let path = dir.join(format!("{}-{safe}.png", task.name));
        qlip::Image::grid(images, 2).save_png(&path)?;
    }
    if !groups.is_empty() {
        notes.say(format!("{} sheets of drawings in {}", groups.len(), dir.display()));
    }
    out.mean("drawn@sheet", drawn);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_split_as_python_splits_them() {
        // len(re.split(r"\s+", text)) - 1
        assert_eq!(["", "a", "a b", " a  b\n", "a\n\nb c"].map(blanks), [0, 0, 1, 3, 2]);
    }
}
