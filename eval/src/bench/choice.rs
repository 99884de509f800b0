//! Multiple choice: ScienceQA, SEED-Bench, AI2D. Nothing is ever guessed: an answer that a rule cannot read is wrong, and counted.

use super::ask::Shown;
use super::needs;
use super::table::{self, Cell};
use super::{Answer, Files, Item, Notes, Scores, Shipped, without_repeats};
use crate::Result;
use serde_json::json;
use std::collections::BTreeMap;

/// ScienceQA.
pub const SCIENCEQA: Shipped = Shipped {
    name: "scienceqa",
    about: "science questions with and without pictures (ScienceQA)",
    load: load_sqa,
    ask: super::ask::letters,
    score: score_sqa,
};
/// SEED-Bench.
pub const SEED: Shipped = Shipped {
    name: "seed",
    about: "twelve kinds of questions (SEED-Bench)",
    load: load_seed,
    ask: super::ask::letters,
    score: score_seed,
};
/// AI2D.
pub const AI2D: Shipped =
    Shipped { name: "ai2d", about: "diagrams (AI2D)", load: load_ai2d, ask: super::ask::letters, score: score_ai2d };

fn letter(i: usize) -> String {
    char::from(b'A' + i.min(25) as u8).to_string()
}

/// VLMEvalKit's reading without a judge (can_infer): the one option letter among the last four words, "answer is X", else the one option
/// whose text occurs; Z is a refusal.
pub fn can_infer(answer: &str, options: &[String]) -> Option<String> {
    if answer.contains("Failed to obtain answer via API") {
        return by_text(answer, options);
    }
    const REFUSALS: [&str; 4] = [
        "Sorry, I can't help with images of people yet.",
        "I can't process this file.",
        "I'm sorry, but without the image provided",
        "Cannot determine the answer",
    ];
    if REFUSALS.iter().any(|r| answer.contains(r)) {
        return Some("Z".into());
    }
    let plain = answer.replace(['.', '(', ')', '[', ']', ',', ':', ';', '!', '*', '#', '{', '}'], " ");
    let words: Vec<&str> = plain.split_whitespace().collect();
    let there: Vec<String> = (0..options.len()).map(letter).filter(|l| words.contains(&l.as_str())).collect();
    if let [one] = there.as_slice() {
        let first = words.iter().position(|w| w == one).unwrap_or(0);
        if first + 5 > words.len() {
            return Some(one.clone());
        }
    } else if there.is_empty() && words.contains(&"Z") {
        return Some("Z".into());
    }
    answer_is(answer).or_else(|| by_text(answer, options))
}

/// "answer is X", whatever the case, for the letters A to D.
fn answer_is(answer: &str) -> Option<String> {
    let lower = answer.to_lowercase();
    let mut rest = lower.as_str();
    while let Some(at) = rest.find("answer") {
        rest = &rest[at + 6..];
        let after = rest.trim_start();
        if after.len() == rest.len() {
            continue;
        }
        let Some(after) = after.strip_prefix("is") else { continue };
        let word = after.trim_start();
        if word.len() == after.len() {
            continue;
        }
        let word = word.trim_start_matches('*');
        if let Some(c @ 'a'..='d') = word.chars().next() {
            return Some(c.to_uppercase().to_string());
        }
    }
    None
}

fn by_text(answer: &str, options: &[String]) -> Option<String> {
    let answer = answer.to_lowercase();
    if answer.chars().count() > 2 * options.iter().map(|o| o.chars().count()).sum::<usize>() {
        return None;
    }
    let there: Vec<usize> =
        options.iter().enumerate().filter(|(_, o)| answer.contains(&o.to_lowercase())).map(|(i, _)| i).collect();
    match there.as_slice() {
        [one] => Some(letter(*one)),
        _ => None,
    }
}

/// "The answer is X" and one sign more, exactly once: the published pattern with its bare dot.
fn the_answer_is(text: &str) -> Option<String> {
    const START: &str = "The answer is ";
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(START) {
        let after = &rest[at + START.len()..];
        let mut chars = after.chars();
        match (chars.next(), chars.next()) {
            (Some(c), Some(next)) if c.is_ascii_uppercase() && next != '\n' => {
                found.push(c.to_string());
                rest = chars.as_str();
            }
            _ => rest = after,
        }
    }
    if found.len() == 1 { found.pop() } else { None }
}

/// Shares of items that are right, of all and of groups.
fn shares(out: &mut Scores, rule: &str, right: &[bool], groups: &BTreeMap<String, Vec<usize>>, all: &str) {
    let value = |i: &usize| (*i, f64::from(right[*i]));
    out.mean(format!("{all}@{rule}"), (0..right.len()).map(|i| (i, f64::from(right[i]))).collect());
    for (group, which) in groups {
        out.mean(format!("accuracy/{group}@{rule}"), which.iter().map(value).collect());
    }
}

fn load_sqa(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let facts = |row: &table::Row, image: bool| {
        let choices = row.get("choices").texts();
        let text = |name: &str| row.text(name).unwrap_or_default();
        let answer = row.get("answer").int();
        let fault = match (choices.len(), answer) {
            (0, _) => Some("no choices".to_owned()),
            (n, Some(a)) if a < 0 || a as usize >= n => Some(format!("answer {a} outside 0..{}", n - 1)),
            (_, None) => Some("no answer".to_owned()),
            _ => None,
        };
        let label = letter(answer.unwrap_or(0).max(0) as usize);
        let facts = json!({"choices": choices, "label": label, "image": image, "hint": !text("hint").is_empty(),
            "subject": text("subject"), "hint_text": text("hint"), "grade": text("grade"), "question": text("question")});
        fault.map_or(Ok(facts), Err)
    };
    if let Some(problems) = files.named(&["problems.json"]) {
        let all = table::json(&problems)?;
        let splits = match files.named(&["pid_splits.json"]) {
            Some(path) => table::json(&path)?,
            None => return Err(files.nothing("scienceqa", "pid_splits.json beside problems.json")),
        };
        if !files.dir.join("images").is_dir() {
            notes.say("images/ missing: questions are read, their pictures are not".into());
        }
        for pid in Cell::of_json(&splits["test"]).texts() {
            let Cell::Group(row) = Cell::of_json(&all[&pid]) else {
                notes.skip(format!("pid {pid} is in pid_splits.json but not in problems.json"));
                continue;
            };
            let image = row.text("image").is_some_and(|i| !i.is_empty());
            match facts(&row, image) {
                Err(why) => notes.skip(format!("pid {pid}: {why}")),
                Ok(facts) => {
                    let picture = format!("images/test/{pid}/{}", row.text("image").unwrap_or_default());
                    let shown = if image { notes.file(&picture, files) } else { Vec::new() };
                    items.push(Item::new(pid.clone(), pid, facts).with(shown));
                }
            }
        }
        return Ok(without_repeats(items, notes));
    }
    let full = files.find(|p| p.contains("FULL") && p.contains("/test-") && p.ends_with(".parquet"));
    let (parquet, field) = match full.is_empty() {
        false => (full, "row_full"),
        true => {
            let only = files.parquet("test");
            let field = if only.iter().any(|p| p.to_string_lossy().contains("-IMG")) { "row_img" } else { "row_full" };
            (only, field)
        }
    };
    files.rows(
        ("scienceqa", "problems.json, or ScienceQA-FULL/test-*.parquet"),
        &parquet,
        &["question", "choices", "answer"],
        notes,
        &mut |n, row, notes| {
            match facts(row, *row.get("image") != Cell::Null) {
                Err(why) => notes.skip(format!("row {n}: {why}")),
                Ok(facts) => {
                    let mut item = Item::new(format!("row {n}"), format!("row {n}"), facts);
                    item.shown = notes.shown(row.get("image"), files);
                    item.also = vec![(field, n.to_string())];
                    items.push(item);
                }
            }
            Ok(())
        },
    )?;
    Ok(items)
}

fn score_sqa(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let f = &item.facts;
        let mut into = |g: &str| groups.entry(g.to_owned()).or_default().push(i);
        match item.text("subject") {
            "natural science" => into("natural"),
            "social science" => into("social"),
            "language science" => into("language"),
            _ => {}
        }
        let grade = item.text("grade").trim_start_matches("grade").parse::<u32>().unwrap_or(0);
        into(if grade <= 6 { "grade_1_6" } else { "grade_7_12" });
        if f["image"] == true {
            into("has_image");
            into("img");
        }
        if f["hint"] == true {
            into("has_text");
        }
        if f["image"] != true && f["hint"] != true {
            into("no_context");
        }
    }
    let img: BTreeMap<String, Vec<usize>> =
        groups.iter().filter(|g| g.0 == "img").map(|(k, v)| (k.clone(), v.clone())).collect();
    let among = |l: &str| ["A", "B", "C", "D", "E"].contains(&l);
    let llava = |text: &str| -> Option<String> {
        let start: String = text.chars().take(1).collect();
        if among(text) {
            Some(text.to_owned())
        } else if text.chars().count() >= 3 && among(&start) && text[start.len()..].starts_with(". ") {
            Some(start)
        } else {
            the_answer_is(text)
        }
    };
    let read = |f: &dyn Fn(&str, &Item) -> Option<String>| -> Vec<Option<String>> {
        items.iter().zip(answers).map(|(i, a)| f(&a.text, i)).collect()
    };
    let right = |read: &[Option<String>]| -> Vec<bool> {
        items.iter().zip(read).map(|(i, r)| r.as_deref() == Some(i.text("label"))).collect()
    };
    let of_llava = read(&|t, _| llava(t));
    shares(&mut out, "llava", &right(&of_llava), &groups, "accuracy");
    // an option that the question does not have is none
    let there = |item: &Item, said: &Option<String>| {
        said.as_ref().is_some_and(|s| (0..item.texts("choices").len()).any(|i| letter(i) == *s))
    };
    let unread =
        |r: &[Option<String>]| items.iter().zip(r).filter(|p| !there(p.0, p.1)).count() as f64 / r.len().max(1) as f64;
    out.value("unparsed_rate@llava", unread(&of_llava));
    let of_lmms = read(&|t, item| {
        let t = t.trim();
        let start = t.chars().next()?;
        let dotted = start.is_uppercase() && t[start.len_utf8()..].starts_with('.');
        if t.to_uppercase() == item.text("label") { Some(t.to_uppercase()) } else { dotted.then(|| start.to_string()) }
    });
    shares(&mut out, "lmms", &right(&of_lmms), &img, "accuracy");
    let lupantech = read(&|t, _| the_answer_is(t));
    shares(&mut out, "lupantech_noguess", &right(&lupantech), &img, "accuracy");
    out.value("unparsed_rate@lupantech", unread(&lupantech));
    let kit = read(&|t, item| can_infer(t, &item.texts("choices")));
    shares(&mut out, "vlmevalkit", &right(&kit), &img, "accuracy");
    Ok(out)
}

const SEED_TYPES: [&str; 12] = [
    "Scene Understanding",
    "Instance Identity",
    "Instance Location",
    "Instance Attributes",
    "Instances Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Understanding",
    "Action Recognition",
    "Action Prediction",
    "Procedure Understanding",
];

fn load_seed(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut names: BTreeMap<i64, String> = (1..).zip(SEED_TYPES.map(str::to_owned)).collect();
    let mut take = |n: usize, row: &table::Row, names: &BTreeMap<i64, String>, notes: &mut Notes| {
        let id = row.text("question_id").unwrap_or_default();
        let options: Vec<String> =
            ["choice_a", "choice_b", "choice_c", "choice_d"].iter().filter_map(|c| row.text(c)).collect();
        let label = row.text("answer").unwrap_or_default();
        let kind = row.get("question_type_id").int().and_then(|t| names.get(&t).cloned());
        match ((0..options.len()).any(|i| letter(i) == label), kind) {
            (false, _) => notes.skip(format!("row {n}, id {id}: answer \"{label}\" outside the options")),
            (_, None) => notes.skip(format!("row {n}, id {id}: unknown question type")),
            (true, Some(kind)) => {
                let facts = json!({"choices": options, "label": label, "type": kind,
                    "data_type": row.text("data_type").unwrap_or_default(), "question": row.text("question")});
                let data = row.text("data_id").unwrap_or_default();
                let shown = match row.has("image") {
                    true => notes.shown(row.get("image"), files),
                    false => ["", ".jpg", ".png"]
                        .iter()
                        .map(|e| notes.file(&format!("{data}{e}"), files))
                        .find(|s| !s.is_empty())
                        .unwrap_or_default(),
                };
                items.push(Item::new(id, data, facts).with(shown));
            }
        }
    };
    if let Some(path) = files.named(&["SEED-Bench.json"]) {
        let all = table::json(&path)?;
        if let Some(types) = all["question_type"].as_object() {
            names = types.iter().filter_map(|(k, v)| Some((v.as_i64()?, k.clone()))).collect();
        }
        for (n, q) in all["questions"].as_array().into_iter().flatten().enumerate() {
            if let Cell::Group(row) = Cell::of_json(q) {
                take(n, &row, &names, notes);
            }
        }
    } else {
        let parquet = files.parquet("test");
        files.rows(
            ("seed", "SEED-Bench.json or test-*.parquet"),
            &parquet,
            &["question_id", "question_type_id", "answer", "choice_a"],
            notes,
            &mut |n, row, notes| {
                take(n, row, &names, notes);
                Ok(())
            },
        )?;
    }
    Ok(without_repeats(items, notes))
}

/// What an answer says, by a program's rule.
type Reading<'a> = &'a dyn Fn(&str, &Item) -> Option<String>;

fn score_seed(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let rules: [(&str, Reading); 3] = [
        ("llava", &|t, _| Some(t.to_owned())),
        ("lmms", &|t, _| t.trim().chars().next().map(|c| c.to_uppercase().to_string())),
        ("vlmevalkit", &|t, item| can_infer(t, &item.texts("choices"))),
    ];
    for (rule, read) in rules {
        let right = |(i, a): (&Item, &Answer)| read(&a.text, i).as_deref() == Some(i.text("label"));
        let right: Vec<bool> = items.iter().zip(answers).map(right).collect();
        let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, item) in items.iter().enumerate() {
            groups.entry(item.text("data_type").to_owned()).or_default().push(i);
            groups.entry(item.text("type").to_owned()).or_default().push(i);
        }
        shares(&mut out, rule, &right, &groups, "accuracy/all");
    }
    Ok(out)
}

fn load_ai2d(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut take = |n: usize,
                    id: String,
                    options: Vec<String>,
                    label: Option<String>,
                    question: Option<String>,
                    shown: Vec<Shown>,
                    notes: &mut Notes| {
        match label.filter(|l| (0..options.len()).any(|i| letter(i) == *l)) {
            None => notes.skip(format!("row {n}: answer outside the options")),
            Some(label) => {
                let facts = json!({"choices": options, "label": label, "question": question});
                items.push(Item::new(id.clone(), id, facts).with(shown));
            }
        }
    };
    let parquet = files.parquet("test");
    if !parquet.is_empty() {
        files.rows(
            ("ai2d", "parquet files"),
            &parquet,
            &["question", "options", "answer"],
            notes,
            &mut |n, row, notes| {
                let label = row.get("answer").int().and_then(|i| usize::try_from(i).ok()).map(letter);
                let shown = notes.shown(row.get("image"), files);
                take(n, n.to_string(), row.get("options").texts(), label, row.text("question"), shown, notes);
                Ok(())
            },
        )?;
    } else if let Some(tsv) = files.named(&["AI2D_TEST.tsv"]) {
        table::tsv(&tsv, notes, &mut |n, row, notes| {
            needs(row, &["index", "question", "answer", "A"], "ai2d", "AI2D_TEST.tsv")?;
            let options =
                ["A", "B", "C", "D", "E"].iter().filter_map(|c| row.text(c)).filter(|t| !t.is_empty()).collect();
            let (id, shown) = (row.text("index").unwrap_or_default(), notes.shown(row.get("image"), files));
            take(n, id, options, row.text("answer"), row.text("question"), shown, notes);
            Ok(())
        })?;
    } else {
        return Err(files.nothing("ai2d", "test-*.parquet or AI2D_TEST.tsv"));
    }
    Ok(without_repeats(items, notes))
}

fn score_ai2d(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let bare = |t: &str| t.trim().to_lowercase().replace(|c: char| c.is_ascii_punctuation(), "");
    let none = BTreeMap::new();
    // a letter and a full stop at the beginning, or the whole answer
    let lmms = |t: &str| match t.trim().chars().next() {
        Some(c) if c.is_ascii_uppercase() && t.trim()[1..].starts_with('.') => c.to_lowercase().to_string(),
        _ => bare(t),
    };
    let lmms: Vec<bool> = items.iter().zip(answers).map(|(i, a)| lmms(&a.text) == bare(i.text("label"))).collect();
    shares(&mut out, "lmms", &lmms, &none, "accuracy");
    let kit = |(i, a): (&Item, &Answer)| can_infer(&a.text, &i.texts("choices")).as_deref() == Some(i.text("label"));
    let kit: Vec<bool> = items.iter().zip(answers).map(kit).collect();
    shares(&mut out, "vlmevalkit", &kit, &none, "accuracy");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_read_as_each_program_reads_them() {
        let options = ["a vase".to_owned(), "banana".to_owned(), "kite".to_owned()];
        assert_eq!(can_infer("B.", &options).as_deref(), Some("B"));
        assert_eq!(can_infer("The answer is a vase", &options).as_deref(), Some("A"));
        assert_eq!(can_infer("B, because the others do not fit", &options), None);
        assert_eq!(can_infer("it is the kite", &options).as_deref(), Some("C"));
        assert_eq!(the_answer_is("The answer is B"), None);
        assert_eq!(the_answer_is("The answer is Apple.").as_deref(), Some("A"));
        assert_eq!(the_answer_is("The answer is B.").as_deref(), Some("B"));
    }
}
