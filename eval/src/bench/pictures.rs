//! Any folder of pictures: through a model's image tokenizer and back, and drawn by class.

use super::ask::{Ask, Names};
use super::matching;
use super::{Answer, Files, Item, Notes, Scores, Shipped};
use crate::{Error, Result};
use qlip::data::Pictures;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// Reconstruction.
pub const RECONSTRUCTION: Shipped = Shipped {
    name: "reconstruction",
    about: "pictures through the model's image tokenizer and back, and the entropy of their codes",
    load: load_pictures,
    ask: |item| Ok(Ask::Reconstruct { keep: item.facts["keep"] == true }),
    score: score_reconstruction,
};
/// Drawings of classes.
pub const DRAWN_CLASSES: Shipped = Shipped {
    name: "drawn_classes",
    about: "drawings of a folder's classes, by what the model's own zero-shot head sees in them",
    load: load_classes,
    ask: |item| {
        let class = item.number("class");
        let key = (1000 * class + item.number("n")) as u64;
        Ok(Ask::DrawClass { classes: item.classes.clone(), class, key })
    },
    score: score_classes,
};

/// Reconstructions that are kept as files, for the report.
const KEPT: usize = 64;
/// Drawings of a class.
const DRAWINGS: usize = 100;

/// The test split of a folder; the folder itself where it has no splits.
pub fn test_split(files: &Files) -> Result<Pictures> {
    Pictures::open(&files.dir, "test")
}

fn load_pictures(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let found = test_split(files)?;
    let mut items = Vec::new();
    for i in 0..found.len() {
        let id = i.to_string();
        // a picture that cannot be read is said, and the rest is measured
        match notes.spooled(|| found.image(i)?.to_png()) {
            Ok(shown) => items.push(Item::new(id.clone(), id, json!({"keep": i < KEPT})).with(shown)),
            Err(e) => notes.skip(e.to_string()),
        }
    }
    Ok(items)
}

fn score_reconstruction(items: &[Item], answers: &[Answer], _: &Files, notes: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    let (mut psnr, mut ssim, mut exact) = (Vec::new(), Vec::new(), 0usize);
    let mut codes: Vec<HashMap<u64, usize>> = Vec::new();
    for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
        let line = &answer.line;
        match line["psnr"].as_f64() {
            Some(v) => psnr.push((i, v)),
            // JSON has no infinity: the picture came back as it was
            None if line.get("psnr").is_some() => exact += 1,
            None => return Err(Error::invalid(format!("answer {}: no `psnr`", item.id))),
        }
        if let Some(v) = line["ssim"].as_f64() {
            ssim.push((i, v));
        }
        let (bits, group) = (line["bits"].as_u64().unwrap_or(0), line["group"].as_u64().unwrap_or(0));
        if bits == 0 || group == 0 || !bits.is_multiple_of(group) || group > 63 {
            continue;
        }
        codes.resize((bits / group) as usize, HashMap::new());
        for code in answer.codes() {
            for (g, counts) in codes.iter_mut().enumerate() {
                let part = code >> (bits - group * (g as u64 + 1)) & ((1 << group) - 1);
                *counts.entry(part).or_default() += 1;
            }
        }
    }
    if exact > 0 {
        notes.say(format!("{exact} pictures came back exactly; psnr is the mean of the others"));
    }
    out.mean("psnr@rgb8", psnr);
    out.mean("ssim@gauss11", ssim);
    if !codes.is_empty() {
        out.value("code_entropy@bits_a_token", codes.iter().map(crate::visual::entropy).sum());
    }
    Ok(out)
}

fn load_classes(files: &Files, _: &mut Notes) -> Result<Vec<Item>> {
    let found = test_split(files)?;
    if found.classes.is_empty() {
        return Err(Error::bad_file(&files.dir, "pictures without classes"));
    }
    let classes: Names = found.classes.clone().into();
    let all = found.classes.iter().enumerate().flat_map(|(c, name)| (0..DRAWINGS).map(move |n| (c, name, n)));
    let item = |(c, name, n): (usize, &String, usize)| {
        let facts = json!({"class": c, "n": n, "name": name, "question": name});
        let id = format!("{name}-{n}");
        Item::new(id.clone(), id, facts).of_classes(&classes)
    };
    Ok(all.map(item).collect())
}

fn score_classes(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let Some((mut near, _)) = matching::nearness(items, answers, "class") else {
        return Err(Error::invalid("answers without `scores`: how near the drawing is to each class"));
    };
    let mut out = Scores::default();
    let Some(right) = near.0.remove("acc1@clip_benchmark") else { return Ok(out) };
    let mut by: BTreeMap<&str, Vec<(usize, f64)>> = BTreeMap::new();
    for (i, value) in &right.of {
        by.entry(items[*i].text("name")).or_default().push((*i, *value));
    }
    by.into_iter().for_each(|(name, of)| out.mean(format!("asked_class/{name}@own_zero_shot"), of));
    out.0.insert("asked_class@own_zero_shot".into(), right);
    Ok(out)
}
