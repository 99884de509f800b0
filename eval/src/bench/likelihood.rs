//! Multiple choice by likelihood, as lm-evaluation-harness scores it: HellaSwag, ARC. Answer files hold the sum of log-probabilities of each
//! continuation, `ll`.

use super::{Answer, Files, Item, Notes, Scores, Shipped, without_repeats};
use crate::{Error, Result};
use serde_json::json;

/// HellaSwag.
pub const HELLASWAG: Shipped = Shipped {
    name: "hellaswag",
    about: "how a text goes on (HellaSwag)",
    load: load_hellaswag,
    ask: super::ask::likelihood,
    score,
};
/// ARC.
pub const ARC: Shipped =
    Shipped { name: "arc", about: "school science (ARC)", load: load_arc, ask: super::ask::likelihood, score };

/// The published cleaning of HellaSwag's texts.
pub fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let Some(close) = rest[open..].find(']') else { break };
        // a bracket that spans a line's end is none for the published pattern
        if rest[open..open + close].contains('\n') {
            out.push_str(&rest[..=open]);
            rest = &rest[open + 1..];
            continue;
        }
        out.push_str(&rest[..open]);
        rest = &rest[open + close + 1..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

fn load_hellaswag(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let parquet = files.parquet("validation");
    let mut items = Vec::new();
    files.rows(
        ("hellaswag", "validation-*.parquet"),
        &parquet,
        &["ctx_a", "ctx_b", "endings", "label"],
        notes,
        &mut |n, row, notes| {
            let id = row.text("ind").unwrap_or_else(|| n.to_string());
            let endings: Vec<String> = row.get("endings").texts().iter().map(|e| cleaned(e)).collect();
            let label = row.get("label").int().and_then(|l| usize::try_from(l).ok());
            match label.filter(|l| *l < endings.len()) {
                None if endings.is_empty() => notes.skip(format!("row {n}, id {id}: no endings")),
                None => {
                    let said = row.text("label").unwrap_or_default();
                    notes.skip(format!("row {n}, id {id}: label \"{said}\" outside 0..{}", endings.len() - 1));
                }
                Some(gold) => {
                    let capital: String = {
                        let b = row.text("ctx_b").unwrap_or_default().to_lowercase();
                        let mut chars = b.chars();
                        chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
                    };
                    let text = |name: &str| row.text(name).unwrap_or_default();
                    let context = cleaned(&format!("{}: {} {capital}", text("activity_label"), text("ctx_a")));
                    items.push(Item::new(
                        id.clone(),
                        id,
                        json!({"context": context, "choices": endings, "gold": gold}),
                    ));
                }
            }
            Ok(())
        },
    )?;
    Ok(without_repeats(items, notes))
}

fn load_arc(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let parquet = files.parquet("test");
    let mut items = Vec::new();
    files.rows(
        ("arc", "ARC-Challenge/test-*.parquet"),
        &parquet,
        &["id", "question", "choices", "answerKey"],
        notes,
        &mut |n, row, notes| {
            let id = row.text("id").unwrap_or_default();
            let choices = row.get("choices").group().cloned().unwrap_or_default();
            let (texts, labels) = (choices.get("text").texts(), choices.get("label").texts());
            let key = row.text("answerKey").unwrap_or_default();
            match labels.iter().position(|l| *l == key).filter(|g| *g < texts.len()) {
                None => notes.skip(format!("row {n}, id {id}: answer \"{key}\" is none of the labels")),
                Some(gold) => {
                    let context = format!("Question: {}\nAnswer:", row.text("question").unwrap_or_default());
                    items.push(Item::new(id.clone(), id, json!({"context": context, "choices": texts, "gold": gold})));
                }
            }
            Ok(())
        },
    )?;
    Ok(without_repeats(items, notes))
}

/// What a choice's log-likelihood is divided by.
type Length = fn(&str) -> f64;

/// Accuracy by the sums, and by the sums over characters and bytes.
pub fn score(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let kinds: [(&str, Length); 3] =
        [("acc", |_| 1.0), ("acc_norm", |c| c.chars().count() as f64), ("acc_bytes", |c| c.len() as f64)];
    for (name, length) in kinds {
        let mut each = Vec::new();
        for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
            let choices = item.texts("choices");
            let ll: Vec<f64> = answer.line["ll"].as_array().into_iter().flatten().filter_map(|v| v.as_f64()).collect();
            if ll.len() != choices.len() {
                let why =
                    format!("answer {}: {} log-likelihoods `ll` for {} choices", item.id, ll.len(), choices.len());
                return Err(Error::invalid(why));
            }
            let scores = ll.iter().zip(&choices).map(|(l, c)| l / length(c));
            // ties take the first
            let best = scores.enumerate().fold((0, f64::NEG_INFINITY), |b, (i, s)| if s > b.1 { (i, s) } else { b }).0;
            each.push((i, f64::from(item.facts["gold"].as_u64() == Some(best as u64))));
        }
        out.mean(format!("{name}@lm_eval"), each);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_go_and_their_blank_stays() {
        assert_eq!(cleaned("[substeps] Take the dog."), " Take the dog.");
        assert_eq!(cleaned("How to [title] Rub it  now "), "How to. Rub it now");
    }
}
