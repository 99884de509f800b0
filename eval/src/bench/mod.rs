//! Published benchmarks: their layouts read, their answers scored under every published rule.

mod answering;
pub mod ask;
pub mod asking;
pub mod captioning;
pub mod choice;
pub mod declared;
pub mod geneval;
pub mod import;
pub mod likelihood;
pub mod matching;
pub mod measure;
pub mod mmbench;
pub mod mmmu;
pub mod pictures;
pub mod questions;
pub mod report;
pub mod round_trips;
pub mod run;
pub mod scenes;
pub mod stats;
pub mod table;
pub mod templates;
pub mod through;
pub mod vqa;
pub mod winoground;
pub mod yes_no;

use crate::{Error, Result};
use ask::{Ask, Names, Shown, Spool};
use declared::Declared;
use qlip::Image;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use table::Row;
use unified::nearest::nearest;

/// What was found wrong, and how much was left out for it.
#[derive(Debug, Default)]
pub struct Notes {
    /// A line each.
    pub lines: Vec<String>,
    /// Rows that are not scored.
    pub left_out: usize,
    /// Whether what is there is to be scored although something is missing.
    pub partial: bool,
    /// Where pictures of tables are kept, if a model is to be asked about them.
    pub spool: Option<Spool>,
}

impl Notes {
    /// Where an item's picture is, if a model is to be asked about it.
    pub fn shown(&self, cell: &table::Cell, files: &Files) -> Vec<Shown> {
        self.spool.as_ref().and_then(|s| s.shown(cell, files)).into_iter().collect()
    }
    /// The same of a file's name.
    pub fn file(&self, name: &str, files: &Files) -> Vec<Shown> {
        self.spool.as_ref().and_then(|_| files.picture(name)).into_iter().collect()
    }
    /// A picture that is in memory, if a model is to be asked about it.
    pub fn spooled(&self, png: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<Shown>> {
        match &self.spool {
            Some(spool) => spool.keep(&png()?).map(|s| vec![s]).map_err(Error::io("(temporary file of pictures)")),
            None => Ok(Vec::new()),
        }
    }
    /// A row that is left out, and why.
    pub fn skip(&mut self, why: String) {
        self.left_out += 1;
        self.lines.push(why);
    }
    /// Something worth saying.
    pub fn say(&mut self, what: String) {
        self.lines.push(what);
    }
}

/// A question, with what scoring needs to know of it.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its id in answer files.
    pub id: String,
    /// Other ways in which answer files name it: (field, value) pairs that must all fit.
    pub also: Vec<(&'static str, String)>,
    /// What belongs together for statistics: questions about one picture.
    pub cluster: String,
    /// The facts.
    pub facts: Value,
    /// Its pictures, if a model is to be asked.
    pub shown: Vec<Shown>,
    /// Names of the classes that it may be of: one list for all items.
    pub classes: Names,
}

impl Item {
    /// A question with facts.
    pub fn new(id: impl Into<String>, cluster: impl Into<String>, facts: Value) -> Self {
        Self {
            id: id.into(),
            also: Vec::new(),
            cluster: cluster.into(),
            facts,
            shown: Vec::new(),
            classes: Arc::default(),
        }
    }
    /// The same with pictures.
    pub fn with(self, shown: Vec<Shown>) -> Self {
        Self { shown, ..self }
    }
    /// The same with the classes that it may be of.
    pub fn of_classes(self, classes: &Names) -> Self {
        Self { classes: classes.clone(), ..self }
    }
    /// A fact that is text.
    pub fn text(&self, fact: &str) -> &str {
        self.facts[fact].as_str().unwrap_or_default()
    }
    /// The name of a picture that the data promise and that is not there: a model cannot be asked, somebody's answer counts.
    pub fn missing(&self) -> Option<&str> {
        self.facts["picture_missing"].as_str()
    }
    /// A fact that is a number from 0; 0 where it is none.
    pub fn number(&self, fact: &str) -> usize {
        self.facts[fact].as_u64().unwrap_or(0) as usize
    }
    /// Texts of a fact that is a list.
    pub fn texts(&self, fact: &str) -> Vec<String> {
        let all = self.facts[fact].as_array().into_iter().flatten();
        all.map(|v| v.as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// An answer: the words, and the whole line that they came in.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The words.
    pub text: String,
    /// Everything that was said.
    pub line: Value,
}

impl Answer {
    /// The picture that was drawn in it, below a run's folder.
    pub fn picture(&self, files: &Files) -> Result<Option<Image>> {
        self.line["picture"].as_str().map(|path| Image::open(&files.out.join(path))).transpose()
    }

    /// The codes of its picture's cells, row by row; none where it has no picture.
    pub fn codes(&self) -> impl Iterator<Item = u64> + '_ {
        self.line["codes"].as_array().into_iter().flatten().filter_map(Value::as_u64)
    }
}

/// A metric's value; where it is a mean, of what by item.
#[derive(Debug, Clone)]
pub struct Metric {
    /// The value.
    pub value: f64,
    /// Values of the items that it is the mean of, by their place among the items.
    pub of: Vec<(usize, f64)>,
}

/// Metrics by name@variant.
#[derive(Debug, Default)]
pub struct Scores(pub BTreeMap<String, Metric>);

impl Scores {
    /// A value that is no mean.
    pub fn value(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), Metric { value, of: Vec::new() });
    }
    /// The mean of values by item.
    pub fn mean(&mut self, name: impl Into<String>, of: Vec<(usize, f64)>) {
        let value = of.iter().map(|v| v.1).sum::<f64>() / of.len().max(1) as f64;
        self.0.insert(name.into(), Metric { value, of });
    }
}

/// A benchmark whose published layouts and rules are code.
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    /// Reads whichever layout a folder holds.
    pub load: fn(&Files, &mut Notes) -> Result<Vec<Item>>,
    /// What a model is asked for an item.
    pub ask: fn(&Item) -> Result<Ask>,
    /// Scores answers, one for each item.
    pub score: fn(&[Item], &[Answer], &Files, &mut Notes) -> Result<Scores>,
}

/// Those that are code, of data.
const SHIPPED: &[Shipped] = &[
    yes_no::POPE,
    yes_no::MME,
    mmbench::MMBENCH,
    mmmu::MMMU,
    choice::SCIENCEQA,
    choice::SEED,
    choice::AI2D,
    vqa::VQAV2,
    vqa::TEXTVQA,
    vqa::GQA,
    captioning::COCO,
    captioning::NOCAPS,
    likelihood::HELLASWAG,
    likelihood::ARC,
    matching::CIFAR,
    matching::FLICKR30K,
    matching::COCO_RETRIEVAL,
    winoground::WINOGROUND,
    geneval::GENEVAL,
    questions::DPG,
    questions::T2I_COMPBENCH,
    pictures::RECONSTRUCTION,
    pictures::DRAWN_CLASSES,
    measure::PROBE,
    measure::CLASS_PICTURES,
];

/// Those that need no data.
const WITHOUT_DATA: &[Shipped] = &[
    scenes::SCENES,
    scenes::SCENES_DEV,
    round_trips::SCENES_KEPT,
    round_trips::CODES_KEPT,
    round_trips::CYCLE,
    round_trips::SELF_CHECK,
];

fn shipped() -> impl Iterator<Item = &'static Shipped> {
    SHIPPED.iter().chain(WITHOUT_DATA)
}

/// A benchmark.
#[derive(Clone)]
pub enum Task {
    /// One that is code.
    Shipped(&'static Shipped),
    /// One that a file declares.
    Declared(Arc<Declared>),
}

impl Task {
    /// All that need no file of the user's.
    pub fn all() -> Result<Vec<Self>> {
        let names = shipped().map(|t| t.name).chain(declared::names());
        names.map(Self::of_name).collect()
    }

    /// By its name, or by the path of a file that declares it.
    pub fn of_name(name: &str) -> Result<Self> {
        if let Some(t) = shipped().find(|t| t.name == name) {
            return Ok(Self::Shipped(t));
        }
        if let Some(found) = declared::named(name) {
            return Ok(Self::Declared(Arc::new(found?)));
        }
        if name.ends_with(".toml") {
            return Ok(Self::Declared(Arc::new(Declared::open(Path::new(name))?)));
        }
        let names: Vec<&str> = shipped().map(|t| t.name).chain(declared::names()).collect();
        let near = nearest(name, names.iter().copied(), 2).map_or(String::new(), |n| format!("did you mean {n}? "));
        Err(Error::invalid(format!("no task `{name}`; {near}there are: {}", names.join(", "))))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Shipped(t) => t.name,
            Self::Declared(t) => &t.name,
        }
    }

    /// What it measures, in a line.
    pub fn about(&self) -> &str {
        match self {
            Self::Shipped(t) => t.about,
            Self::Declared(t) => &t.about,
        }
    }

    /// Whether it is of a folder's data.
    pub fn needs_data(&self) -> bool {
        match self {
            Self::Shipped(t) => WITHOUT_DATA.iter().all(|w| w.name != t.name),
            Self::Declared(_) => true,
        }
    }

    /// Its items, from whichever layout a folder holds.
    pub fn load(&self, files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
        match self {
            Self::Shipped(t) => (t.load)(files, notes),
            Self::Declared(t) => t.load(files, notes),
        }
    }

    /// What a model is asked for an item.
    pub fn ask(&self, item: &Item) -> Result<Ask> {
        match self {
            Self::Shipped(t) => (t.ask)(item),
            Self::Declared(t) => t.ask(item),
        }
    }

    /// Scores answers, one for each item.
    pub fn score(&self, items: &[Item], answers: &[Answer], files: &Files, notes: &mut Notes) -> Result<Scores> {
        match self {
            Self::Shipped(t) => (t.score)(items, answers, files, notes),
            Self::Declared(t) => t.score(items, answers, files, notes),
        }
    }
}

/// A file's name.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files of a benchmark's folder.
pub struct Files {
    /// The folder.
    pub dir: PathBuf,
    /// Where a run writes what it draws.
    pub out: PathBuf,
    all: Vec<PathBuf>,
    pictures: OnceLock<HashMap<String, PathBuf>>,
}

impl Files {
    /// The files of a task: of its data, if it is of any; what a run draws lies in `out`.
    pub fn of_task(task: &Task, data: Option<&Path>, out: &Path) -> Result<Self> {
        let files = match data {
            _ if !task.needs_data() => {
                Self { dir: out.to_owned(), out: out.to_owned(), all: Vec::new(), pictures: OnceLock::new() }
            }
            Some(dir) => Self::of(dir)?,
            None => {
                return Err(Error::invalid(format!("{}: give the folder of its data by --data", task.name())));
            }
        };
        Ok(Self { out: out.to_owned(), ..files })
    }
    /// Everything below a folder that is no picture.
    pub fn of(dir: &Path) -> Result<Self> {
        let mut all = Vec::new();
        walk(dir, 0, &mut all)?;
        all.sort();
        Ok(Self { dir: dir.to_owned(), out: dir.to_owned(), all, pictures: OnceLock::new() })
    }
    /// A picture by its name or path, wherever it is below the folder.
    pub fn picture(&self, wanted: &str) -> Option<Shown> {
        if wanted.is_empty() {
            return None;
        }
        let direct = self.dir.join(wanted);
        if direct.is_file() {
            return Some(Shown::File(direct));
        }
        let index = self.pictures.get_or_init(|| {
            let mut all = Vec::new();
            // a folder that cannot be read has no pictures
            let _ = pictures_below(&self.dir, 0, &mut all);
            all.into_iter().map(|p| (name(&p), p)).collect()
        });
        let last = wanted.rsplit('/').next().unwrap_or(wanted);
        index.get(last).cloned().map(Shown::File)
    }
    /// Files whose path below the folder fits.
    pub fn find(&self, fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let below = |p: &&PathBuf| {
            let rest = p.strip_prefix(&self.dir).unwrap_or(p).to_string_lossy().replace('\\', "/");
            fits(&format!("/{rest}"))
        };
        self.all.iter().filter(below).cloned().collect()
    }
    /// Parquet files of a split.
    pub fn parquet(&self, split: &str) -> Vec<PathBuf> {
        let start = format!("/{split}-");
        self.find(|p| p.ends_with(".parquet") && p.contains(&start))
    }
    /// The first file with one of these names.
    pub fn named(&self, names: &[&str]) -> Option<PathBuf> {
        names.iter().find_map(|n| self.all.iter().find(|p| name(p) == *n).cloned())
    }
    /// A file in the folder or one above it (answers and features lie beside the layouts).
    pub fn beside(&self, name: &str) -> Option<PathBuf> {
        let up = self.dir.parent().map(|p| p.join(name));
        [Some(self.dir.join(name)), up].into_iter().flatten().find(|p| p.is_file())
    }
    /// A path below the folder, for messages.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.dir).unwrap_or(path).display().to_string()
    }
    /// Rows of a task's parquet files, each with the columns that are needed; `wanted` says what is missing where there is no file.
    pub fn rows(
        &self,
        (task, wanted): (&str, &str),
        parquet: &[PathBuf],
        columns: &[&str],
        notes: &mut Notes,
        on: &mut dyn FnMut(usize, &Row, &mut Notes) -> Result<()>,
    ) -> Result<()> {
        let file = self.shown(parquet.first().ok_or_else(|| self.nothing(task, wanted))?);
        table::parquet(parquet, notes, &mut |n, row, notes| {
            needs(row, columns, task, &file)?;
            on(n, row, notes)
        })
    }
    /// Says that nothing that fits was found.
    pub fn nothing(&self, task: &str, wanted: &str) -> Error {
        Error::bad_file(&self.dir, format!("no data of {task} here: {wanted}"))
    }
}

fn pictures_below(dir: &Path, depth: usize, all: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && depth < 6 {
            pictures_below(&path, depth + 1, all)?;
        // SEED-Bench names its pictures without an ending
        } else if qlip::data::is_picture(&path) || path.extension().is_none() {
            all.push(path);
        }
    }
    Ok(())
}

fn walk(dir: &Path, depth: usize, all: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        if path.is_dir() {
            if depth < 6 {
                walk(&path, depth + 1, all)?;
            }
        } else if !["jpg", "jpeg", "png"].iter().any(|e| path.extension().is_some_and(|x| x == *e)) {
            all.push(path);
        }
    }
    Ok(())
}

/// Leaves out items whose id came before; both rows are named.
pub fn without_repeats(items: Vec<Item>, notes: &mut Notes) -> Vec<Item> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        match seen.get(&item.id) {
            Some(first) => {
                notes.skip(format!("duplicate id \"{}\" (rows {first} and {i}): the second is left out", item.id))
            }
            None => {
                seen.insert(item.id.clone(), i);
                kept.push(item);
            }
        }
    }
    kept
}

/// Whether a row's picture is there and can be read; else why not. A path without bytes is looked for beside the data.
pub fn picture_fault(cell: &table::Cell, dir: &Path) -> Option<String> {
    use table::Cell;
    let decode = |bytes: &[u8]| qlip::Image::from_bytes(Path::new("picture"), bytes).err().map(|e| e.to_string());
    match cell {
        Cell::Null => Some("picture missing".into()),
        Cell::Bytes(b) if b.is_empty() => Some("picture missing (empty)".into()),
        Cell::Bytes(b) => decode(b).map(|e| format!("cannot decode the picture: {e}")),
        Cell::Group(g) => match (g.get("bytes"), g.text("path")) {
            (Cell::Bytes(b), _) if !b.is_empty() => {
                decode(b).map(|e| format!("cannot decode the picture: {}", e.trim_start_matches("picture: ")))
            }
            (Cell::Null, Some(path)) if dir.join(&path).is_file() => None,
            (Cell::Null, Some(path)) => Some(format!("picture missing: no bytes, and no file {path}")),
            _ => Some("picture missing".into()),
        },
        _ => Some("picture missing".into()),
    }
}

/// A column that must be there; the nearest name where it is not.
fn needs(row: &Row, columns: &[&str], task: &str, file: &str) -> Result<()> {
    if let Some(column) = columns.iter().find(|c| !row.has(c)) {
        let near = nearest(column, row.0.iter().map(|c| c.0.as_str()), 2);
        let near = near.map_or(String::new(), |n| format!("; did you mean `{n}`?"));
        let why = format!("column `{column}` missing in {file} (has: {}){near}", row.columns());
        return Err(Error::invalid(format!("{task}: {why}")));
    }
    Ok(())
}
