//! MMBench (Liu et al. 2023): a question counts only when it is answered rightly under every rotation of its options.

use super::ask::Shown;
use super::choice::can_infer;
use super::needs;
use super::table::{self, Row};
use super::{Answer, Files, Item, Notes, Scores, Shipped, without_repeats};
use crate::Result;
use base64::Engine;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// MMBench.
pub const MMBENCH: Shipped = Shipped {
    name: "mmbench",
    about: "multiple choice under rotations of its options (MMBench)",
    load,
    ask: super::ask::letters,
    score,
};

/// Rotation k of question i has index i + k x this.
const ROTATION: i64 = 1_000_000;

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Options of a row; one that is absent ends the list, whether it is empty or the text "nan".
fn options(row: &Row) -> Vec<String> {
    let there = |t: &String| !t.is_empty() && t != "nan";
    LETTERS.iter().map_while(|l| row.text(l).filter(there)).collect()
}

fn load(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut rows: Vec<(usize, Row)> = Vec::new();
    // pictures of rows that others refer to: whether they can be read
    let mut pictures: HashMap<String, (Option<String>, Vec<Shown>)> = HashMap::new();
    let tsv = files.find(|p| p.to_lowercase().contains("mmbench") && p.ends_with(".tsv"));
    let parquet = files.parquet("dev");
    if let Some(path) = tsv.first() {
        let name = super::name(path);
        table::tsv(path, notes, &mut |n, row, notes| {
            needs(row, &["index", "question", "answer", "A", "B"], "mmbench", &name)?;
            let image = row.text("image").unwrap_or_default();
            let kept = row.0.iter().filter(|c| c.0 != "image").cloned();
            let mut kept = Row(kept.collect());
            let reference = !image.is_empty() && image.len() <= 20 && image.chars().all(|c| c.is_ascii_digit());
            if reference {
                kept.0.push(("refers".into(), table::Cell::Text(image)));
            } else {
                let shown = notes.shown(row.get("image"), files);
                pictures.insert(row.text("index").unwrap_or_default(), (fault(&image), shown));
            }
            rows.push((n, kept));
            Ok(())
        })?;
    } else if !parquet.is_empty() {
        files.rows(
            ("mmbench", "parquet files"),
            &parquet,
            &["index", "question", "answer", "A", "B"],
            notes,
            &mut |n, row, notes| {
                let shown = notes.shown(row.get("image"), files);
                let fault = super::picture_fault(row.get("image"), &files.dir);
                pictures.insert(row.text("index").unwrap_or_default(), (fault, shown));
                rows.push((n, Row(row.0.iter().filter(|c| c.0 != "image").cloned().collect())));
                Ok(())
            },
        )?;
    } else {
        return Err(files.nothing("mmbench", "mmbench_*.tsv, MMBench_*.tsv or dev-*.parquet"));
    }
    let mut items = Vec::new();
    for (n, row) in &rows {
        let id = row.text("index").unwrap_or_default();
        let Some(index) = row.get("index").int() else {
            notes.skip(format!("row {n}: index \"{id}\" is no number"));
            continue;
        };
        let source = row.text("refers").unwrap_or_else(|| id.clone());
        let shown = match pictures.get(&source) {
            Some((None, shown)) => shown.clone(),
            Some((Some(why), _)) => {
                notes.skip(format!("index {id}: {why}"));
                continue;
            }
            None => {
                notes.skip(format!("index {id}: refers to the picture of row {source}, which is not there"));
                continue;
            }
        };
        let (options, answer) = (options(row), row.text("answer").unwrap_or_default());
        if !LETTERS[..options.len()].contains(&answer.as_str()) {
            notes.skip(format!("index {id}: answer \"{answer}\" outside the options"));
            continue;
        }
        let text = |name: &str| row.text(name).unwrap_or_default();
        let facts = json!({"question": text("question"), "hint": text("hint"), "choices": options, "label": answer,
            "category": text("category"), "l2": row.text("l2-category").unwrap_or_else(|| text("L2-category")),
            "rotation": index / ROTATION});
        items.push(Item::new(id, (index % ROTATION).to_string(), facts).with(shown));
    }
    let items = without_repeats(items, notes);
    let mut rotations: BTreeMap<&str, Vec<&Item>> = BTreeMap::new();
    items.iter().for_each(|i| rotations.entry(&i.cluster).or_default().push(i));
    for (question, all) in &rotations {
        let there: Vec<u64> = all.iter().filter_map(|i| i.facts["rotation"].as_u64()).collect();
        let wanted = all.iter().map(|i| i.texts("choices").len() as u64).max().unwrap_or(0);
        if there.len() > 1 || wanted == 1 {
            for k in (0..wanted).filter(|k| !there.contains(k)) {
                notes.say(format!("question {question}: rotation {k} missing; it is easier for that"));
            }
        }
    }
    Ok(items)
}

/// Why a picture in base64 cannot be read.
fn fault(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("picture missing".into());
    }
    match base64::engine::general_purpose::STANDARD.decode(text) {
        Err(e) => Some(format!("picture is not base64 ({e})")),
        Ok(bytes) => super::picture_fault(&table::Cell::Bytes(bytes), std::path::Path::new("")),
    }
}

/// lmms-eval's reading: a letter among the words, bare or in one shape of punctuation, else the one option that occurs, else the first of A to
/// D that is anywhere. `nan` is what absent options are called in the hub's copy, and what words are compared with there.
fn lmms(text: &str, options: &[String], nan: bool) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let all = ["A", "B", "C", "D", "E"];
    let shapes =
        [("", ""), ("(", ")"), ("(", ")."), ("", "."), ("", ")"), ("", ","), ("", ":"), ("", ")."), ("", ".)")];
    for (before, after) in shapes {
        let shape = |l: &str| format!("{before}{l}{after}");
        let found: Vec<&str> = all.iter().copied().filter(|l| words.contains(&shape(l).as_str())).collect();
        match found.as_slice() {
            // an A among more than three words is an article
            ["A"] if (before, after) == ("", "") && words.len() > 3 => {}
            [one] => return Some((*one).to_owned()),
            _ => {}
        }
    }
    let lower = text.to_lowercase();
    let mut texts: Vec<String> = options.iter().map(|o| o.to_lowercase()).collect();
    if nan {
        texts.resize(LETTERS.len(), "nan".into());
    }
    let found: Vec<usize> = (0..texts.len()).filter(|i| lower.contains(&texts[*i])).collect();
    if let [one] = found.as_slice() {
        return Some(LETTERS[*one].to_owned());
    }
    LETTERS.iter().find(|l| text.contains(**l)).map(|l| (*l).to_owned())
}

/// Short names of the second level, as VLMEvalKit prints them.
const SHORT: [(&str, &str); 6] = [
    ("coarse_perception", "cp"),
    ("finegrained_perception (instance-level)", "fp-s"),
    ("finegrained_perception (cross-instance)", "fp-c"),
    ("logic_reasoning", "lr"),
    ("relation_reasoning", "rr"),
    ("attribute_reasoning", "ar"),
];

fn score(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    for rule in ["vlmevalkit", "lmms_static", "lmms_static+null"] {
        let read = |(item, a): (&Item, &Answer)| {
            let options = item.texts("choices");
            let said = match rule {
                "vlmevalkit" => can_infer(&a.text, &options),
                _ => lmms(a.text.trim(), &options, rule == "lmms_static"),
            };
            said.as_deref() == Some(item.text("label"))
        };
        let right: Vec<bool> = items.iter().zip(answers).map(read).collect();
        let mut questions: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
        for (i, item) in items.iter().enumerate() {
            let q = questions.entry(&item.cluster).or_insert((i, true));
            q.1 &= right[i];
        }
        let mut groups: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
        for (i, all) in questions.values() {
            let item = &items[*i];
            let value = (*i, f64::from(*all));
            let l2 = item.text("l2");
            let short = SHORT.iter().find(|s| s.0 == l2 && rule == "vlmevalkit").map_or(l2, |s| s.1);
            for group in ["overall", item.text("category"), short].into_iter().filter(|g| !g.is_empty()) {
                groups.entry(group.to_owned()).or_default().push(value);
            }
        }
        for (group, of) in groups {
            out.mean(format!("circular/{group}@{rule}"), of);
        }
        if rule == "vlmevalkit" {
            let value = |i: usize| (i, f64::from(right[i]));
            out.mean("vanilla/all@vlmevalkit", (0..items.len()).map(value).collect());
            let of =
                |k: u64| (0..items.len()).filter(|&i| items[i].facts["rotation"] == k).map(value).collect::<Vec<_>>();
            out.mean("vanilla/first@vlmevalkit", of(0));
            for k in 0..4 {
                let of = of(k);
                if !of.is_empty() {
                    out.mean(format!("vanilla/rotation{k}@vlmevalkit"), of);
                }
            }
        }
    }
    Ok(out)
}
