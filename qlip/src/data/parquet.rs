//! Parquet files in the Hugging Face layout: an image struct {bytes, path}, an integer label, class names in metadata.

use crate::image::Image;
use nn::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use rayon::prelude::*;
use std::path::Path;

/// Pictures with a class each.
#[derive(Debug, Clone, Default)]
pub struct LabelledImages {
    /// Pictures.
    pub images: Vec<Image>,
    /// Class of each.
    pub labels: Vec<usize>,
    /// Names of the classes; empty where the file has none.
    pub classes: Vec<String>,
}

/// Reads the first struct column with `bytes` and the first integer column of every file, in order.
pub fn read_parquet(paths: &[std::path::PathBuf]) -> Result<LabelledImages> {
    let mut all = LabelledImages::default();
    for path in paths {
        let (rows, classes) = read_rows(path)?;
        let images: Vec<Image> = rows
            .par_iter()
            .enumerate()
            .map(|(i, (bytes, _))| Image::from_bytes(&path.join(format!("row {i}")), bytes))
            .collect::<Result<_>>()?;
        all.images.extend(images);
        all.labels.extend(rows.into_iter().map(|(_, l)| l));
        if all.classes.is_empty() {
            all.classes = classes;
        }
    }
    Ok(all)
}

type Rows = Vec<(Vec<u8>, usize)>;

fn read_rows(path: &Path) -> Result<(Rows, Vec<String>)> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let bad = |e: String| Error::bad_file(path, e);
    let reader = SerializedFileReader::new(file).map_err(|e| bad(format!("not a parquet file ({e})")))?;
    let classes = class_names(&reader);
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None).map_err(|e| bad(e.to_string()))? {
        let row = row.map_err(|e| bad(e.to_string()))?;
        let n = rows.len();
        rows.push(parse(&row).ok_or_else(|| bad(format!("row {n}: no image {{bytes, path}} with a label")))?);
    }
    Ok((rows, classes))
}

fn parse(row: &Row) -> Option<(Vec<u8>, usize)> {
    let mut bytes = None;
    let mut label = None;
    for (_, field) in row.get_column_iter() {
        match field {
            Field::Group(g) => {
                for (name, f) in g.get_column_iter() {
                    if let (true, Field::Bytes(b)) = (name == "bytes", f) {
                        bytes = Some(b.data().to_vec());
                    }
                }
            }
            Field::Long(v) => label = label.or(usize::try_from(*v).ok()),
            Field::Int(v) => label = label.or(usize::try_from(*v).ok()),
            _ => {}
        }
    }
    Some((bytes?, label?))
}

fn class_names(reader: &SerializedFileReader<std::fs::File>) -> Vec<String> {
    let meta = reader.metadata().file_metadata().key_value_metadata();
    let text = meta.into_iter().flatten().find(|kv| kv.key == "huggingface").and_then(|kv| kv.value.as_deref());
    let json: serde_json::Value = text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    let features = json["info"]["features"].as_object();
    let names = features.into_iter().flatten().find_map(|(_, f)| f["names"].as_array());
    names.into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)).collect()
}
