//! Open questions: VQAv2, TextVQA, GQA.

use super::table::{self, Cell, Row};
use super::{Answer, Files, Item, Notes, Scores, Shipped, without_repeats};
use crate::Result;
use crate::metrics::vqa::{Rule, accuracy};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// VQAv2.
pub const VQAV2: Shipped = Shipped {
    name: "vqav2",
    about: "open questions with ten people's answers (VQAv2)",
    load: load_vqav2,
    ask: super::ask::short,
    score: score_vqav2,
};
/// TextVQA.
pub const TEXTVQA: Shipped = Shipped {
    name: "textvqa",
    about: "questions about text in pictures (TextVQA)",
    load: load_textvqa,
    ask: super::ask::short,
    score: score_textvqa,
};
/// GQA.
pub const GQA: Shipped = Shipped {
    name: "gqa",
    about: "compositional questions (GQA)",
    load: load_gqa,
    ask: super::ask::short,
    score: score_gqa,
};

fn answers_of(cell: &Cell) -> Vec<String> {
    let one = |c: &Cell| c.group().map_or_else(|| c.text(), |g| g.text("answer"));
    cell.list().iter().filter_map(one).collect()
}

fn load_vqav2(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut take = |id: String, question: &Row, annotation: &Row, notes: &mut Notes| {
        let answers = answers_of(annotation.get("answers"));
        if answers.is_empty() {
            notes.skip(format!("question {id}: no answers"));
            return;
        }
        if answers.len() != 10 {
            notes.skip(format!("question {id}: {} answers instead of 10", answers.len()));
            return;
        }
        let text = |name: &str| annotation.text(name).unwrap_or_default();
        let facts = json!({"question": question.text("question"), "answers": answers,
            "answer_type": text("answer_type"), "question_type": text("question_type")});
        let picture = question.text("image_id").unwrap_or_default();
        let shown = match question.has("image") {
            true => notes.shown(question.get("image"), files),
            false => notes.file(&format!("COCO_val2014_{picture:0>12}.jpg"), files),
        };
        items.push(Item::new(id, picture, facts).with(shown));
    };
    let questions = files.find(|p| p.contains("OpenEnded") && p.ends_with("questions.json"));
    let annotations = files.find(|p| p.ends_with("annotations.json"));
    if let (Some(q), Some(a)) = (questions.first(), annotations.first()) {
        let (questions, annotations) = (table::json(q)?, table::json(a)?);
        let mut by_id: HashMap<String, Row> = HashMap::new();
        for a in annotations["annotations"].as_array().into_iter().flatten() {
            if let Cell::Group(row) = Cell::of_json(a) {
                let id = row.text("question_id").unwrap_or_default();
                match by_id.entry(id) {
                    Entry::Occupied(e) => notes.say(format!("question {}: annotated twice, the first counts", e.key())),
                    Entry::Vacant(e) => drop(e.insert(row)),
                }
            }
        }
        let pictures = files.dir.join("val2014");
        for q in questions["questions"].as_array().into_iter().flatten() {
            let Cell::Group(row) = Cell::of_json(q) else { continue };
            let id = row.text("question_id").unwrap_or_default();
            let picture = format!("COCO_val2014_{:0>12}.jpg", row.text("image_id").unwrap_or_default());
            match by_id.get(&id) {
                None => notes.skip(format!("question {id}: no annotation")),
                Some(_) if pictures.is_dir() && !pictures.join(&picture).is_file() => {
                    notes.skip(format!("question {id}: picture {picture} missing in val2014/"));
                }
                Some(a) => take(id, &row, a, notes),
            }
        }
    } else {
        let parquet = files.parquet("validation");
        files.rows(
            ("vqav2", "v2_*_questions.json and annotations, or validation-*.parquet"),
            &parquet,
            &["question_id", "question", "answers"],
            notes,
            &mut |_, row, notes| {
                take(row.text("question_id").unwrap_or_default(), row, row, notes);
                Ok(())
            },
        )?;
    }
    Ok(without_repeats(items, notes))
}

const RULES: [(&str, Rule); 6] = [
    ("official", Rule::Official),
    ("official_refs_punct_only", Rule::OfficialRefsPunctOnly),
    ("llava", Rule::Llava),
    ("lmms", Rule::Lmms),
    ("vlmevalkit", Rule::VlmEvalKit),
    ("m4c", Rule::M4c),
];

fn score_vqav2(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        groups.entry(item.text("answer_type").to_owned()).or_default().push(i);
        groups.entry(format!("type={}", item.text("question_type"))).or_default().push(i);
    }
    for (name, rule) in RULES {
        let each = |(i, a): (&Item, &Answer)| accuracy(rule, &a.text, &i.texts("answers"));
        let each: Vec<f64> = items.par_iter().zip(answers).map(each).collect();
        out.mean(format!("vqa_acc@{name}"), each.iter().copied().enumerate().collect());
        for (group, which) in &groups {
            out.mean(format!("vqa_acc/{group}@{name}"), which.iter().map(|&i| (i, each[i])).collect());
        }
    }
    Ok(out)
}

fn load_textvqa(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut take = |row: &Row, notes: &Notes| {
        let facts = json!({"question": row.text("question"), "answers": answers_of(row.get("answers"))});
        let (id, picture) = (row.text("question_id").unwrap_or_default(), row.text("image_id").unwrap_or_default());
        let shown = match row.has("image") {
            true => notes.shown(row.get("image"), files),
            false => notes.file(&format!("{picture}.jpg"), files),
        };
        items.push(Item::new(id, picture, facts).with(shown));
    };
    let original = files.find(|p| p.contains("/TextVQA_0.") && p.ends_with("_val.json"));
    if let Some(path) = original.first() {
        let json = table::json(path)?;
        for q in json["data"].as_array().into_iter().flatten() {
            if let Cell::Group(row) = Cell::of_json(q) {
                take(&row, notes);
            }
        }
    } else {
        let parquet = files.parquet("validation");
        files.rows(
            ("textvqa", "TextVQA_0.5.1_val.json or validation-*.parquet"),
            &parquet,
            &["question_id", "question", "answers"],
            notes,
            &mut |_, row, notes| {
                take(row, notes);
                Ok(())
            },
        )?;
    }
    Ok(without_repeats(items, notes))
}

fn score_textvqa(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    for (name, rule) in [("m4c", Rule::M4c), ("lmms", Rule::M4c), ("vlmevalkit", Rule::VlmEvalKit)] {
        let each = |(i, a): (&Item, &Answer)| {
            // lmms-eval strips every answer
            let text = if name == "lmms" { a.text.trim() } else { &a.text };
            accuracy(rule, text, &i.texts("answers"))
        };
        out.mean(format!("vqa_acc@{name}"), items.iter().zip(answers).map(each).enumerate().collect());
    }
    Ok(out)
}

fn load_gqa(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    // the hub's copy has its pictures in a table of their own
    let mut pictures = std::collections::HashMap::new();
    let tables = files.find(|p| p.contains("images") && p.contains("/testdev-") && p.ends_with(".parquet"));
    if notes.spool.is_some() && !tables.is_empty() {
        table::parquet(&tables, notes, &mut |_, row, notes| {
            pictures.insert(row.text("id").unwrap_or_default(), notes.shown(row.get("image"), files));
            Ok(())
        })?;
    }
    let mut take = |id: String, row: &Row, notes: &Notes| {
        let types = row.get("types").group().cloned().unwrap_or_default();
        let groups = row.get("groups").group().cloned().unwrap_or_default();
        let facts = json!({"question": row.text("question"), "answer": row.text("answer"),
            "structural": types.text("structural"), "global": groups.text("global")});
        let picture = row.text("imageId").unwrap_or_default();
        let shown = pictures.get(&picture).cloned();
        let shown = shown.unwrap_or_else(|| notes.file(&format!("{picture}.jpg"), files));
        items.push(Item::new(id, picture, facts).with(shown));
    };
    if let Some(path) = files.named(&["testdev_balanced_questions.json"]) {
        let json = table::json(&path)?;
        for (id, q) in json.as_object().into_iter().flatten() {
            if let Cell::Group(row) = Cell::of_json(q) {
                take(id.clone(), &row, notes);
            }
        }
    } else {
        let parquet = files.find(|p| p.contains("instructions") && p.contains("/testdev-") && p.ends_with(".parquet"));
        let task = ("gqa", "testdev_balanced_questions.json or testdev_balanced_instructions/*.parquet");
        files.rows(task, &parquet, &["id", "imageId", "question", "answer"], notes, &mut |_, row, notes| {
            take(row.text("id").unwrap_or_default(), row, notes);
            Ok(())
        })?;
    }
    Ok(without_repeats(items, notes))
}

/// What becomes of a text before it is compared.
type Reading<'a> = &'a dyn Fn(&str) -> String;

fn score_gqa(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let bare = |t: &str| t.trim().to_lowercase().replace(|c: char| c.is_ascii_punctuation(), "");
    let rules: [(&str, Reading, Reading); 4] = [
        ("llava", &|p| p.trim_end_matches('.').to_lowercase(), &|g| g.to_owned()),
        ("official_raw", &|p| p.to_owned(), &|g| g.to_owned()),
        ("lmms", &bare, &bare),
        ("vlmevalkit", &|p| p.trim().to_lowercase(), &|g| g.trim().to_lowercase()),
    ];
    for (rule, of_answer, of_gold) in rules {
        let said: Vec<String> = answers.iter().map(|a| of_answer(&a.text)).collect();
        let gold: Vec<String> = items.iter().map(|i| of_gold(i.text("answer"))).collect();
        let right = |i: usize| (i, f64::from(said[i] == gold[i]));
        out.mean(format!("accuracy@{rule}"), (0..items.len()).map(right).collect());
        if rule == "lmms" || rule == "vlmevalkit" {
            continue;
        }
        let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, item) in items.iter().enumerate() {
            let kind = item.text("structural");
            groups.entry(format!("accuracy/{kind}")).or_default().push(i);
            groups.entry(if kind == "query" { "open".into() } else { "binary".into() }).or_default().push(i);
        }
        for (group, which) in groups {
            out.mean(format!("{group}@{rule}"), which.into_iter().map(right).collect());
        }
        out.value(format!("distribution@{rule}"), distribution(items, &gold, &said));
    }
    Ok(out)
}

/// How often each text came.
type Counts<'a> = BTreeMap<&'a str, f64>;

/// GQA's distance of the answers' distribution from the labels', by global groups: chi-square weighted by counts, over 100.
fn distribution(items: &[Item], gold: &[String], said: &[String]) -> f64 {
    let mut groups: BTreeMap<&str, (Counts, Counts)> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        if let Value::String(global) = &item.facts["global"] {
            let (labels, answers) = groups.entry(global).or_default();
            *labels.entry(&gold[i]).or_default() += 1.0;
            *answers.entry(&said[i]).or_default() += 1.0;
        }
    }
    let (mut sum, mut all) = (0.0, 0.0);
    for (labels, answers) in groups.values() {
        let chi: f64 = labels.iter().map(|(l, e)| (answers.get(l).copied().unwrap_or(0.0) - e).powi(2) / e).sum();
        let n: f64 = labels.values().sum();
        sum += chi * n;
        all += n;
    }
    if all == 0.0 { 0.0 } else { sum / all / 100.0 }
}
