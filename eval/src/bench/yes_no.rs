//! POPE (Li et al. 2023) and MME (Fu et al. 2023): questions whose answer is yes or no.

use super::ask::Shown;
use super::needs;
use super::table::{self, Row};
use super::{Answer, Files, Item, Notes, Scores, Shipped, picture_fault, without_repeats};
use crate::metrics::yes_no::{Said, mme, pope, vlmevalkit};
use crate::{Error, Result};
use serde_json::json;
use std::collections::BTreeMap;
use unified::nearest::nearest;

/// POPE.
pub const POPE: Shipped = Shipped {
    name: "pope",
    about: "objects that are not there (POPE)",
    load: load_pope,
    ask: super::ask::short,
    score: score_pope,
};
/// MME.
pub const MME: Shipped = Shipped {
    name: "mme",
    about: "perception and cognition by pairs of questions (MME)",
    load: load_mme,
    ask: super::ask::short,
    score: score_mme,
};

/// The label of a row; nothing where it is neither.
fn label(cell: Option<String>) -> std::result::Result<bool, String> {
    let Some(text) = cell else { return Err("no label".into()) };
    match text.trim().to_lowercase().as_str() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(format!("label \"{text}\" is neither yes nor no")),
    }
}

fn load_pope(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let question = |row: &Row| row.text("question").or_else(|| row.text("text")).unwrap_or_default();
    let data = files.parquet("test");
    let parquet = if data.is_empty() { files.find(|p| p.contains("/Full/") && p.ends_with(".parquet")) } else { data };
    let lines = files.find(|p| p.contains("coco_pope_") && p.ends_with(".json"));
    if !parquet.is_empty() {
        files.rows(
            ("pope", "parquet files"),
            &parquet,
            &["question", "answer", "category"],
            notes,
            &mut |n, row, notes| {
                let id = row.text("id").unwrap_or_else(|| n.to_string());
                if let Some(why) = picture_fault(row.get("image"), &files.dir) {
                    notes.skip(format!("row {n}, id {id}: {why}"));
                    return Ok(());
                }
                match label(row.text("answer")) {
                    Err(why) => notes.skip(format!("row {n}, id {id}: {why}")),
                    Ok(yes) => {
                        let category = row.text("category").unwrap_or_default();
                        let picture = row.text("image_source").unwrap_or_else(|| id.clone());
                        let facts = json!({"question": question(row), "yes": yes, "split": category});
                        items.push(Item::new(id, picture, facts).with(notes.shown(row.get("image"), files)));
                    }
                }
                Ok(())
            },
        )?;
    } else if !lines.is_empty() {
        for path in &lines {
            let stem = super::name(path);
            let split = stem.trim_start_matches("coco_pope_").trim_end_matches(".json").to_owned();
            table::json_lines(path, notes, &mut |line, row, notes| {
                let id = row.text("question_id").unwrap_or_else(|| line.to_string());
                match label(row.text("label")) {
                    Err(why) => notes.skip(format!("{stem} line {line}: {why}")),
                    Ok(yes) => {
                        let facts = json!({"question": question(row), "yes": yes, "split": split});
                        let mut item = Item::new(format!("{split}/{id}"), row.text("image").unwrap_or_default(), facts);
                        item.also = vec![("category", split.clone()), ("question_id", id)];
                        item.shown = notes.file(&row.text("image").unwrap_or_default(), files);
                        items.push(item);
                    }
                }
                Ok(())
            })?;
        }
    } else if let Some(tsv) = files.named(&["POPE.tsv"]) {
        table::tsv(&tsv, notes, &mut |n, row, notes| {
            needs(row, &["question", "answer", "category"], "pope", "POPE.tsv")?;
            let id = row.text("id").unwrap_or_default();
            match label(row.text("answer")) {
                Err(why) => notes.skip(format!("row {n}: {why}")),
                // a pair is asked once and counts in every category of its list
                Ok(yes) => {
                    let shown = notes.shown(row.get("image"), files);
                    for split in row.text("category").unwrap_or_default().split(',') {
                        let facts = json!({"question": question(row), "yes": yes, "split": split});
                        let mut item = Item::new(format!("{split}/{id}"), format!("row {n}"), facts);
                        item.also = vec![("id", id.clone())];
                        item.shown.clone_from(&shown);
                        items.push(item);
                    }
                }
            }
            Ok(())
        })?;
    } else {
        return Err(files.nothing("pope", "test-*.parquet, Full/*.parquet, coco_pope_*.json or POPE.tsv"));
    }
    Ok(without_repeats(items, notes))
}

fn score_pope(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let said: Vec<(String, bool)> =
        items.iter().zip(answers).map(|(i, a)| (a.text.clone(), i.facts["yes"] == true)).collect();
    let mut splits: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    items.iter().enumerate().for_each(|(i, item)| splits.entry(item.text("split")).or_default().push(i));
    let all: Vec<usize> = (0..items.len()).collect();
    for rule in ["llava", "lmms", "vlmevalkit", "strict"] {
        let mut f1 = Vec::new();
        for (split, which) in splits.iter().map(|(s, w)| (*s, w)).chain([("pooled", &all)]) {
            let part: Vec<(String, bool)> = which.iter().map(|&i| said[i].clone()).collect();
            for (name, value) in pope(rule, &part) {
                if name == "f1" && split != "pooled" {
                    f1.push(value);
                }
                let key = format!("{name}/{split}@{rule}");
                if name != "accuracy" {
                    out.value(key, value);
                    continue;
                }
                let right = |&i: &usize| (i, pope(rule, &said[i..=i])["accuracy"]);
                out.mean(key, which.iter().map(right).collect());
            }
        }
        out.value(format!("f1/mean_of_splits@{rule}"), f1.iter().sum::<f64>() / f1.len().max(1) as f64);
    }
    Ok(out)
}

const PERCEPTION: [&str; 10] =
    ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"];
const COGNITION: [&str; 4] = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"];

fn load_mme(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut rows: Vec<(String, String, String, bool, Vec<Shown>)> = Vec::new();
    let parquet = files.parquet("test");
    let texts = files.find(|p| p.ends_with(".txt"));
    if !parquet.is_empty() {
        files.rows(
            ("mme", "parquet files"),
            &parquet,
            &["question_id", "question", "answer", "category"],
            notes,
            &mut |n, row, notes| {
                let (id, category) =
                    (row.text("question_id").unwrap_or_default(), row.text("category").unwrap_or_default());
                let known = || PERCEPTION.iter().chain(&COGNITION);
                if !known().any(|c| *c == category) {
                    let near = nearest(&category, known().copied(), usize::MAX).unwrap_or_default();
                    notes.skip(format!("row {n}, {id}: unknown category \"{category}\" (nearest: {near})"));
                    return Ok(());
                }
                match label(row.text("answer")) {
                    Err(why) => notes.skip(format!("row {n}, {id}: {why}")),
                    Ok(yes) => {
                        let shown = notes.shown(row.get("image"), files);
                        rows.push((id, category, row.text("question").unwrap_or_default(), yes, shown));
                    }
                }
                Ok(())
            },
        )?;
    } else if !texts.is_empty() {
        for path in &texts {
            let mut folder = path.parent().unwrap_or(path);
            let questions = folder.file_name().is_some_and(|n| n == "questions_answers_YN");
            if questions {
                folder = folder.parent().unwrap_or(folder);
            }
            let category = super::name(folder);
            let pictures = if questions { folder.join("images") } else { folder.to_owned() };
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let picture =
                ["jpg", "png", "jpeg"].iter().map(|e| format!("{stem}.{e}")).find(|n| pictures.join(n).is_file());
            let Some(picture) = picture else {
                notes.skip(format!("{}: picture missing", files.shown(path)));
                continue;
            };
            let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
            for line in text.lines().filter(|l| !l.trim().is_empty()) {
                let Some((question, answer)) = line.split_once('\t') else {
                    notes.skip(format!("{}: a line without a tab", files.shown(path)));
                    continue;
                };
                match label(Some(answer.to_owned())) {
                    Err(why) => notes.skip(format!("{}: {why}", files.shown(path))),
                    Ok(yes) => {
                        let shown = vec![Shown::File(pictures.join(&picture))];
                        rows.push((format!("{category}/{picture}"), category.clone(), question.to_owned(), yes, shown));
                    }
                }
            }
        }
    } else {
        return Err(files.nothing("mme", "test-*.parquet, or MME's folders of questions"));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().for_each(|r| *counts.entry(&r.0).or_default() += 1);
    for (id, n) in counts.iter().filter(|c| *c.1 != 2) {
        notes.left_out += n;
        notes.say(format!("MME needs exactly two rows per question_id: {id} has {n}, left out"));
    }
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut items = Vec::new();
    for (id, category, question, yes, shown) in rows.iter().filter(|r| counts[r.0.as_str()] == 2) {
        let n = seen.entry(id).or_default();
        let facts = json!({"question": question, "yes": yes, "category": category});
        items.push(Item::new(format!("{id}#{n}"), id.clone(), facts).with(shown.clone()));
        *n += 1;
    }
    Ok(items)
}

/// What an answer says, by a program's rule.
type Reading = fn(&str) -> Said;

fn score_mme(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let rules: [(&str, Reading); 3] =
        [("lmms", |t| mme(t, true)), ("official", |t| mme(t, false)), ("vlmevalkit", vlmevalkit)];
    for (rule, read) in rules {
        // by category, by picture: whether each question was right
        let mut right: BTreeMap<&str, BTreeMap<&str, Vec<bool>>> = BTreeMap::new();
        for (item, answer) in items.iter().zip(answers) {
            let said = match read(&answer.text) {
                Said::Yes => Some(true),
                Said::No => Some(false),
                Said::Unknown => None,
            };
            let hit = said == Some(item.facts["yes"] == true);
            right.entry(item.text("category")).or_default().entry(&item.cluster).or_default().push(hit);
        }
        let (mut perception, mut cognition) = (0.0, 0.0);
        for (category, pictures) in &right {
            let questions: Vec<bool> = pictures.values().flatten().copied().collect();
            let acc = questions.iter().filter(|r| **r).count() as f64 / questions.len() as f64;
            let plus = pictures.values().filter(|p| p.iter().all(|r| *r)).count() as f64 / pictures.len() as f64;
            let score = 100.0 * (acc + plus);
            if PERCEPTION.contains(category) {
                perception += score
            } else {
                cognition += score
            }
            out.value(format!("{category}@{rule}"), score);
        }
        out.value(format!("perception@{rule}"), perception);
        out.value(format!("cognition@{rule}"), cognition);
    }
    Ok(out)
}
