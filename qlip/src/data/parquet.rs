//! Parquet files in the Hugging Face layout: an image struct {bytes, path} or plain bytes, the schema's ClassLabel, captions as text or
//! lists. The compressed pictures are held in memory.

use super::table::WORDS;
use super::{Item, Pictures, Place, Skipped, spoken};
use nn::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use std::path::{Path, PathBuf};

/// All files `SPLIT-*.parquet` of a folder or of its `data`, in order.
pub(super) fn files(dir: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let start = format!("{split}-");
    let named = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or("");
        name.starts_with(&start) && name.ends_with(".parquet")
    };
    for dir in [dir.to_owned(), dir.join("data")].iter().filter(|d| d.is_dir()) {
        let entries = std::fs::read_dir(dir).map_err(Error::io(dir))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(named).collect();
        if !files.is_empty() {
            files.sort();
            return Ok(files);
        }
    }
    Ok(Vec::new())
}

/// Which columns hold what.
struct Columns {
    image: Option<String>,
    words: Option<String>,
    label: Option<String>,
    there: String,
}

/// The first column of pictures, the schema's ClassLabel (or the first whole number where nothing says more), and captions.
fn columns(row: &Row, label: Option<String>) -> Columns {
    let mut found = Columns { image: None, words: None, label: None, there: String::new() };
    let mut there = Vec::new();
    for (name, field) in row.get_column_iter() {
        there.push(name.as_str());
        let picture = match field {
            Field::Group(g) => g.get_column_iter().any(|(n, _)| n == "bytes"),
            // a picture's bytes by themselves
            Field::Bytes(_) => true,
            _ => false,
        };
        let null_picture = matches!(field, Field::Null) && ["image", "img"].contains(&name.as_str());
        if picture || null_picture {
            found.image.get_or_insert(name.clone());
        } else if WORDS.contains(&name.as_str()) {
            found.words.get_or_insert(name.clone());
        }
    }
    found.there = there.join(", ");
    found.label = label.filter(|l| there.contains(&l.as_str()));
    found
}

/// Reads the pictures of the files; a row without one is passed over.
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
        let (label, names) = class_label(&reader);
        if all.classes.is_empty() {
            all.classes = names;
        }
        let mut known: Option<Columns> = None;
        for (n, row) in reader.get_row_iter(None).map_err(|e| bad(e.to_string()))?.enumerate() {
            let row = row.map_err(|e| bad(e.to_string()))?;
            let columns = known.get_or_insert_with(|| columns(&row, label.clone()));
            let Some(image) = &columns.image else {
                let there = &columns.there;
                return Err(bad(format!(
                    "no column of pictures {{bytes, path}} (has: {there}); one of them is needed"
                )));
            };
            let name = path.join(format!("row {n}"));
            match picture(&row, image) {
                Some(bytes) => {
                    let words = columns.words.as_ref().map(|w| texts(&row, w)).unwrap_or_default();
                    let class =
                        columns.label.as_ref().and_then(|l| whole(&row, l)).and_then(|c| usize::try_from(c).ok());
                    all.items.push(Item { name, place: Place::Memory(bytes), words: spoken(words), class });
                }
                None => all
                    .skipped
                    .push(Skipped { name: name.display().to_string(), why: format!("no picture in `{image}`") }),
            }
        }
        if let Some(c) = known.filter(|_| all.taken.is_empty()) {
            let shown = |what: &str, column: &Option<String>| column.as_ref().map(|c| format!("{what} from `{c}`"));
            let parts = [shown("pictures", &c.image), shown("words", &c.words), shown("classes", &c.label)];
            all.taken = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
            if c.words.is_none() && c.label.is_none() {
                all.taken.push_str(&format!("; no words among the columns {}", c.there));
            }
        }
    }
    Ok(all)
}

fn field<'a>(row: &'a Row, column: &str) -> Option<&'a Field> {
    row.get_column_iter().find(|(n, _)| *n == column).map(|(_, f)| f)
}

fn picture(row: &Row, column: &str) -> Option<Vec<u8>> {
    let bytes = match field(row, column)? {
        Field::Bytes(b) => b.data().to_vec(),
        Field::Group(g) => g.get_column_iter().find_map(|(n, f)| match f {
            Field::Bytes(b) if n == "bytes" => Some(b.data().to_vec()),
            _ => None,
        })?,
        _ => return None,
    };
    (!bytes.is_empty()).then_some(bytes)
}

fn texts(row: &Row, column: &str) -> Vec<String> {
    match field(row, column) {
        Some(Field::Str(s)) => vec![s.clone()],
        Some(Field::ListInternal(l)) => {
            let text = |f: &Field| if let Field::Str(s) = f { Some(s.clone()) } else { None };
            l.elements().iter().filter_map(text).collect()
        }
        _ => Vec::new(),
    }
}

fn whole(row: &Row, column: &str) -> Option<i64> {
    match field(row, column)? {
        Field::Long(v) => Some(*v),
        Field::Int(v) => Some(i64::from(*v)),
        Field::Short(v) => Some(i64::from(*v)),
        Field::Byte(v) => Some(i64::from(*v)),
        _ => None,
    }
}

/// Whether every column's bytes are in the file: the library takes their places on trust and panics on negative ones.
pub fn columns_lie_within(reader: &SerializedFileReader<std::fs::File>, size: u64) -> bool {
    let mut columns = reader.metadata().row_groups().iter().flat_map(|g| g.columns());
    columns.all(|c| {
        let start = u64::try_from(c.dictionary_page_offset().unwrap_or_else(|| c.data_page_offset()));
        let length = u64::try_from(c.compressed_size());
        matches!((start, length), (Ok(s), Ok(l)) if s.checked_add(l).is_some_and(|end| end <= size))
    })
}

/// What the `datasets` library wrote of the columns into the schema's metadata; null if there is nothing.
pub fn huggingface(reader: &SerializedFileReader<std::fs::File>) -> serde_json::Value {
    let meta = reader.metadata().file_metadata().key_value_metadata();
    let text = meta.into_iter().flatten().find(|kv| kv.key == "huggingface").and_then(|kv| kv.value.as_deref());
    text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

/// The column that the schema's metadata says is a class, and the classes' names.
fn class_label(reader: &SerializedFileReader<std::fs::File>) -> (Option<String>, Vec<String>) {
    let json = huggingface(reader);
    let features = json["info"]["features"].as_object();
    let found =
        features.into_iter().flatten().find_map(|(column, f)| Some((column.clone(), f["names"].as_array()?.clone())));
    match found {
        Some((column, names)) => (Some(column), names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect()),
        None => (None, Vec::new()),
    }
}
