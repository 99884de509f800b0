//! Tables of paths and captions: .csv and .tsv with a header, .jsonl with an object a line. Paths start at the table.

use super::{Item, Pictures, Place};
use nn::{Error, Result};
use std::path::Path;

/// Names under which tables keep paths and captions.
const PATHS: [&str; 6] = ["path", "image", "file_name", "filepath", "file", "image_path"];
pub(super) const WORDS: [&str; 4] = ["caption", "text", "title", "words"];

pub(super) fn open(path: &Path) -> Result<Pictures> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let rows = match ending {
        "csv" => separated(path, b',')?,
        "tsv" => separated(path, b'\t')?,
        "jsonl" => objects(path)?,
        _ => {
            std::fs::metadata(path).map_err(Error::io(path))?;
            let why = "pictures come from a folder, from .tar shards, or from a table .csv, .tsv or .jsonl";
            return Err(Error::bad_file(path, why));
        }
    };
    let base = path.parent().unwrap_or(Path::new(""));
    let item = |(file, words): (String, String)| {
        let file = base.join(file);
        Item { name: file.clone(), place: Place::File(file), words: Some(words), class: None }
    };
    Ok(Pictures { items: rows.into_iter().map(item).collect(), ..Pictures::default() })
}

type Rows = Vec<(String, String)>;

fn separated(path: &Path, delimiter: u8) -> Result<Rows> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let bad = |e: csv::Error| Error::bad_file(path, e.to_string());
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let header = reader.headers().map_err(bad)?.clone();
    let column = |names: &[&str], what: &str| {
        let at = header.iter().position(|h| names.contains(&h.trim().to_ascii_lowercase().as_str()));
        at.ok_or_else(|| Error::bad_file(path, format!("no column with {what}; name one of them {}", names.join(", "))))
    };
    let (file, words) = (column(&PATHS, "paths")?, column(&WORDS, "captions")?);
    let row = |r: csv::Result<csv::StringRecord>| {
        let r = r.map_err(bad)?;
        Ok((r.get(file).unwrap_or_default().to_owned(), r.get(words).unwrap_or_default().to_owned()))
    };
    reader.records().map(row).collect()
}

fn objects(path: &Path) -> Result<Rows> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    lines
        .map(|(i, line)| {
            let bad = |why: String| Error::bad_file(path, format!("line {}: {why}", i + 1));
            let json: serde_json::Value = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
            let value = |names: &[&str]| names.iter().find_map(|n| json[*n].as_str()).map(str::to_owned);
            match (value(&PATHS), value(&WORDS)) {
                (Some(file), Some(words)) => Ok((file, words)),
                _ => Err(bad("an object has a path (`image`) and a caption (`text`)".into())),
            }
        })
        .collect()
}
