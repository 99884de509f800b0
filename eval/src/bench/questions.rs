//! Drawings that are asked about by any model that sees: DPG-Bench (Hu et al. 2024) and T2I-CompBench (Huang et al. 2023). The questions are
//! the benchmarks' own files; an answer is a line a question.

use super::ask::Shown;
use super::table::{self, Cell};
use super::{Answer, Files, Item, Notes, Scores, Shipped, without_repeats};
use crate::metrics::yes_no::{Said, vlmevalkit};
use crate::{Error, Result};
use qlip::Image;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// DPG-Bench.
pub const DPG: Shipped = Shipped {
    name: "dpg",
    about: "drawings of long prompts, by questions that depend on each other (DPG-Bench's dpg_bench.csv)",
    load: load_dpg,
    ask: super::ask::short_of_each,
    score: score_dpg,
};
/// T2I-CompBench's questions about attributes.
pub const T2I_COMPBENCH: Shipped = Shipped {
    name: "t2i_compbench",
    about: "drawings by a question for each thing in the prompt (T2I-CompBench's vqa_test.json)",
    load: load_compbench,
    ask: super::ask::short,
    score: score_compbench,
};

/// Pictures of a prompt: ITEM.png; ITEM.png in a folder named grid.., which is four of them (two by two); or 0.png, 1.png .. in a folder ITEM. Nothing
/// where it was not drawn.
fn pictures_of(item: &str, files: &Files, notes: &Notes) -> Result<Option<Vec<Shown>>> {
    const ENDS: [&str; 2] = ["png", "jpg"];
    let folder = files.dir.join("images").join(item);
    let nth = |n: usize| ENDS.iter().map(|e| folder.join(format!("{n}.{e}"))).find(|p| p.is_file());
    let several: Vec<Shown> = (0..).map_while(nth).map(Shown::File).collect();
    if !several.is_empty() {
        return Ok(Some(several));
    }
    let one = ENDS.iter().find_map(|e| files.picture(&format!("{item}.{e}")));
    let Some(Shown::File(path)) = one else { return Ok(None) };
    let grid = path.parent().and_then(|p| p.file_name()).is_some_and(|f| f.to_string_lossy().contains("grid"));
    // scoring needs to know no more than that it is there
    if !grid || notes.spool.is_none() {
        return Ok(Some(vec![Shown::File(path)]));
    }
    let whole = Image::open(&path)?;
    let (w, h) = (whole.width() / 2, whole.height() / 2);
    let mut four = Vec::new();
    for at in [(0, 0), (w, 0), (0, h), (w, h)] {
        four.extend(notes.spooled(|| quarter(&whole, at, (w, h)).to_png())?);
    }
    Ok(Some(four))
}

/// A part of a picture.
fn quarter(whole: &Image, (x, y): (usize, usize), (w, h): (usize, usize)) -> Image {
    let row = |r: usize| &whole.rgb()[3 * ((y + r) * whole.width() + x)..][..3 * w];
    Image::from_rgb(w, h, (0..h).flat_map(row).copied().collect())
}

fn load_dpg(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let path =
        files.named(&["dpg_bench.csv"]).ok_or_else(|| files.nothing("dpg", "dpg_bench.csv, and the drawings"))?;
    let mut items = Vec::new();
    let mut pictures: HashMap<String, Option<Vec<Shown>>> = HashMap::new();
    table::csv(&path, notes, &mut |n, row, notes| {
        super::needs(
            row,
            &["item_id", "proposition_id", "dependency", "tuple", "question_natural_language"],
            "dpg",
            "dpg_bench.csv",
        )?;
        let text = |c: &str| row.text(c).unwrap_or_default();
        let (item, question) = (text("item_id"), text("question_natural_language"));
        let after: Option<Vec<i64>> = text("dependency").split(',').map(|d| d.trim().parse().ok()).collect();
        let (Some(after), Some(number)) = (after, row.get("proposition_id").int()) else {
            notes.skip(format!("row {n}, {item}: dependency or proposition_id is no number"));
            return Ok(());
        };
        let shown = match pictures.get(&item) {
            Some(shown) => shown.clone(),
            None => {
                let found = pictures_of(&item, files, notes)?;
                pictures.insert(item.clone(), found.clone());
                found
            }
        };
        let mut facts = json!({"item": item, "proposition": number, "after": after, "question": question, "tuple": text("tuple"),
            "first_row": n == 0});
        if shown.is_none() {
            facts["picture_missing"] = json!(format!("{item}.png"));
        }
        items.push(Item::new(format!("{item}/{number}"), item, facts).with(shown.unwrap_or_default()));
        Ok(())
    })?;
    Ok(without_repeats(items, notes))
}

/// How a rule reads an answer as a yes.
type Reading = fn(&str) -> bool;

fn score_dpg(items: &[Item], answers: &[Answer], _: &Files, notes: &mut Notes) -> Result<Scores> {
    let mut out = Scores::default();
    // ELLA's program leaves out the table's first row, and takes nothing but `yes` for one
    let rules: [(&str, Reading, bool); 2] =
        [("ella", |a| a == "yes", true), ("strict", |a| vlmevalkit(a) == Said::Yes, false)];
    for (rule, yes, without_first) in rules {
        let mut of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, item) in
            items.iter().enumerate().filter(|(_, item)| !(without_first && item.facts["first_row"] == true))
        {
            of.entry(item.text("item")).or_default().push(i);
        }
        let mut pictures: BTreeMap<&str, (usize, Vec<f64>)> = BTreeMap::new();
        let mut kinds: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
        for (item, which) in &of {
            let said: Vec<Vec<String>> = which.iter().map(|&i| said(&answers[i])).collect();
            let drawn = said[0].len();
            if drawn == 0 || said.iter().any(|s| s.len() != drawn) {
                let why = "every question of a prompt needs `answers`, one for each of its drawings";
                return Err(Error::invalid(format!("answers of {item}: {why}")));
            }
            let lost = without_parent(items, which);
            if let Some(lost) = &lost
                && !notes.lines.contains(lost)
            {
                notes.say(lost.clone());
            }
            // ELLA's program fails at such a prompt, and goes on with the next
            if rule == "ella" && lost.is_some() {
                continue;
            }
            for n in 0..drawn {
                let own: Vec<f64> = said.iter().map(|s| f64::from(yes(&s[n]))).collect();
                let score = with_parents(items, which, &own);
                pictures.entry(item).or_insert((which[0], Vec::new())).1.push(score);
                // ELLA's categories are of each prompt's last drawing alone
                if rule == "ella" && n + 1 != drawn {
                    continue;
                }
                for (&i, v) in which.iter().zip(&own) {
                    let fine = items[i].text("tuple").split('(').next().unwrap_or_default().trim().to_owned();
                    let broad = fine.split('-').next().unwrap_or_default().trim().to_owned();
                    for kind in if fine == broad { vec![broad] } else { vec![broad, fine] } {
                        kinds.entry(kind).or_default().push((i, *v));
                    }
                }
            }
        }
        let each = pictures.into_values().map(|(first, s)| (first, s.iter().sum::<f64>() / s.len() as f64));
        out.mean(format!("dpg@{rule}"), each.collect());
        kinds.into_iter().for_each(|(kind, of)| out.mean(format!("dpg/{kind}@{rule}"), of));
    }
    Ok(out)
}

/// What was answered about each drawing.
fn said(answer: &Answer) -> Vec<String> {
    match answer.line["answers"].as_array() {
        Some(all) => all.iter().map(|a| a.as_str().unwrap_or_default().to_owned()).collect(),
        None => vec![answer.text.clone()],
    }
}

/// Questions that one depends on.
fn parents(item: &Item) -> impl Iterator<Item = i64> {
    item.facts["after"].as_array().into_iter().flatten().filter_map(Value::as_i64).filter(|p| *p != 0)
}

/// The first question of a prompt that depends on one which is not there.
fn without_parent(items: &[Item], which: &[usize]) -> Option<String> {
    let there: Vec<i64> = which.iter().filter_map(|&i| items[i].facts["proposition"].as_i64()).collect();
    which.iter().find_map(|&i| {
        let lost = parents(&items[i]).find(|p| !there.contains(p))?;
        Some(format!("{}: depends on question {lost}, which is not there", items[i].id))
    })
}

/// The share of a drawing's questions that are true; in the order of the table, one whose parent is not true counts nothing, whatever it was
/// answered.
fn with_parents(items: &[Item], which: &[usize], own: &[f64]) -> f64 {
    let number = |i: usize| items[i].facts["proposition"].as_i64().unwrap_or(0);
    let mut held: HashMap<i64, f64> = which.iter().zip(own).map(|(&i, v)| (number(i), *v)).collect();
    for &i in which {
        if parents(&items[i]).any(|p| held.get(&p) == Some(&0.0)) {
            held.insert(number(i), 0.0);
        }
    }
    held.values().sum::<f64>() / held.len().max(1) as f64
}

fn load_compbench(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let mut found = files.find(|p| p.ends_with("/vqa_test.json"));
    // annotation1_blip, annotation2_blip, ..: one for each thing of the prompts
    found.sort_by_key(|p| {
        let digits: String = files.shown(p).chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap_or(0)
    });
    if found.is_empty() {
        return Err(files.nothing("t2i_compbench", "annotation1_blip/vqa_test.json, .., and the drawings"));
    }
    let mut items = Vec::new();
    for (n, path) in found.iter().enumerate() {
        let all = table::json(path)?;
        for (k, row) in all.as_array().into_iter().flatten().enumerate() {
            let question = row["question"].as_str().unwrap_or_default();
            let picture = Cell::of_json(&row["question_id"]).text().unwrap_or_else(|| k.to_string());
            let image = row["image"].as_str().unwrap_or_default();
            let shown = notes.file(image, files);
            // where a prompt has fewer things its question is empty, and counts as true
            if !question.is_empty() {
                let mut facts = json!({"question": question, "picture": picture});
                if files.picture(image).is_none() {
                    facts["picture_missing"] = json!(image);
                }
                items.push(Item::new(format!("{picture}/{}", n + 1), picture, facts).with(shown));
            }
        }
    }
    Ok(without_repeats(items, notes))
}

fn score_compbench(items: &[Item], answers: &[Answer], _: &Files, _: &mut Notes) -> Result<Scores> {
    let mut pictures: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    // BLIP answers by the probability of yes, other models by words
    let number = |a: &Answer| Cell::of_json(&a.line["answer"]).text()?.trim().parse::<f64>().ok();
    let numbers = answers.iter().all(|a| number(a).is_some());
    for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
        let value = match numbers {
            true => number(answer).unwrap_or(0.0),
            false => f64::from(vlmevalkit(&answer.text) == Said::Yes),
        };
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::invalid(format!("answer {}: {value} is no probability", item.id)));
        }
        pictures.entry(item.text("picture")).or_insert((i, 1.0)).1 *= value;
    }
    let mut out = Scores::default();
    out.mean(if numbers { "attribute@blip_vqa" } else { "attribute@yes_no" }, pictures.into_values().collect());
    Ok(out)
}
