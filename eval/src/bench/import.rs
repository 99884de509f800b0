//! Answers out of other harnesses' logs of samples, as `replay:` reads them: lm-evaluation-harness, lmms-eval, VLMEvalKit.

use super::table;
use super::{Notes, name};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Fields of a log's `doc` that name the item, the surest first.
const IDS: [&str; 8] = ["id", "question_id", "questionId", "ind", "index", "image_id", "img_id", "sample_id"];

/// Answers of a file, one a line, and what could not be read.
pub fn answers(path: &Path) -> Result<(Vec<Value>, Notes)> {
    let mut notes = Notes::default();
    let mut out = Vec::new();
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "jsonl" => table::json_lines(path, &mut notes, &mut |line, row, notes| {
            match of_harness(&super::run::value(row)) {
                Ok(answer) => out.push(answer),
                Err(why) => notes.skip(format!("{} line {line}: {why}", name(path))),
            }
            Ok(())
        })?,
        "json" => {
            let json = table::json(path)?;
            // lmms-eval's older files hold all samples of a task in one object; VLMEvalKit's a list of rows
            let all = json["logs"].as_array().or(json.as_array()).ok_or_else(|| unknown(path))?;
            for (n, sample) in all.iter().enumerate() {
                match of_harness(sample).or_else(|_| of_table(sample)) {
                    Ok(answer) => out.push(answer),
                    Err(why) => notes.skip(format!("{} sample {n}: {why}", name(path))),
                }
            }
        }
        "tsv" => table::tsv(path, &mut notes, &mut |n, row, notes| {
            match of_table(&super::run::value(row)) {
                Ok(answer) => out.push(answer),
                Err(why) => notes.skip(format!("{} row {n}: {why}", name(path))),
            }
            Ok(())
        })?,
        "xlsx" => {
            let why = "a spreadsheet: save it as .tsv, or let VLMEvalKit write it (PRED_FORMAT=tsv)";
            return Err(Error::bad_file(path, why));
        }
        _ => return Err(unknown(path)),
    }
    // MME asks each of its pictures twice under one name
    let mut times: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    out.iter().for_each(|a| *times.entry(a["id"].to_string()).or_default() += 1);
    if !out.is_empty() && times.values().all(|n| *n == 2) {
        times.clear();
        for answer in &mut out {
            let seen = times.entry(answer["id"].to_string()).or_default();
            answer["id"] = format!("{}#{seen}", answer["id"].as_str().unwrap_or_default()).into();
            *seen += 1;
        }
    }
    if out.is_empty() {
        let first = notes.lines.first().cloned().unwrap_or_default();
        return Err(Error::bad_file(path, format!("no sample that can be read; {first}")));
    }
    Ok((out, notes))
}

fn unknown(path: &Path) -> Error {
    Error::bad_file(
        path,
        "no log of samples: samples_*.jsonl (lm-evaluation-harness, lmms-eval), *.json with `logs`, or VLMEvalKit's *.tsv",
    )
}

/// A sample of lm-evaluation-harness or lmms-eval: `doc`, `resps`, `filtered_resps`.
fn of_harness(sample: &Value) -> std::result::Result<Value, String> {
    let doc = &sample["doc"];
    let id = IDS.iter().find_map(|k| text(&doc[*k])).or_else(|| text(&sample["doc_id"]));
    let id = id.ok_or("neither `doc` nor `doc_id` names it")?;
    // of several answers the first counts, as for those programs
    let raw = first(&sample["resps"]);
    if let Some(ll) = log_likelihoods(&sample["resps"]) {
        return Ok(json!({"id": id, "ll": ll}));
    }
    let words = text(&raw).or_else(|| text(&first(&sample["filtered_resps"])));
    Ok(json!({"id": id, "answer": words.ok_or("no words in `resps` or `filtered_resps`")?}))
}

/// A row of VLMEvalKit: `index`, `prediction`.
fn of_table(row: &Value) -> std::result::Result<Value, String> {
    let id = text(&row["index"]).or_else(|| text(&row["id"])).ok_or("no `index`")?;
    let words = text(&row["prediction"]).ok_or("no `prediction`")?;
    Ok(json!({"id": id, "answer": words}))
}

/// The innermost first of nested lists.
fn first(v: &Value) -> Value {
    match v {
        Value::Array(all) => all.first().map_or(Value::Null, first),
        other => other.clone(),
    }
}

/// [[["-3.2", "False"]], [["-4.0", "True"]]]: a pair for each choice, as numbers or as text.
fn log_likelihoods(resps: &Value) -> Option<Vec<f64>> {
    fn pair(v: &Value) -> Option<f64> {
        let all = v.as_array()?;
        match all.as_slice() {
            [inner] => pair(inner),
            // rows give true and false as 1 and 0
            [ll, greedy]
                if greedy.is_boolean()
                    || matches!(greedy.as_str(), Some("True" | "False"))
                    || matches!(greedy.as_i64(), Some(0 | 1)) =>
            {
                number(ll)
            }
            _ => None,
        }
    }
    let all = resps.as_array()?;
    let found: Option<Vec<f64>> = all.iter().map(pair).collect();
    found.filter(|f| f.len() > 1)
}

fn number(v: &Value) -> Option<f64> {
    v.as_f64().or_else(|| v.as_str()?.parse().ok())
}

fn text(v: &Value) -> Option<String> {
    match v {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, content: &str) -> Result<(Vec<Value>, Notes)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, content).unwrap();
        answers(&path)
    }

    #[test]
    fn logs_of_three_harnesses_become_answers() {
        let lm = r#"{"doc_id": 0, "doc": {"ind": 24, "ctx": "a"}, "target": "3", "resps": [[["-12.5", "False"]], [["-3.25", "True"]]], "filtered_resps": [["-12.5", "False"], ["-3.25", "True"]]}
{"doc_id": 1, "doc": {"id": "Mercury_1"}, "resps": [[[-1.0, false]], [[-2.0, false]]]}
"#;
        let (found, _) = read("samples_hellaswag.jsonl", lm).unwrap();
        assert_eq!(found, [json!({"id": "24", "ll": [-12.5, -3.25]}), json!({"id": "Mercury_1", "ll": [-1.0, -2.0]})]);
        let lmms = r#"{"doc_id": 7, "doc": {"question_id": "17", "question": "q"}, "resps": [["Yes"]], "filtered_resps": ["Yes"], "target": "no"}
{"doc_id": 8, "resps": [], "filtered_resps": []}
"#;
        let (found, notes) = read("samples_pope.jsonl", lmms).unwrap();
        assert_eq!(found, [json!({"id": "17", "answer": "Yes"})]);
        assert!(notes.lines[0].contains("line 2: no words"), "{:?}", notes.lines);
        let old = r#"{"args": {}, "logs": [{"doc_id": 3, "doc": {}, "resps": [["a cat"]]}]}"#;
        assert_eq!(read("pope.json", old).unwrap().0, [json!({"id": "3", "answer": "a cat"})]);
        let vlm = "index\tquestion\tprediction\n241\twhat?\tB\n242\twhat?\tThe answer is C\n";
        let (found, _) = read("m_MMBench.tsv", vlm).unwrap();
        assert_eq!(found[1], json!({"id": "242", "answer": "The answer is C"}));
        for (file, content, says) in [
            ("x.xlsx", "PK", "save it as .tsv"),
            ("x.txt", "hello", "no log of samples"),
            ("x.jsonl", "{\"a\": 1}\n", "no sample that can be read"),
            ("x.json", "{\"a\": 1}", "no log of samples"),
        ] {
            let e = read(file, content).err().unwrap().to_string();
            assert!(e.contains(says), "{file}: {e}");
        }
    }
}
