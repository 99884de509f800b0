//! Parquet files in the Hugging Face layout: an image struct {bytes, path} or plain bytes, the schema's ClassLabel, captions as text or
//! lists. Pictures stay in their files: a row's page is read when the row is asked for.

use super::table::WORDS;
use super::{Item, Pictures, Place, Skipped, spoken};
use nn::guard::guarded;
use nn::{Error, Result};
use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescriptor, Type};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// Which columns hold what, by the schema.
struct Columns {
    /// The picture's root column, and the number of the leaf that holds its bytes.
    image: (String, usize),
    words: Option<String>,
    label: Option<String>,
}

/// The first column of pictures ({bytes, path}, or bytes by themselves), the schema's ClassLabel, and captions.
fn columns(schema: &SchemaDescriptor, label: Option<String>) -> std::result::Result<Columns, String> {
    let fields = schema.root_schema().get_fields();
    let there: Vec<&str> = fields.iter().map(|f| f.name()).collect();
    let is_bytes = |t: &Type| {
        t.is_primitive()
            && t.get_physical_type() == PhysicalType::BYTE_ARRAY
            && t.get_basic_info().converted_type() != ConvertedType::UTF8
            && t.get_basic_info().logical_type_ref() != Some(&LogicalType::String)
    };
    let picture = fields.iter().find_map(|f| {
        let path = match f.is_group() {
            true if f.get_fields().iter().any(|g| g.name() == "bytes" && is_bytes(g)) => vec![f.name(), "bytes"],
            false if is_bytes(f) => vec![f.name()],
            _ => return None,
        };
        let leaf = schema.columns().iter().position(|c| c.path().parts() == path && c.max_rep_level() == 0)?;
        Some((f.name().to_owned(), leaf))
    });
    let Some(image) = picture else {
        let there = there.join(", ");
        return Err(format!("no column of pictures {{bytes, path}} (has: {there}); one of them is needed"));
    };
    let words = there.iter().find(|n| **n != image.0 && WORDS.contains(n)).map(|n| (*n).to_owned());
    Ok(Columns { image, words, label: label.filter(|l| there.contains(&l.as_str())) })
}

/// An open file, of which any row's picture can be read by any thread.
pub(super) struct Table {
    path: PathBuf,
    reader: SerializedFileReader<Pread>,
    /// The column of the pictures' bytes.
    leaf: usize,
}

/// A file that is read at places, without a position that threads would share. Its end is an error to who reads on: the library, skipping a list whose length is damaged,
/// would take nothing at the end as often as the length says.
pub struct Pread(Arc<File>);

impl Pread {
    /// Of an open file.
    pub fn of(file: File) -> Self {
        Self(Arc::new(file))
    }
}

impl Length for Pread {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |m| m.len())
    }
}

impl ChunkReader for Pread {
    type T = BufReader<From>;
    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(BufReader::new(From(self.0.clone(), start)))
    }
    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<bytes::Bytes> {
        let mut out = Vec::new();
        From(self.0.clone(), start).take(length as u64).read_to_end(&mut out)?;
        match out.len() == length {
            true => Ok(out.into()),
            false => Err(ParquetError::EOF(format!("{length} bytes at {start} are not there"))),
        }
    }
}

/// A file from a place on.
pub struct From(Arc<File>, u64);

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.0.read_at(buffer, self.1)?;
        if n == 0 && !buffer.is_empty() {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file ends here"));
        }
        self.1 += n as u64;
        Ok(n)
    }
}

impl Table {
    fn open(path: &Path) -> Result<(Self, Columns, Vec<String>)> {
        let file = File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let bad = |e: String| Error::bad_file(path, e);
        let file = Pread::of(file);
        let reader = guarded(|| SerializedFileReader::new(file))
            .map_err(damaged(path))?
            .map_err(|e| bad(format!("not a parquet file ({e})")))?;
        if let Some(why) = beyond(reader.metadata(), size) {
            return Err(bad(why));
        }
        let (label, names) = class_label(reader.metadata());
        let columns = columns(reader.metadata().file_metadata().schema_descr(), label).map_err(bad)?;
        Ok((Self { path: path.to_owned(), leaf: columns.image.1, reader }, columns, names))
    }

    /// The bytes of the picture in a row of a row group. Pages before it are passed over by their headers.
    pub fn picture(&self, group: usize, row: usize) -> Result<Option<Vec<u8>>> {
        self.guarded(|| {
            let mut column = self.column(group)?;
            column.skip_records(row)?;
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            column.read_records(1, Some(&mut levels), None, &mut values)?;
            Ok(values.first().map(|v: &ByteArray| v.data().to_vec()))
        })
    }

    /// Which rows of a row group hold a picture.
    fn filled(&self, group: usize) -> Result<Vec<bool>> {
        let meta = self.reader.metadata().row_group(group);
        let rows = usize::try_from(meta.num_rows()).unwrap_or(0);
        let column = meta.column(self.leaf);
        if column.statistics().and_then(|s| s.null_count_opt()) == Some(0) {
            return Ok(vec![true; rows]);
        }
        let full = column.column_descr().max_def_level();
        self.guarded(|| {
            let mut column = self.column(group)?;
            let (mut out, mut levels, mut values) = (Vec::new(), Vec::new(), Vec::new());
            loop {
                levels.clear();
                values.clear();
                // a few at a time, so that their bytes are not all in memory
                let (read, _, _) = column.read_records(16, Some(&mut levels), None, &mut values)?;
                if read == 0 {
                    return Ok(out);
                }
                let mut bytes = values.iter().map(|v: &ByteArray| !v.data().is_empty());
                match full {
                    0 => out.extend(bytes),
                    _ => out.extend(levels.iter().map(|&l| l == full && bytes.next() == Some(true))),
                }
            }
        })
    }

    fn column(&self, group: usize) -> parquet::errors::Result<ColumnReaderImpl<ByteArrayType>> {
        match self.reader.get_row_group(group)?.get_column_reader(self.leaf)? {
            ColumnReader::ByteArrayColumnReader(c) => Ok(c),
            _ => Err(ParquetError::General("the pictures are not bytes".into())),
        }
    }

    fn guarded<T>(&self, f: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
        guarded(f).map_err(damaged(&self.path))?.map_err(|e| Error::bad_file(&self.path, e.to_string()))
    }
}

/// The error of a file at which the library gave up.
pub fn damaged(path: &Path) -> impl Fn(String) -> Error {
    move |why| Error::bad_file(path, format!("damaged ({why})"))
}

/// Finds the pictures of the files; a row without one is passed over. Words and classes are read now, pictures when they are asked for.
pub(super) fn open(paths: &[PathBuf]) -> Result<Pictures> {
    let mut all = Pictures::default();
    for path in paths {
        let (table, columns, names) = Table::open(path)?;
        let table = Arc::new(table);
        if all.classes.is_empty() {
            all.classes = names;
        }
        let mut n = 0;
        for group in 0..table.reader.metadata().num_row_groups() {
            let told = words_and_classes(&table, group, &columns)?;
            for (row, there) in table.filled(group)?.into_iter().enumerate() {
                let name = path.join(format!("row {n}"));
                n += 1;
                if there {
                    let (words, class) = told.get(row).cloned().unwrap_or_default();
                    all.items.push(Item { name, place: Place::Row(table.clone(), group, row), words, class });
                } else {
                    let why = format!("no picture in `{}`", columns.image.0);
                    all.skipped.push(Skipped { name: name.display().to_string(), why });
                }
            }
        }
        if all.taken.is_empty() {
            let shown = |what: &str, column: Option<&String>| column.map(|c| format!("{what} from `{c}`"));
            let parts = [
                shown("pictures", Some(&columns.image.0)),
                shown("words", columns.words.as_ref()),
                shown("classes", columns.label.as_ref()),
            ];
            all.taken = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
            if columns.words.is_none() && columns.label.is_none() {
                let fields = table.reader.metadata().file_metadata().schema_descr().root_schema().get_fields();
                let there: Vec<&str> = fields.iter().map(|f| f.name()).collect();
                all.taken.push_str(&format!("; no words among the columns {}", there.join(", ")));
            }
        }
    }
    Ok(all)
}

/// Captions and class of every row of a row group; nothing where there are no such columns.
fn words_and_classes(table: &Table, group: usize, columns: &Columns) -> Result<Vec<(Vec<String>, Option<usize>)>> {
    let wanted: Vec<&String> = columns.words.iter().chain(&columns.label).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let root = table.reader.metadata().file_metadata().schema_descr().root_schema();
    let fields = root.get_fields().iter().filter(|f| wanted.iter().any(|w| *w == f.name())).cloned().collect();
    table.guarded(|| {
        let only = Type::group_type_builder(root.name()).with_fields(fields).build()?;
        let mut out = Vec::new();
        for row in table.reader.get_row_group(group)?.get_row_iter(Some(only))? {
            let row = row?;
            let words = columns.words.as_ref().map(|w| texts(&row, w)).unwrap_or_default();
            let class = columns.label.as_ref().and_then(|l| whole(&row, l)).and_then(|c| usize::try_from(c).ok());
            out.push((spoken(words), class));
        }
        Ok(out)
    })
}

fn field<'a>(row: &'a Row, column: &str) -> Option<&'a Field> {
    row.get_column_iter().find(|(n, _)| *n == column).map(|(_, f)| f)
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

/// What a file's own words promise beyond the file: a column's bytes (the library takes their places on trust and panics on negative ones), or more
/// rows than there are bytes, for which places would be kept.
pub fn beyond(meta: &ParquetMetaData, size: u64) -> Option<String> {
    let rows = meta.row_groups().iter().map(|g| g.num_rows());
    let all = rows.fold(0u64, |sum, n| sum.saturating_add(u64::try_from(n).unwrap_or(u64::MAX)));
    if all > size {
        return Some(format!("damaged: {all} rows in a file of {size} bytes"));
    }
    let mut columns = meta.row_groups().iter().flat_map(|g| g.columns());
    let within = columns.all(|c| {
        let start = u64::try_from(c.dictionary_page_offset().unwrap_or_else(|| c.data_page_offset()));
        let length = u64::try_from(c.compressed_size());
        matches!((start, length), (Ok(s), Ok(l)) if s.checked_add(l).is_some_and(|end| end <= size))
    });
    (!within).then(|| "damaged: a column lies outside the file".into())
}

/// What the `datasets` library wrote of the columns into the schema's metadata; null if there is nothing.
pub fn huggingface(meta: &ParquetMetaData) -> serde_json::Value {
    let meta = meta.file_metadata().key_value_metadata();
    let text = meta.into_iter().flatten().find(|kv| kv.key == "huggingface").and_then(|kv| kv.value.as_deref());
    text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

/// The column that the schema's metadata says is a class, and the classes' names.
fn class_label(meta: &ParquetMetaData) -> (Option<String>, Vec<String>) {
    let json = huggingface(meta);
    let features = json["info"]["features"].as_object();
    let found =
        features.into_iter().flatten().find_map(|(column, f)| Some((column.clone(), f["names"].as_array()?.clone())));
    match found {
        Some((column, names)) => (Some(column), names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect()),
        None => (None, Vec::new()),
    }
}
