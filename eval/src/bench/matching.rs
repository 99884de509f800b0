//! Pictures matched with words by features: zero-shot classes in CIFAR's layout, retrieval in Flickr30k's. The features or scores lie beside
//! the answers as .npy files.

use super::ask::Names;
use super::table::{self, Cell};
use super::{Answer, Files, Item, Notes, Scores, Shipped};
use crate::metrics::retrieval::{Ranks, Ties};
use crate::{Error, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// CIFAR-10.
pub const CIFAR: Shipped = Shipped {
    name: "cifar",
    about: "zero-shot classes (CIFAR-10's layout)",
    load: load_cifar,
    ask: super::ask::classes,
    score: score_cifar,
};
/// Flickr30k.
pub const FLICKR30K: Shipped = Shipped {
    name: "flickr30k",
    about: "retrieval both ways (Flickr30k)",
    load: |files, notes| load_karpathy(("flickr30k", "dataset_flickr30k.json"), files, notes),
    ask: super::ask::none,
    score: score_flickr,
};

/// COCO.
pub const COCO_RETRIEVAL: Shipped = Shipped {
    name: "coco_retrieval",
    about: "retrieval both ways (COCO, Karpathy's test split: 5,000 pictures)",
    load: |files, notes| load_karpathy(("coco_retrieval", "dataset_coco.json"), files, notes),
    ask: super::ask::none,
    score: score_flickr,
};

/// A .npy file of float32 or float64: shape and values.
pub fn npy(path: &Path) -> Result<(Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let bad = |why: &str| Error::bad_file(path, format!("not a .npy file ({why})"));
    if !bytes.starts_with(b"\x93NUMPY") || bytes.len() < 12 {
        return Err(bad("no NUMPY mark"));
    }
    let (start, length): (usize, usize) = match bytes[6] {
        1 => (10, usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))),
        _ => (12, u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize),
    };
    let header = bytes.get(start..start.saturating_add(length)).ok_or_else(|| bad("cut short"))?;
    let header = String::from_utf8_lossy(header).into_owned();
    if header.contains("'fortran_order': True") {
        return Err(bad("columns first; save it with numpy.ascontiguousarray"));
    }
    let dims = header.split_once('(').and_then(|p| p.1.split_once(')')).ok_or_else(|| bad("no shape"))?.0;
    let shape: Vec<usize> = dims.split(',').filter_map(|d| d.trim().parse().ok()).collect();
    let data = &bytes[start + length..];
    let values: Vec<f64> = if header.contains("<f4") {
        data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
    } else if header.contains("<f8") {
        data.chunks_exact(8).map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])).collect()
    } else {
        return Err(bad("neither float32 nor float64"));
    };
    if shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) != Some(values.len()) {
        return Err(bad("shape and data differ"));
    }
    Ok((shape, values))
}

fn wanted(files: &Files, name: &str) -> Result<(Vec<usize>, Vec<f64>)> {
    let path = files
        .beside(name)
        .ok_or_else(|| Error::bad_file(files.dir.join(name), "no such file here or one folder up"))?;
    npy(&path)
}

fn load_cifar(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let parquet = files.parquet("test");
    let task = ("cifar", "plain_text/test-*.parquet");
    let Some(first) = parquet.first() else { return Err(files.nothing(task.0, task.1)) };
    let names = table::class_names(first, "label")?;
    if names.is_empty() {
        let why =
            "no class names in the file (schema metadata `huggingface`): labels alone cannot be asked for in words";
        return Err(Error::bad_file(first, why));
    }
    let classes: Names = names.clone().into();
    let mut items = Vec::new();
    files.rows(task, &parquet, &["label"], notes, &mut |n, row, notes| {
        match row.get("label").int() {
            Some(l) if usize::try_from(l).is_ok_and(|l| l < names.len()) => {
                let facts = json!({"label": l, "name": names[l as usize], "row": n});
                let cell = if row.has("img") { row.get("img") } else { row.get("image") };
                let item = Item::new(n.to_string(), n.to_string(), facts).with(notes.shown(cell, files));
                items.push(item.of_classes(&classes));
            }
            Some(l) => notes.skip(format!("row {n}: label {l} outside 0..{}", names.len() - 1)),
            None => notes.skip(format!("row {n}: no label")),
        }
        Ok(())
    })?;
    Ok(items)
}

fn unit(v: &[f64]) -> Vec<f64> {
    let length = v.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    v.iter().map(|x| x / length).collect()
}

/// How near each picture was found to each class, where a model was asked; `label` is the fact that holds the right one's number.
pub fn nearness(items: &[Item], answers: &[Answer], label: &str) -> Option<(Scores, Vec<Vec<f64>>)> {
    let of = |a: &Answer| -> Option<Vec<f64>> { a.line["scores"].as_array()?.iter().map(|v| v.as_f64()).collect() };
    let rows = answers.iter().map(|a| of(a).filter(|row| !row.is_empty())).collect::<Option<Vec<_>>>()?;
    let mut out = Scores::default();
    let rank = |(item, row): (&Item, &Vec<f64>)| {
        let right = item.number(label);
        let own = row.get(right).copied().unwrap_or(f64::NEG_INFINITY);
        row.iter().enumerate().filter(|(c, s)| **s > own || (**s == own && *c < right)).count()
    };
    let ranks: Vec<usize> = items.iter().zip(&rows).map(rank).collect();
    for k in [1, 5] {
        out.mean(format!("acc{k}@clip_benchmark"), ranks.iter().map(|&r| f64::from(r < k)).enumerate().collect());
    }
    let mut by: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (item, rank) in items.iter().zip(&ranks) {
        let class = by.entry(item.number(label)).or_default();
        *class = (class.0 + f64::from(*rank == 0), class.1 + 1.0);
    }
    let recall = by.values().map(|c| c.0 / c.1).sum::<f64>() / by.len().max(1) as f64;
    out.value("mean_per_class_recall@clip_benchmark", recall);
    Some((out, rows))
}

fn score_cifar(items: &[Item], answers: &[Answer], files: &Files, _: &mut Notes) -> Result<Scores> {
    if let Some(scores) = nearness(items, answers, "label").filter(|_| !items.is_empty()) {
        return Ok(scores.0);
    }
    let (image_shape, images) = wanted(files, "image_features.npy")?;
    let (text_shape, texts) = wanted(files, "text_features.npy")?;
    let (&[n, d], &[classes, templates, width]) = (image_shape.as_slice(), text_shape.as_slice()) else {
        return Err(Error::invalid(
            "image_features.npy must be [pictures, width], text_features.npy [classes, templates, width]",
        ));
    };
    if d != width || items.iter().any(|i| i.facts["row"].as_u64().is_none_or(|r| r as usize >= n)) {
        return Err(Error::invalid("features do not fit each other, or the pictures"));
    }
    // each template's vector at length 1, their mean, at length 1 again
    let class = |c: usize| {
        let mut mean = vec![0.0; d];
        for t in 0..templates {
            let at = (c * templates + t) * d;
            unit(&texts[at..at + d]).iter().zip(&mut mean).for_each(|(v, m)| *m += v / templates as f64);
        }
        unit(&mean)
    };
    let class: Vec<Vec<f64>> = (0..classes).map(class).collect();
    let (mut first, mut five) = (Vec::new(), Vec::new());
    let mut by_class = vec![(0.0, 0.0); classes];
    for (i, item) in items.iter().enumerate() {
        let row = item.number("row");
        let label = item.number("label");
        let image = unit(&images[row * d..(row + 1) * d]);
        let score = |c: &Vec<f64>| c.iter().zip(&image).map(|(a, b)| a * b).sum::<f64>();
        let scores: Vec<f64> = class.iter().map(score).collect();
        let better =
            scores.iter().enumerate().filter(|(c, s)| **s > scores[label] || (**s == scores[label] && *c < label));
        let rank = better.count();
        first.push((i, f64::from(rank == 0)));
        five.push((i, f64::from(rank < 5)));
        by_class[label].0 += f64::from(rank == 0);
        by_class[label].1 += 1.0;
    }
    let mut out = Scores::default();
    out.mean("acc1@clip_benchmark", first);
    if classes >= 5 {
        out.mean("acc5@clip_benchmark", five);
    }
    let recalls: Vec<f64> = by_class.iter().filter(|c| c.1 > 0.0).map(|c| c.0 / c.1).collect();
    out.value("mean_per_class_recall@clip_benchmark", recalls.iter().sum::<f64>() / recalls.len().max(1) as f64);
    Ok(out)
}

/// Karpathy's file, or the hub's table.
fn load_karpathy((task, file): (&str, &str), files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut take = |name: String, captions: usize| {
        let n = items.len();
        items.push(Item::new(name.clone(), name, json!({"captions": captions, "column": n})));
    };
    if let Some(path) = files.named(&[file]) {
        let json = table::json(&path)?;
        for image in json["images"].as_array().into_iter().flatten().filter(|i| i["split"] == "test") {
            let captions = image["sentences"].as_array().map_or(0, Vec::len);
            take(image["filename"].as_str().unwrap_or_default().to_owned(), captions);
        }
    } else {
        let parquet = files.parquet("test");
        files.rows(
            (task, &format!("{file} or test-*.parquet")),
            &parquet,
            &["caption", "filename"],
            notes,
            &mut |_, row, _| {
                if row.text("split").is_none_or(|s| s == "test") {
                    let captions = match row.get("caption") {
                        Cell::List(l) => l.len(),
                        _ => 1,
                    };
                    take(row.text("filename").unwrap_or_default(), captions);
                }
                Ok(())
            },
        )?;
    }
    Ok(items)
}

fn score_flickr(items: &[Item], _: &[Answer], files: &Files, _: &mut Notes) -> Result<Scores> {
    let (shape, values) = wanted(files, "scores.npy")?;
    let owner: Vec<usize> = items
        .iter()
        .enumerate()
        .flat_map(|(i, item)| std::iter::repeat_n(i, item.facts["captions"].as_u64().unwrap_or(0) as usize))
        .collect();
    if shape != [owner.len(), items.len()] {
        let (r, c) = (owner.len(), items.len());
        return Err(Error::invalid(format!("scores.npy is {shape:?}; {r} captions and {c} pictures are here")));
    }
    let scores: Vec<Vec<f64>> = values.chunks_exact(items.len().max(1)).map(<[f64]>::to_vec).collect();
    let ranks = Ranks::of(&scores, &owner, Ties::Pessimistic);
    let mut out = Scores::default();
    for (name, value) in ranks.scores() {
        match name.split_once("_R@") {
            // that program's means are float32
            Some((way, k)) => out.value(format!("{way}_recall@{k}@clip_benchmark"), f64::from(value as f32)),
            None => out.value(name.replace("_mean", "_retrieval_mean").replace("_median", "_retrieval_median"), value),
        }
    }
    Ok(out)
}
