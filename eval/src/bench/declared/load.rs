//! Rows of a declared layout to items.

use super::{Declared, Layout, words_of};
use crate::bench::ask::{Names, held};
use crate::bench::table::{self, Cell, Row};
use crate::bench::{Files, Item, Notes, without_repeats};
use crate::{Error, Result};
use minijinja::Environment;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The Jinja templates of a declaration, read once.
pub(super) struct Prompts(Environment<'static>);

impl Prompts {
    pub(super) fn of(task: &Declared) -> Result<Self> {
        let mut env = Environment::new();
        env.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_template_owned("prompt", task.ask.prompt.clone()).map_err(|e| unread("prompt", &e))?;
        for (n, layout) in task.data.iter().enumerate() {
            if let Some(name) = &layout.image_file {
                env.add_template_owned(format!("image_file {n}"), name.clone())
                    .map_err(|e| unread("image_file", &e))?;
            }
        }
        Ok(Self(env))
    }

    fn fill(&self, name: &str, row: &Value) -> Result<String> {
        let template = self.0.get_template(name).map_err(|e| unread(name, &e))?;
        template.render(minijinja::Value::from(minijinja::value::Serde(row))).map_err(|e| unread(name, &e))
    }
}

fn unread(what: &str, e: &minijinja::Error) -> Error {
    Error::invalid(format!("{what}: {e}"))
}

/// The items of the first layout whose files are there.
pub(super) fn items(task: &Declared, files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let templates = Prompts::of(task)?;
    for (n, layout) in task.data.iter().enumerate() {
        if let Some(split) = &layout.pictures {
            if let Ok(found) = qlip::data::Pictures::open(&files.dir, split) {
                return pictures(layout, &found, files, notes);
            }
            continue;
        }
        let wanted = layout.files.as_deref().unwrap_or_default();
        let found = matching(files, wanted);
        if !found.is_empty() {
            let mut reader = Reader {
                task,
                layout,
                n,
                files,
                templates: &templates,
                joined: joined(layout, files)?,
                items: Vec::new(),
            };
            rows(&found, layout.rows.as_deref(), notes, &mut |at, row, notes| reader.take(at, row, notes))?;
            return Ok(without_repeats(reader.items, notes));
        }
    }
    let wanted =
        task.data.iter().filter_map(|l| l.files.clone().or(l.pictures.as_ref().map(|s| format!("pictures of {s}"))));
    Err(files.nothing(&task.name, &wanted.collect::<Vec<_>>().join(", or ")))
}

/// Files whose path ends so; one `*` stands for anything without a slash.
fn matching(files: &Files, wanted: &str) -> Vec<PathBuf> {
    let (start, end) = wanted.split_once('*').unwrap_or((wanted, ""));
    let starred = wanted.contains('*');
    files.find(|p| match starred {
        false => p.ends_with(&format!("/{wanted}")),
        true => p
            .strip_suffix(end)
            .and_then(|p| p.rsplit_once(&format!("/{start}")))
            .is_some_and(|(_, mid)| !mid.contains('/')),
    })
}

/// Rows of files by their ending.
fn rows(
    paths: &[PathBuf],
    list: Option<&str>,
    notes: &mut Notes,
    on: &mut dyn FnMut(usize, &Row, &mut Notes) -> Result<()>,
) -> Result<()> {
    let ending = |p: &Path| p.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if paths.iter().all(|p| ending(p) == "parquet") {
        return table::parquet(paths, notes, on);
    }
    for path in paths {
        match ending(path).as_str() {
            "tsv" => table::tsv(path, notes, on)?,
            "csv" => table::csv(path, notes, on)?,
            "jsonl" => table::json_lines(path, notes, &mut |line, row, notes| on(line - 1, row, notes))?,
            "json" => {
                let whole = table::json(path)?;
                let all = match list {
                    Some(key) => &whole[key],
                    None => &whole,
                };
                let Some(all) = all.as_array() else {
                    let what = list.map_or("the file".to_owned(), |k| format!("`{k}`"));
                    return Err(Error::bad_file(path, format!("{what} is no list of rows")));
                };
                for (n, v) in all.iter().enumerate() {
                    match Cell::of_json(v) {
                        Cell::Group(row) => on(n, &row, notes)?,
                        _ => notes.skip(format!("{} row {n}: not an object", crate::bench::name(path))),
                    }
                }
            }
            other => {
                let why = format!("`.{other}`: rows are read from .parquet, .tsv, .csv, .jsonl and .json");
                return Err(Error::bad_file(path, why));
            }
        }
    }
    Ok(())
}

/// Rows of the other file by the column that joins them.
fn joined(layout: &Layout, files: &Files) -> Result<Option<HashMap<String, Row>>> {
    let Some(join) = &layout.join else { return Ok(None) };
    let found = matching(files, &join.files);
    if found.is_empty() {
        return Err(Error::bad_file(&files.dir, format!("no {} to join", join.files)));
    }
    let mut by = HashMap::new();
    rows(&found, join.rows.as_deref(), &mut Notes::default(), &mut |_, row, _| {
        if let Some(key) = row.text(&join.on) {
            by.entry(key).or_insert_with(|| row.clone());
        }
        Ok(())
    })?;
    Ok(Some(by))
}

struct Reader<'a> {
    task: &'a Declared,
    layout: &'a Layout,
    n: usize,
    files: &'a Files,
    templates: &'a Prompts,
    joined: Option<HashMap<String, Row>>,
    items: Vec<Item>,
}

impl Reader<'_> {
    fn take(&mut self, at: usize, row: &Row, notes: &mut Notes) -> Result<()> {
        let mut row = row.clone();
        if let (Some(by), Some(join)) = (&self.joined, &self.layout.join) {
            match row.text(&join.on).and_then(|key| by.get(&key)) {
                Some(other) => {
                    let more = other.0.iter().filter(|c| !row.has(&c.0)).cloned().collect::<Vec<_>>();
                    row.0.extend(more);
                }
                None => {
                    notes.skip(format!("row {at}: nothing in {} with its `{}`", join.files, join.on));
                    return Ok(());
                }
            }
        }
        let l = self.layout;
        let columns =
            [&l.id, &l.cluster, &l.answer].into_iter().flatten().chain(&l.group).chain(&l.image).chain(&l.choices);
        for column in columns {
            crate::bench::needs(&row, &[column.as_str()], &self.task.name, l.files.as_deref().unwrap_or_default())?;
        }
        let facts = crate::bench::run::value(&row);
        let id = l.id.as_ref().and_then(|c| row.text(c)).unwrap_or_else(|| at.to_string());
        let question = match self.templates.fill("prompt", &facts) {
            Ok(words) => words,
            Err(e) => return Err(Error::invalid(format!("{}: row {at}: {e}", self.task.name))),
        };
        let mut kept = Map::new();
        kept.insert("question".into(), json!(question));
        let groups: Map<String, Value> =
            l.group.iter().filter_map(|c| Some((c.clone(), json!(row.text(c)?)))).collect();
        if !groups.is_empty() {
            kept.insert("groups".into(), Value::Object(groups));
        }
        let answer = l.answer.as_ref().map_or(Value::Null, |c| facts[c].clone());
        let written = self.choices(&row);
        let choices = if self.task.ask.options.is_empty() { written.clone() } else { self.task.ask.options.clone() };
        if choices.is_empty() {
            let answers = words_of(&answer);
            if l.answer.is_some() && answers.is_empty() {
                notes.skip(format!("row {at}, id {id}: no answer"));
                return Ok(());
            }
            kept.insert("answers".into(), json!(answers));
        } else {
            match self.gold(&answer, &written, choices.len()) {
                Some(gold) => kept.insert("gold".into(), json!(gold)),
                None => {
                    notes.skip(format!("row {at}, id {id}: answer {answer} is none of {} choices", choices.len()));
                    return Ok(());
                }
            };
            kept.insert("choices".into(), json!(choices));
        }
        let mut shown = Vec::new();
        for column in &l.image {
            let cell = row.get(column);
            if held(cell, self.files).is_none() {
                kept.insert("picture_missing".into(), json!(cell.text().unwrap_or_else(|| format!("in `{column}`"))));
            }
            shown.extend(notes.shown(cell, self.files));
        }
        if l.image_file.is_some() {
            let name = self.templates.fill(&format!("image_file {}", self.n), &facts)?;
            if self.files.picture(&name).is_none() {
                kept.insert("picture_missing".into(), json!(name));
            }
            shown.extend(notes.file(&name, self.files));
        }
        let cluster = l.cluster.as_ref().and_then(|c| row.text(c)).unwrap_or_else(|| id.clone());
        self.items.push(Item::new(id, cluster, Value::Object(kept)).with(shown));
        Ok(())
    }

    fn choices(&self, row: &Row) -> Vec<String> {
        match self.layout.choices.as_slice() {
            [one] if !row.get(one).list().is_empty() => row.get(one).texts(),
            several => several.iter().filter_map(|c| row.text(c)).collect(),
        }
    }

    /// The place of what is right: a number, a letter, or the words of a choice.
    fn gold(&self, answer: &Value, written: &[String], n: usize) -> Option<usize> {
        let text = answer.as_str().map(str::trim);
        let number = answer.as_i64().or_else(|| text?.parse().ok());
        let place = match (number, text) {
            (Some(i), _) => usize::try_from(i - self.layout.first_choice).ok()?,
            (None, Some(t)) => written
                .iter()
                .position(|c| c == t)
                .or_else(|| self.task.ask.options.iter().position(|c| c == t))
                .or_else(|| {
                    t.chars()
                        .next()
                        .filter(|c| t.len() == 1 && c.is_ascii_uppercase())
                        .map(|c| (c as u8 - b'A') as usize)
                })?,
            _ => return None,
        };
        (place < n).then_some(place)
    }
}

/// Items of a folder of pictures with classes, captions or neither.
fn pictures(layout: &Layout, found: &qlip::data::Pictures, files: &Files, notes: &mut Notes) -> Result<Vec<Item>> {
    let names: Names = match &layout.class_names {
        Some(file) => {
            let path = files.dir.join(file);
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
            if names.len() != found.classes.len() {
                let why = format!("{} names for {} classes", names.len(), found.classes.len());
                return Err(Error::bad_file(&path, why));
            }
            names.into()
        }
        None => found.classes.clone().into(),
    };
    let mut items = Vec::new();
    for i in 0..found.len() {
        let Some(class) = found.class(i) else {
            notes.skip(format!("{}: no class", found.name(i).display()));
            continue;
        };
        let facts = json!({"label": class, "name": names.get(class)});
        let shown = notes.spooled(|| found.image(i)?.to_png())?;
        items.push(Item::new(i.to_string(), i.to_string(), facts).with(shown).of_classes(&names));
    }
    Ok(items)
}
