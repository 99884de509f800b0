//! GenEval (Ghosh et al. 2023): its prompts, and its rules on what a detector found in the drawings. The detector is anybody's: an answer
//! holds, for each picture of a prompt, the boxes {"class", "score", "box": [x0, y0, x1, y1], "color"}.

use super::{Answer, Files, Item, Notes, Scores, Shipped, table, without_repeats};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// GenEval.
pub const GENEVAL: Shipped = Shipped {
    name: "geneval",
    about: "drawings by their objects, counts, colours, places (GenEval's rules on a file of detections)",
    load,
    ask: super::ask::none,
    score,
};

/// Boxes of less confidence are not seen; where objects are counted, much less than certain ones are not.
const SEEN: f64 = 0.3;
const COUNTED: f64 = 0.9;

/// Boxes of a class that are looked at.
const MOST: usize = 16;

/// Part of both boxes' sizes by which a distance is shortened.
const NEAR: f64 = 0.1;

/// A box that a detector found.
#[derive(Debug, Clone, Deserialize)]
struct Found {
    class: String,
    score: f64,
    #[serde(rename = "box")]
    at: [f64; 4],
    #[serde(default)]
    color: Option<String>,
}

/// An object that a prompt asks for.
#[derive(Debug, Clone, Deserialize)]
struct Wanted {
    class: String,
    count: usize,
    #[serde(default)]
    color: Option<String>,
    #[serde(default)]
    position: Option<(String, usize)>,
}

/// What a prompt asks for, and what it must not show.
#[derive(Debug, Clone, Deserialize)]
struct Prompt {
    tag: String,
    #[serde(default)]
    include: Vec<Wanted>,
    #[serde(default)]
    exclude: Vec<Wanted>,
}

fn load(files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let path = files.named(&["evaluation_metadata.jsonl", "metadata.jsonl"]);
    let path = path.ok_or_else(|| files.nothing("geneval", "evaluation_metadata.jsonl"))?;
    let mut items = Vec::new();
    table::json_lines(&path, notes, &mut |line, row, notes| {
        let facts = super::run::value(row);
        match serde_json::from_value::<Prompt>(facts.clone()) {
            // prompts are named by their place, as the folders of drawings are
            Ok(_) => {
                let id = format!("{:05}", line - 1);
                items.push(Item::new(id.clone(), id, facts));
            }
            Err(e) => notes.skip(format!("line {line}: {e}")),
        }
        Ok(())
    })?;
    Ok(without_repeats(items, notes))
}

/// Which places `b` has from `a`: the offset of the centres, each axis shortened by a part of the sizes, over the whole offset's length.
fn relations(a: &[f64; 4], b: &[f64; 4]) -> Vec<&'static str> {
    let centre = |x: &[f64; 4]| [(x[0] + x[2]) / 2.0, (x[1] + x[3]) / 2.0];
    let size = |x: &[f64; 4]| [(x[2] - x[0]).abs(), (x[3] - x[1]).abs()];
    let (ca, cb, sa, sb) = (centre(a), centre(b), size(a), size(b));
    let offset = [ca[0] - cb[0], ca[1] - cb[1]];
    let short = |i: usize| (offset[i].abs() - NEAR * (sa[i] + sb[i])).max(0.0) * offset[i].signum();
    let revised = [short(0), short(1)];
    if revised.iter().all(|v| v.abs() < 1e-3) {
        return Vec::new();
    }
    let length = (offset[0] * offset[0] + offset[1] * offset[1]).sqrt();
    let (dx, dy) = (revised[0] / length, revised[1] / length);
    let all = [(dx < -0.5, "left of"), (dx > 0.5, "right of"), (dy < -0.5, "above"), (dy > 0.5, "below")];
    all.into_iter().filter(|r| r.0).map(|r| r.1).collect()
}

/// Whether a picture's boxes are what the prompt asks for.
fn is_right(prompt: &Prompt, found: &[Found]) -> bool {
    let least = if prompt.tag == "counting" { COUNTED } else { SEEN };
    let mut of: BTreeMap<&str, Vec<&Found>> = BTreeMap::new();
    for f in found.iter().filter(|f| f.score > least) {
        of.entry(&f.class).or_default().push(f);
    }
    for all in of.values_mut() {
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all.truncate(MOST);
    }
    let none = Vec::new();
    let boxes = |class: &str| of.get(class).unwrap_or(&none);
    let mut groups: Vec<Option<Vec<&Found>>> = Vec::new();
    let mut right = true;
    for wanted in &prompt.include {
        // of the surest alone, as many as are asked for
        let all: Vec<&Found> = boxes(&wanted.class).iter().take(wanted.count).copied().collect();
        let mut fits = all.len() >= wanted.count;
        if let Some(colour) = wanted.color.as_ref().filter(|_| fits) {
            fits = all.iter().filter(|f| f.color.as_ref() == Some(colour)).count() >= wanted.count;
        }
        if let Some((relation, other)) = wanted.position.as_ref().filter(|_| fits) {
            let others = groups.get(*other).and_then(Option::as_ref);
            let holds = |a: &Found| {
                others.is_some_and(|o| o.iter().all(|b| relations(&a.at, &b.at).contains(&relation.as_str())))
            };
            fits = all.iter().all(|f| holds(f));
        }
        right &= fits;
        groups.push(fits.then_some(all));
    }
    right && !prompt.exclude.iter().any(|e| boxes(&e.class).len() >= e.count)
}

fn score(items: &[Item], answers: &[Answer], _: &Files, notes: &mut Notes) -> Result<Scores> {
    let mut tags: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
    let (mut any, mut counts) = (Vec::new(), BTreeMap::new());
    for (i, (item, answer)) in items.iter().zip(answers).enumerate() {
        let bad = |e: serde_json::Error| Error::invalid(format!("answer {}: {e}", item.id));
        let prompt: Prompt = serde_json::from_value(item.facts.clone()).map_err(bad)?;
        let pictures = match &answer.line["detections"] {
            all @ Value::Array(_) => serde_json::from_value::<Vec<Vec<Found>>>(all.clone()).map_err(bad)?,
            _ => {
                let why =
                    "no `detections`: a list of boxes for each picture, {\"class\", \"score\", \"box\", \"color\"}";
                return Err(Error::invalid(format!("answer {}: {why}", item.id)));
            }
        };
        if pictures.is_empty() {
            return Err(Error::invalid(format!(
                "answer {}: no pictures in `detections`; draw it, or leave the line out",
                item.id
            )));
        }
        *counts.entry(pictures.len()).or_insert(0usize) += 1;
        let right: Vec<bool> = pictures.iter().map(|p| is_right(&prompt, p)).collect();
        let share = right.iter().filter(|r| **r).count() as f64 / right.len().max(1) as f64;
        tags.entry(prompt.tag.clone()).or_default().push((i, share));
        any.push((i, f64::from(right.iter().any(|r| *r))));
    }
    if counts.len() > 1 {
        let said: Vec<String> = counts.iter().map(|(n, of)| format!("{of} with {n}")).collect();
        notes.say(format!("prompts have different numbers of pictures: {}", said.join(", ")));
    }
    if tags.len() < 6 {
        notes.say(format!("{} of GenEval's six kinds of prompts are here; overall is their mean", tags.len()));
    }
    let mut out = Scores::default();
    let mut means = Vec::new();
    for (tag, of) in tags {
        means.push(of.iter().map(|v| v.1).sum::<f64>() / of.len() as f64);
        out.mean(format!("{tag}@geneval"), of);
    }
    out.value("overall@geneval", means.iter().sum::<f64>() / means.len().max(1) as f64);
    out.mean("any_of_pictures@geneval", any);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn prompt(v: Value) -> Prompt {
        serde_json::from_value(v).unwrap()
    }

    fn found(class: &str, score: f64, at: [f64; 4], color: &str) -> Found {
        Found { class: class.into(), score, at, color: Some(color.into()) }
    }

    /// By hand after the published rules.
    #[test]
    fn places_are_of_centres_shortened_by_sizes() {
        let unit = [0.0, 0.0, 10.0, 10.0];
        assert_eq!(relations(&unit, &[30.0, 0.0, 40.0, 10.0]), ["left of"]);
        assert_eq!(relations(&unit, &[0.0, 30.0, 10.0, 40.0]), ["above"]);
        // at 45 degrees both hold, while the boxes are apart
        assert_eq!(relations(&[100.0, 100.0, 110.0, 110.0], &unit), ["right of", "below"]);
        // concentric, or nearer than a tenth of both sizes: none
        assert!(relations(&unit, &[-5.0, -5.0, 15.0, 15.0]).is_empty());
        assert!(relations(&unit, &[1.5, 0.0, 11.5, 10.0]).is_empty());
    }

    #[test]
    fn rules_of_every_kind() {
        let count = prompt(json!({"tag": "counting", "prompt": "two cats",
            "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}));
        let cat = |score| found("cat", score, [0.0, 0.0, 1.0, 1.0], "red");
        assert!(is_right(&count, &[cat(0.95), cat(0.92)]));
        assert!(!is_right(&count, &[cat(0.95), cat(0.6)]), "counting needs 0.9");
        assert!(!is_right(&count, &[cat(0.95), cat(0.92), cat(0.91)]), "three are too many");
        let colour = prompt(json!({"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]}));
        let blue = found("cat", 0.9, [0.0, 0.0, 1.0, 1.0], "blue");
        assert!(is_right(&colour, &[cat(0.5)]) && !is_right(&colour, std::slice::from_ref(&blue)));
        // the surest box alone is looked at
        assert!(!is_right(&colour, &[cat(0.5), blue]));
        let place = prompt(json!({"tag": "position", "include": [{"class": "dog", "count": 1},
            {"class": "cat", "count": 1, "position": ["left of", 0]}]}));
        let dog = found("dog", 0.8, [30.0, 0.0, 31.0, 1.0], "red");
        assert!(is_right(&place, &[dog.clone(), cat(0.8)]));
        assert!(!is_right(&place, &[cat(0.8)]), "without the dog");
        assert!(!is_right(&place, &[found("dog", 0.8, [-30.0, 0.0, -29.0, 1.0], "red"), cat(0.8)]));
        assert!(!is_right(&place, &[dog, cat(0.2)]), "too unsure");
    }
}
