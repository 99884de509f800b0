//! Captions of COCO and NoCaps.

use super::table::{self, Cell};
use super::{Answer, Files, Item, Notes, Scores, Shipped, without_repeats};
use crate::Result;
use crate::metrics::captions::{Case, score};
use crate::metrics::ptb::tokenised;
use serde_json::json;
use std::collections::BTreeMap;

/// COCO captions.
pub const COCO: Shipped = Shipped {
    name: "coco_caption",
    about: "captions (COCO)",
    load: load_coco,
    ask: super::ask::caption,
    score: score_captions,
};
/// NoCaps.
pub const NOCAPS: Shipped = Shipped {
    name: "nocaps",
    about: "captions of objects that COCO has not (NoCaps)",
    load: load_nocaps,
    ask: super::ask::caption,
    score: score_captions,
};

/// Pictures of a COCO annotation file in its order, references in theirs.
fn coco_json(path: &std::path::Path, files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let json = table::json(path)?;
    let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for a in json["annotations"].as_array().into_iter().flatten() {
        if let Cell::Group(row) = Cell::of_json(a) {
            refs.entry(row.text("image_id").unwrap_or_default()).or_default().extend(row.text("caption"));
        }
    }
    let mut items = Vec::new();
    for image in json["images"].as_array().into_iter().flatten() {
        let id = Cell::of_json(&image["id"]).text().unwrap_or_default();
        match refs.get(&id) {
            Some(refs) => {
                let shown = notes.file(image["file_name"].as_str().unwrap_or_default(), files);
                items.push(Item::new(id.clone(), id, json!({"references": refs})).with(shown));
            }
            None => notes.skip(format!("picture {id}: no captions")),
        }
    }
    Ok(items)
}

fn load_coco(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    if let Some(path) = files.named(&["captions_val2014.json", "captions_val2017.json"]) {
        return coco_json(&path, files, notes);
    }
    let Some(path) = files.named(&["dataset_coco.json"]) else {
        return Err(files.nothing("coco_caption", "captions_val2014.json or dataset_coco.json"));
    };
    let json = table::json(&path)?;
    let mut items = Vec::new();
    for image in json["images"].as_array().into_iter().flatten() {
        let id = Cell::of_json(&image["cocoid"]).text().unwrap_or_default();
        let raw = |s: &serde_json::Value| s["raw"].as_str().map(str::to_owned);
        let refs: Vec<String> = image["sentences"].as_array().into_iter().flatten().filter_map(raw).collect();
        let shown = notes.file(image["filename"].as_str().unwrap_or_default(), files);
        items.push(Item::new(id.clone(), id, json!({"references": refs})).with(shown));
    }
    Ok(without_repeats(items, notes))
}

fn load_nocaps(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let original = files.find(|p| p.contains("/nocaps_val") && p.ends_with(".json"));
    if let Some(path) = original.first() {
        return coco_json(path, files, notes);
    }
    let parquet = files.parquet("validation");
    let mut items = Vec::new();
    files.rows(
        ("nocaps", "nocaps_val_4500_captions.json or validation-*.parquet"),
        &parquet,
        &["image_id", "annotations_captions"],
        notes,
        &mut |_, row, notes| {
            let id = row.text("image_id").unwrap_or_default();
            let facts = json!({"references": row.get("annotations_captions").texts()});
            items.push(Item::new(id.clone(), id, facts).with(notes.shown(row.get("image"), files)));
            Ok(())
        },
    )?;
    Ok(without_repeats(items, notes))
}

/// What becomes of a text before it is compared.
type Reading<'a> = &'a dyn Fn(&str) -> String;

fn score_captions(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let plain = |t: &str| t.to_owned();
    let rules: [(&str, Reading); 2] = [("pycocoevalcap", &tokenised), ("vlmevalkit_untokenised", &plain)];
    for (rule, words) in rules {
        let case = |(i, a): (&Item, &Answer)| Case {
            hypothesis: words(&a.text),
            references: i.texts("references").iter().map(|r| words(r)).collect(),
        };
        let cases: Vec<Case> = items.iter().zip(answers).map(case).collect();
        let s = score(&cases);
        for (name, value) in &s.corpus {
            let key = format!("{name}@{rule}");
            if name.starts_with("bleu") {
                out.value(key, *value);
            } else {
                out.mean(key, s.each.iter().map(|e| e[name]).enumerate().collect());
            }
        }
    }
    Ok(out)
}
