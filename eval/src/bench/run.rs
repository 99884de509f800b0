//! A run: items of a benchmark, an answer to each, scores with intervals, and files that say all of it.

use super::{Answer, Files, Item, Notes, Scores, Task, stats, table};
use crate::{Error, Result};
use nn::checkpoint::write_atomic;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// Somebody's answers from a file, a JSON object a line: {"id": .., "answer": ..}.
pub struct Replay {
    lines: Vec<Value>,
    by_id: HashMap<String, usize>,
    /// What was wrong with the file.
    pub notes: Notes,
}

impl Replay {
    /// Reads a file; a second answer for an id is noted, and the first counts.
    pub fn open(path: &Path) -> Result<Self> {
        let mut this = Self { lines: Vec::new(), by_id: HashMap::new(), notes: Notes::default() };
        let mut notes = Notes::default();
        table::json_lines(path, &mut notes, &mut |line, row, notes| {
            let Some(id) = row.text("id") else {
                notes.skip(format!("answers line {line}: no `id`"));
                return Ok(());
            };
            if this.by_id.contains_key(&id) {
                notes.skip(format!("answers line {line}: a second answer for id {id}; the first counts"));
                return Ok(());
            }
            this.by_id.insert(id, this.lines.len());
            this.lines.push(value(row));
            Ok(())
        })?;
        this.notes = notes;
        Ok(this)
    }

    /// Answers that are in memory already, one an id.
    pub(super) fn of(lines: Vec<Value>) -> Self {
        let id = |(n, l): (usize, &Value)| Some((table::Cell::of_json(&l["id"]).text()?, n));
        let by_id = lines.iter().enumerate().filter_map(id).collect();
        Self { lines, by_id, notes: Notes::default() }
    }

    /// Ids that both have, with another answer in the other.
    pub fn different(&self, other: &Self) -> Vec<String> {
        let said = |l: &Value| [l["answer"].clone(), l["ll"].clone(), l["scores"].clone()];
        let differs = |(id, &n): (&String, &usize)| {
            let theirs = other.by_id.get(id).map(|m| said(&other.lines[*m]));
            theirs.is_some_and(|t| t != said(&self.lines[n])).then(|| id.clone())
        };
        self.by_id.iter().filter_map(differs).collect()
    }

    /// The answer to each item, where there is one; and ids of answers that no item asked for.
    fn answers(&self, items: &[Item]) -> (Vec<Option<Answer>>, Vec<String>) {
        let mut used = vec![false; self.lines.len()];
        let mut others: HashMap<Vec<(&str, String)>, usize> = HashMap::new();
        if let Some(first) = items.iter().find(|i| !i.also.is_empty()) {
            for (n, line) in self.lines.iter().enumerate() {
                let fields = first.also.iter().map(|(f, _)| Some((*f, table::Cell::of_json(&line[*f]).text()?)));
                if let Some(key) = fields.collect::<Option<Vec<_>>>() {
                    others.entry(key).or_insert(n);
                }
            }
        }
        let mut find = |item: &Item| {
            let other = || if item.also.is_empty() { None } else { others.get(&item.also).copied() };
            let n = self.by_id.get(&item.id).copied().or_else(other)?;
            used[n] = true;
            let line = self.lines[n].clone();
            Some(Answer { text: line["answer"].as_str().unwrap_or_default().to_owned(), line })
        };
        let answers = items.iter().map(&mut find).collect();
        let unused = self.lines.iter().zip(&used).filter(|u| !u.1);
        (answers, unused.map(|(l, _)| table::Cell::of_json(&l["id"]).text().unwrap_or_default()).collect())
    }
}

/// A row as JSON, without its bytes.
pub(super) fn value(row: &table::Row) -> Value {
    fn of(cell: &table::Cell) -> Value {
        use table::Cell;
        match cell {
            Cell::Null | Cell::Bytes(_) => Value::Null,
            Cell::Int(i) => json!(i),
            Cell::Number(n) => json!(n),
            Cell::Text(t) => json!(t),
            Cell::List(l) => l.iter().map(of).collect(),
            Cell::Group(g) => value(g),
        }
    }
    Value::Object(row.0.iter().map(|(k, c)| (k.clone(), of(c))).collect())
}

/// What came of a task.
pub struct Outcome {
    /// Its part of summary.json's results.
    pub results: Value,
    /// What is to be said.
    pub notes: Notes,
    /// Items that were scored, and that had no answer.
    pub scored: usize,
    /// Items without an answer.
    pub unanswered: usize,
    /// A line for each item.
    samples: String,
}

/// Scores a replay of a task on its files. Without `partial` an unanswered item is an error, after which nothing is scored.
pub fn replay(task: &Task, files: &Files, answers: &Replay, partial: bool, limit: Option<usize>) -> Result<Outcome> {
    let mut notes = Notes { partial, ..Notes::default() };
    let mut items = task.load(files, &mut notes)?;
    if items.is_empty() {
        let lines = notes.lines.join("; ");
        return Err(Error::bad_file(&files.dir, format!("{}: no row that can be scored ({lines})", task.name())));
    }
    if let Some(limit) = limit {
        items = limited(items, limit);
        notes.say(format!("limited to {} items; metrics of a whole corpus (CIDEr) are of these alone", items.len()));
    }
    let (found, unused) = answers.answers(&items);
    if limit.is_none() && !unused.is_empty() {
        let shown: Vec<&str> = unused.iter().take(3).map(String::as_str).collect();
        notes.say(format!("{} answers with unknown ids, such as {}", unused.len(), shown.join(", ")));
    }
    let (items, found): (Vec<Item>, Vec<Option<Answer>>) = items
        .into_iter()
        .zip(found)
        .filter(|(item, answer)| match (item.missing(), answer) {
            (Some(name), None) => {
                notes.skip(format!("item {}: picture {name} missing", item.id));
                false
            }
            _ => true,
        })
        .unzip();
    let all = items.len();
    let unanswered = found.iter().filter(|f| f.is_none()).count();
    if unanswered > 0 && !partial {
        let why = format!("{}: {unanswered} of {all} items not answered: no score without --partial", task.name());
        return Err(Error::invalid(why));
    }
    let (items, given): (Vec<Item>, Vec<Answer>) =
        items.into_iter().zip(found).filter_map(|(i, a)| Some((i, a?))).unzip();
    let scores = task.score(&items, &given, files, &mut notes)?;
    Ok(Outcome {
        results: results(&scores, &items),
        samples: samples(&scores, &items, &given),
        scored: items.len(),
        unanswered,
        notes,
    })
}

/// The first items by a hash of what belongs together, whole groups of it: not the file's head, which is sorted by class in many sets.
pub(super) fn limited(items: Vec<Item>, limit: usize) -> Vec<Item> {
    let key = |i: &Item| nn::rng::mix(nn::rng::name_key(&i.cluster));
    let mut groups: Vec<(u64, &str)> = items.iter().map(|i| (key(i), i.cluster.as_str())).collect();
    groups.sort_unstable();
    groups.dedup();
    let mut kept = std::collections::HashSet::new();
    let mut n = 0;
    for (_, cluster) in groups {
        if n >= limit {
            break;
        }
        n += items.iter().filter(|i| i.cluster == cluster).count();
        kept.insert(cluster.to_owned());
    }
    items.into_iter().filter(|i| kept.contains(&i.cluster)).collect()
}

fn results(scores: &Scores, items: &[Item]) -> Value {
    let one = |m: &super::Metric| {
        let values: Vec<f64> = m.of.iter().map(|v| v.1).collect();
        let clusters: Vec<&str> = m.of.iter().map(|v| items[v.0].cluster.as_str()).collect();
        let (low, high) = stats::interval(&values, &clusters).map_or((None, None), |i| (Some(i.0), Some(i.1)));
        let n = if values.is_empty() { items.len() } else { values.len() };
        json!({"value": m.value, "n": n, "low": low, "high": high})
    };
    Value::Object(scores.0.iter().map(|(k, m)| (k.clone(), one(m))).collect())
}

fn samples(scores: &Scores, items: &[Item], answers: &[Answer]) -> String {
    let mut each: Vec<Map<String, Value>> = vec![Map::new(); items.len()];
    // shares of groups are the same values again, but for items that only a group has
    let (groups, whole): (Vec<_>, Vec<_>) =
        scores.0.iter().partition(|(name, m)| name.contains('/') && m.of.len() != items.len());
    for (name, m) in whole {
        for (i, v) in &m.of {
            each[*i].insert(name.clone(), json!(v));
        }
    }
    let alone: Vec<bool> = each.iter().map(Map::is_empty).collect();
    for (name, m) in groups {
        for (i, v) in m.of.iter().filter(|(i, _)| alone[*i]) {
            each[*i].insert(name.clone(), json!(v));
        }
    }
    let line = |((item, answer), scores): ((&Item, &Answer), &Map<String, Value>)| {
        let mut line = json!({"id": item.id, "cluster": item.cluster, "answer": answer.text, "facts": item.facts, "scores": scores});
        if let Some(picture) = answer.line.get("picture").filter(|p| p.is_string()) {
            line["picture"] = picture.clone();
        }
        line.to_string() + "\n"
    };
    items.iter().zip(answers).zip(&each).map(line).collect()
}

/// Writes summary.json, a report in Markdown and a file of samples for each task.
pub fn write(out: &Path, model: &str, outcomes: &[(&Task, Outcome)]) -> Result<()> {
    std::fs::create_dir_all(out.join("samples")).map_err(Error::io(out))?;
    let mut results = Map::new();
    let mut tasks = Map::new();
    let mut report = String::from("# Results\n");
    for (task, o) in outcomes {
        write_atomic(&out.join("samples").join(format!("{}.jsonl", task.name())), o.samples.as_bytes())?;
        results.insert(task.name().into(), o.results.clone());
        let about = json!({"scored": o.scored, "unanswered": o.unanswered, "left_out": o.notes.left_out, "notes": o.notes.lines});
        tasks.insert(task.name().into(), about);
        report.push_str(&format!(
            "\n## {}: {}\n\n| metric | value | 95% | n |\n|---|---|---|---|\n",
            task.name(),
            task.about()
        ));
        for (name, m) in o.results.as_object().into_iter().flatten() {
            let number = |k: &str| m[k].as_f64().map_or(String::new(), |v| format!("{v:.4}"));
            let range = match (m["low"].as_f64(), m["high"].as_f64()) {
                (Some(l), Some(h)) => format!("{l:.4} to {h:.4}"),
                _ => String::new(),
            };
            report.push_str(&format!("| {name} | {} | {range} | {} |\n", number("value"), m["n"]));
        }
        o.notes.lines.iter().for_each(|l| report.push_str(&format!("\n- {l}")));
    }
    let summary = json!({"version": 1, "model": model, "results": results, "tasks": tasks});
    let text = serde_json::to_vec_pretty(&summary).map_err(|e| Error::invalid(e.to_string()))?;
    write_atomic(&out.join("report.md"), report.as_bytes())?;
    write_atomic(&out.join("report.csv"), super::report::csv(&summary).as_bytes())?;
    write_atomic(&out.join("report.tex"), super::report::latex(&summary).as_bytes())?;
    write_atomic(&out.join("report.html"), super::report::html(out, &summary).as_bytes())?;
    write_atomic(&out.join("summary.json"), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_has_its_scores_once_or_its_groups() {
        let items = ["a", "b"].map(|id| Item::new(id, id, json!({})));
        let answers = [(); 2].map(|()| Answer { text: String::new(), line: json!({}) });
        let mut scores = Scores::default();
        scores.mean("draw@strict", vec![(0, 1.0)]);
        scores.mean("draw/colour@strict", vec![(0, 1.0)]);
        scores.mean("draw/second_in_a_chat@strict", vec![(1, 0.0)]);
        let of = |line: &str| serde_json::from_str::<Value>(line).unwrap()["scores"].clone();
        let lines: Vec<Value> = samples(&scores, &items, &answers).lines().map(of).collect();
        assert_eq!(lines, [json!({"draw@strict": 1.0}), json!({"draw/second_in_a_chat@strict": 0.0})]);
    }
}
