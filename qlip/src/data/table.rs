//! Tables of paths and captions: .csv and .tsv with a header, .jsonl with an object a line. Paths start at the table.

use super::{Item, Pictures, Place, Skipped, spoken, without_mark};
use nn::{Error, Result};
use std::path::Path;

/// Names under which tables keep paths and captions.
const PATHS: [&str; 6] = ["path", "image", "file_name", "filepath", "file", "image_path"];
pub(super) const WORDS: [&str; 4] = ["caption", "text", "title", "words"];

/// A picture of a table.
pub(super) struct Row {
    /// Its path, from the table.
    pub file: String,
    /// Its captions.
    pub words: Vec<String>,
}

pub(super) fn open(path: &Path) -> Result<Pictures> {
    let mut out = Pictures::default();
    let rows = rows(path, &mut out.skipped)?;
    let base = path.parent().unwrap_or(Path::new(""));
    for row in rows {
        let file = base.join(&row.file);
        let words = spoken(row.words);
        out.items.push(Item { name: file.clone(), place: Place::File(file), words, class: None });
    }
    Ok(out)
}

/// The rows of a table; those that name no picture or no words are passed over.
pub(super) fn rows(path: &Path, skipped: &mut Vec<Skipped>) -> Result<Vec<Row>> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "csv" => separated(path, b','),
        "tsv" => separated(path, b'\t'),
        "jsonl" => objects(path, skipped),
        _ => {
            std::fs::metadata(path).map_err(Error::io(path))?;
            let why = "pictures come from a folder, from .tar shards, from .parquet files, or from a table .csv, .tsv or .jsonl";
            Err(Error::bad_file(path, why))
        }
    }
}

fn separated(path: &Path, delimiter: u8) -> Result<Vec<Row>> {
    let text = without_mark(std::fs::read_to_string(path).map_err(Error::io(path))?);
    let bad = |e: csv::Error| Error::bad_file(path, e.to_string());
    // tab-separated captions are written without quotes: one that begins with a quotation mark would take the next rows with it
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).quoting(delimiter != b'\t').from_reader(text.as_bytes());
    let header = reader.headers().map_err(bad)?.clone();
    let other = [';', '\t', ',', '|'].into_iter().find(|s| header.len() == 1 && header[0].contains(*s));
    let column = |names: &[&str], what: &str| {
        let at = header.iter().position(|h| names.contains(&h.trim().to_ascii_lowercase().as_str()));
        at.ok_or_else(|| match other {
            Some(s) => {
                let ours = char::from(delimiter);
                Error::bad_file(path, format!("columns are parted by {s:?}; write {ours:?}, as its ending says"))
            }
            None => {
                let there: Vec<&str> = header.iter().collect();
                let (names, there) = (names.join(", "), there.join(", "));
                Error::bad_file(path, format!("no column with {what} (has: {there}); name one of them {names}"))
            }
        })
    };
    let (file, words) = (column(&PATHS, "paths")?, column(&WORDS, "captions")?);
    let row = |r: csv::Result<csv::StringRecord>| {
        let r = r.map_err(bad)?;
        let text = |at: usize| r.get(at).unwrap_or_default().to_owned();
        Ok(Row { file: text(file), words: vec![text(words)] })
    };
    reader.records().map(row).collect()
}

fn objects(path: &Path, skipped: &mut Vec<Skipped>) -> Result<Vec<Row>> {
    let text = without_mark(std::fs::read_to_string(path).map_err(Error::io(path))?);
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let bad = |why: String| Error::bad_file(path, format!("line {}: {why}", i + 1));
        let json: serde_json::Value = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
        let file = PATHS.iter().find_map(|n| json[*n].as_str()).map(str::to_owned);
        let words = WORDS.iter().find_map(|n| json.get(*n).filter(|v| !v.is_null())).map(captions);
        match (file, words) {
            (Some(file), Some(words)) => out.push(Row { file, words }),
            // a sample that lost a part is one broken sample; a file without the keys is another kind of file
            (file, _) if PATHS.iter().chain(&WORDS).any(|n| json.get(*n).is_some()) => {
                let why = if file.is_some() { "no caption" } else { "no path" };
                skipped.push(Skipped { name: format!("{} line {}", path.display(), i + 1), why: why.into() });
            }
            _ => return Err(bad("an object has a path (`image`) and a caption (`text`)".into())),
        }
    }
    Ok(out)
}

/// A caption, or a list of them.
pub(super) fn captions(v: &serde_json::Value) -> Vec<String> {
    match v {
        serde_json::Value::String(s) => vec![s.clone()],
        serde_json::Value::Array(a) => a.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}
