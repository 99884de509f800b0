//! Rows of the containers in which benchmarks are published: parquet, tab-separated values, JSON and JSON lines. A row at a time: what a
//! benchmark does not keep is gone.

use super::Notes;
use crate::{Error, Result};
use nn::guard::guarded;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A whole number.
    Int(i64),
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Several.
    List(Vec<Cell>),
    /// By name.
    Group(Row),
}

/// A row: values by column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row(pub Vec<(String, Cell)>);

impl Row {
    /// A column's value; nothing where there is no such column.
    pub fn get(&self, name: &str) -> &Cell {
        self.0.iter().find(|c| c.0 == name).map_or(&Cell::Null, |c| &c.1)
    }
    /// Whether there is such a column.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|c| c.0 == name)
    }
    /// Text of a column; numbers as they are written.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).text()
    }
    /// Columns, for messages.
    pub fn columns(&self) -> String {
        self.0.iter().map(|c| c.0.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl Cell {
    /// As text; numbers as they are written.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Text(t) => Some(t.clone()),
            Self::Int(i) => Some(i.to_string()),
            Self::Number(n) => Some(n.to_string()),
            _ => None,
        }
    }
    /// As a whole number; from text too.
    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            Self::Number(n) if n.fract() == 0.0 => Some(*n as i64),
            Self::Text(t) => t.trim().parse().ok(),
            _ => None,
        }
    }
    /// Values of a list.
    pub fn list(&self) -> &[Cell] {
        match self {
            Self::List(l) => l,
            _ => &[],
        }
    }
    /// Texts of a list.
    pub fn texts(&self) -> Vec<String> {
        self.list().iter().filter_map(Cell::text).collect()
    }
    /// The values by name.
    pub fn group(&self) -> Option<&Row> {
        match self {
            Self::Group(g) => Some(g),
            _ => None,
        }
    }
    /// Of a JSON value.
    pub fn of_json(v: &Value) -> Self {
        match v {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Int(i64::from(*b)),
            Value::Number(n) => n.as_i64().map_or_else(|| Self::Number(n.as_f64().unwrap_or(f64::NAN)), Self::Int),
            Value::String(s) => Self::Text(s.clone()),
            Value::Array(a) => Self::List(a.iter().map(Self::of_json).collect()),
            Value::Object(o) => Self::Group(row_of(o)),
        }
    }
    fn of_field(f: &Field) -> Self {
        match f {
            Field::Null => Self::Null,
            Field::Bool(b) => Self::Int(i64::from(*b)),
            Field::Byte(v) => Self::Int(i64::from(*v)),
            Field::Short(v) => Self::Int(i64::from(*v)),
            Field::Int(v) => Self::Int(i64::from(*v)),
            Field::Long(v) => Self::Int(*v),
            Field::UByte(v) => Self::Int(i64::from(*v)),
            Field::UShort(v) => Self::Int(i64::from(*v)),
            Field::UInt(v) => Self::Int(i64::from(*v)),
            Field::ULong(v) => i64::try_from(*v).map_or(Self::Number(*v as f64), Self::Int),
            Field::Float(v) => Self::Number(f64::from(*v)),
            Field::Double(v) => Self::Number(*v),
            Field::Str(s) => Self::Text(s.clone()),
            Field::Bytes(b) => Self::Bytes(b.data().to_vec()),
            Field::ListInternal(l) => Self::List(l.elements().iter().map(Self::of_field).collect()),
            Field::Group(g) => {
                Self::Group(Row(g.get_column_iter().map(|(n, f)| (n.clone(), Self::of_field(f))).collect()))
            }
            other => Self::Text(other.to_string()),
        }
    }
}

fn row_of(o: &serde_json::Map<String, Value>) -> Row {
    Row(o.iter().map(|(k, v)| (k.clone(), Cell::of_json(v))).collect())
}

/// What a file that is not what its name says is.
fn not_the_file(path: &Path) -> Result<Option<String>> {
    use std::io::Read;
    let mut head = [0u8; 256];
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let n = file.read(&mut head).map_err(Error::io(path))?;
    let head = String::from_utf8_lossy(&head[..n]).into_owned();
    if n == 0 {
        return Ok(Some("empty file".into()));
    }
    if head.starts_with("version https://git-lfs") {
        let size = head.lines().find_map(|l| l.strip_prefix("size ")).unwrap_or("?");
        return Ok(Some(format!(
            "this is a Git LFS pointer (size {size}), not the file: fetch it with git lfs pull or the hub client"
        )));
    }
    let start = head.trim_start().to_lowercase();
    if start.starts_with("<!doctype html") || start.starts_with("<html") {
        return Ok(Some("this is an HTML page, not the file".into()));
    }
    Ok(None)
}

/// A text file without a byte-order mark.
fn text_of(path: &Path) -> Result<String> {
    if let Some(what) = not_the_file(path)? {
        return Err(Error::bad_file(path, what));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::bad_file(path, "not UTF-8"))?;
    Ok(qlip::data::without_mark(text))
}

/// A whole JSON file.
pub fn json(path: &Path) -> Result<Value> {
    let text = text_of(path)?;
    serde_json::from_str(&text).map_err(|e| match e.is_eof() {
        true => Error::bad_file(path, format!("JSON ends early at byte {} (file incomplete)", text.len())),
        false => Error::bad_file(path, e.to_string()),
    })
}

/// JSON lines, each with its number from 1. A line that is not JSON is noted, and the rest is read.
pub fn json_lines(
    path: &Path,
    notes: &mut Notes,
    on: &mut dyn FnMut(usize, &Row, &mut Notes) -> Result<()>,
) -> Result<()> {
    let text = text_of(path)?;
    let (name, whole) = (super::name(path), text.ends_with('\n'));
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate().filter(|l| !l.1.trim().is_empty()) {
        match serde_json::from_str::<Value>(line) {
            Ok(Value::Object(o)) => on(i + 1, &row_of(&o), notes)?,
            Ok(_) => notes.skip(format!("{name} line {}: not an object", i + 1)),
            Err(_) if i + 1 == lines.len() && !whole => {
                notes.skip(format!("{name} line {}: torn line left out", i + 1))
            }
            Err(e) => notes.skip(format!("{name} line {}, column {}: not JSON", i + 1, e.column())),
        }
    }
    Ok(())
}

/// Tab-separated values with a header: quotes as Excel writes them, and none where a field does not begin with one.
pub fn tsv(path: &Path, notes: &mut Notes, on: &mut dyn FnMut(usize, &Row, &mut Notes) -> Result<()>) -> Result<()> {
    separated(b'\t', path, notes, on)
}

/// The same with commas.
pub fn csv(path: &Path, notes: &mut Notes, on: &mut dyn FnMut(usize, &Row, &mut Notes) -> Result<()>) -> Result<()> {
    separated(b',', path, notes, on)
}

fn separated(
    delimiter: u8,
    path: &Path,
    notes: &mut Notes,
    on: &mut dyn FnMut(usize, &Row, &mut Notes) -> Result<()>,
) -> Result<()> {
    let text = text_of(path)?;
    let bad = |e: ::csv::Error| Error::bad_file(path, e.to_string());
    let mut reader =
        ::csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(true).from_reader(text.as_bytes());
    let header = reader.headers().map_err(bad)?.clone();
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(bad)?;
        let line = record.position().map_or(i as u64 + 2, ::csv::Position::line);
        if record.len() != header.len() {
            let (name, n, all) = (super::name(path), record.len(), header.len());
            notes.skip(format!("{name} line {line}: {n} fields, header has {all}"));
            continue;
        }
        let cells = header.iter().zip(&record).map(|(k, v)| (k.to_owned(), Cell::Text(v.to_owned())));
        on(i, &Row(cells.collect()), notes)?;
    }
    Ok(())
}

/// Rows of parquet files in order, numbered through.
pub fn parquet(
    paths: &[PathBuf],
    notes: &mut Notes,
    on: &mut dyn FnMut(usize, &Row, &mut Notes) -> Result<()>,
) -> Result<()> {
    shards_are_whole(paths, notes)?;
    let mut n = 0;
    for path in paths {
        let reader = open_parquet(path)?;
        let bad = |e: String| Error::bad_file(path, e);
        let damaged = qlip::data::damaged(path);
        let mut rows = guarded(|| reader.get_row_iter(None)).map_err(&damaged)?.map_err(|e| bad(e.to_string()))?;
        while let Some(row) = guarded(|| rows.next()).map_err(&damaged)? {
            let row = row.map_err(|e| bad(format!("row {n}: {e}")))?;
            let cells = row.get_column_iter().map(|(k, f)| (k.clone(), Cell::of_field(f))).collect();
            on(n, &Row(cells), notes)?;
            n += 1;
        }
    }
    Ok(())
}

/// Class names in a parquet file's schema metadata.
pub fn class_names(path: &Path, column: &str) -> Result<Vec<String>> {
    let reader = open_parquet(path)?;
    let names = qlip::data::huggingface(reader.metadata())["info"]["features"][column]["names"].as_array().cloned();
    Ok(names.into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)).collect())
}

fn open_parquet(path: &Path) -> Result<SerializedFileReader<qlip::data::Pread>> {
    if let Some(what) = not_the_file(path)? {
        return Err(Error::bad_file(path, what));
    }
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let reader = guarded(|| SerializedFileReader::new(qlip::data::Pread::of(file)))
        .map_err(qlip::data::damaged(path))?
        .map_err(|_| Error::bad_file(path, "not a complete parquet file (no PAR1 at the end; download again)"))?;
    if let Some(why) = qlip::data::beyond(reader.metadata(), size) {
        return Err(Error::bad_file(path, why));
    }
    Ok(reader)
}

/// Names that say -of-00003 promise three files.
fn shards_are_whole(paths: &[PathBuf], notes: &mut Notes) -> Result<()> {
    for path in paths {
        let name = super::name(path);
        let Some((start, rest)) = name.split_once("-of-") else { continue };
        let (Some((prefix, _)), Some(count)) = (start.rsplit_once('-'), rest.split('.').next()) else { continue };
        let Ok(all) = count.parse::<usize>() else { continue };
        for i in 0..all.min(100_000) {
            let wanted = path.with_file_name(format!("{prefix}-{i:05}-of-{count}.parquet"));
            if !wanted.is_file() {
                let why = format!("shard {i} of {all} missing (names say -of-{count})");
                if !notes.partial {
                    return Err(Error::bad_file(
                        wanted,
                        format!("{why}: complete the download, or score what is there by --partial"),
                    ));
                }
                if !notes.lines.contains(&why) {
                    notes.say(why);
                }
            }
        }
    }
    Ok(())
}
