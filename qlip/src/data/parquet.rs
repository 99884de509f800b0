//! Parquet files in the Hugging Face layout: an image struct {bytes, path}, an integer label or a caption, class names in
//! metadata. The compressed pictures are held in memory.

use super::table::WORDS;
use super::{Item, Pictures, Place};
use nn::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use std::path::{Path, PathBuf};

/// All files `SPLIT-*.parquet` of a folder, in order.
pub(super) fn files(dir: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io(dir))?;
    let start = format!("{split}-");
    let named = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or("");
        name.starts_with(&start) && name.ends_with(".parquet")
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(named).collect();
    files.sort();
    Ok(files)
}

/// Reads the first struct column with `bytes`, the first integer column where classes have names, and captions.
pub(super) fn open(paths: &[PathBuf]) -> Result<Pictures> {
    let mut all = Pictures::default();
    for path in paths {
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let bad = |e: String| Error::bad_file(path, e);
        let reader = SerializedFileReader::new(file).map_err(|e| bad(format!("not a parquet file ({e})")))?;
        if !columns_lie_within(&reader, size) {
            return Err(bad("damaged: a column lies outside the file".into()));
        }
        if all.classes.is_empty() {
            all.classes = class_names(&reader);
        }
        for (n, row) in reader.get_row_iter(None).map_err(|e| bad(e.to_string()))?.enumerate() {
            let row = row.map_err(|e| bad(e.to_string()))?;
            let name = path.join(format!("row {n}"));
            all.items.push(
                parse(&row, name, !all.classes.is_empty())
                    .ok_or_else(|| bad(format!("row {n}: no image {{bytes, path}} with a label or a caption")))?,
            );
        }
    }
    Ok(all)
}

/// Integers are classes where the file names classes.
fn parse(row: &Row, name: PathBuf, named: bool) -> Option<Item> {
    let (mut bytes, mut class, mut words) = (None, None, None);
    for (column, field) in row.get_column_iter() {
        match field {
            Field::Group(g) => {
                for (name, f) in g.get_column_iter() {
                    if let (true, Field::Bytes(b)) = (name == "bytes", f) {
                        bytes = Some(b.data().to_vec());
                    }
                }
            }
            Field::Long(v) if named => class = class.or(usize::try_from(*v).ok()),
            Field::Int(v) if named => class = class.or(usize::try_from(*v).ok()),
            Field::Str(v) if WORDS.contains(&column.as_str()) => words = words.or(Some(v.clone())),
            _ => {}
        }
    }
    (class.is_some() || words.is_some()).then_some(Item { name, place: Place::Memory(bytes?), words, class })
}

/// Whether every column's bytes are in the file: the library takes their places on trust and panics on negative ones.
fn columns_lie_within(reader: &SerializedFileReader<std::fs::File>, size: u64) -> bool {
    let mut columns = reader.metadata().row_groups().iter().flat_map(|g| g.columns());
    columns.all(|c| {
        let start = u64::try_from(c.dictionary_page_offset().unwrap_or_else(|| c.data_page_offset()));
        let length = u64::try_from(c.compressed_size());
        matches!((start, length), (Ok(s), Ok(l)) if s.checked_add(l).is_some_and(|end| end <= size))
    })
}

fn class_names(reader: &SerializedFileReader<std::fs::File>) -> Vec<String> {
    let meta = reader.metadata().file_metadata().key_value_metadata();
    let text = meta.into_iter().flatten().find(|kv| kv.key == "huggingface").and_then(|kv| kv.value.as_deref());
    let json: serde_json::Value = text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    let features = json["info"]["features"].as_object();
    let names = features.into_iter().flatten().find_map(|(_, f)| f["names"].as_array());
    names.into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)).collect()
}
