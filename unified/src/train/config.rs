//! Reading a training's TOML: overrides, keys of earlier versions, paths beside the file.

use super::Training;
use crate::{Error, Result};
use std::path::Path;
use toml::{Table, Value};

/// Keys that name files or folders.
const PATHS: [&str; 13] = [
    "path",
    "images",
    "codes",
    "start",
    "tokenizer",
    "image_tokenizer",
    "text_encoder",
    "tower",
    "language_model",
    "teacher",
    "warm_start",
    "weights",
    "heads",
];

/// Keys of `[run]` that stood at the top before.
const OF_RUN: [&str; 7] = ["steps", "batch_size", "checkpoint_every", "seed", "precision", "micro_batch", "recompute"];

/// Other keys of earlier versions, and what is written now.
const OLD: [(&str, &str); 11] = [
    ("photos", "[[data]] kind = \"pictures\", path = .."),
    ("scene_share", "[[data]] kind = \"scenes\", start = .. (a share next to the pictures')"),
    ("scene_objects", "[[data]] kind = \"scenes\", objects = .."),
    ("smallest_crop", "smallest_crop in the [[data]] of the pictures"),
    ("broken_share", "broken_share in its [[data]]"),
    ("images", "images in the [[data]] of the conversations"),
    ("qlip", "image_tokenizer"),
    ("mixture.photos", "a [[data]] kind = \"pictures\" for each template, with its share"),
    ("mixture.start", "a [[data]] for each kind and template, with start = .., end = .."),
    ("mixture.end", "a [[data]] for each kind and template, with start = .., end = .."),
    ("mixture.documents", "[[data]] kind = \"documents\""),
];

impl Training {
    /// Reads a TOML file and applies overrides `key=value`; dotted keys reach into sections and, by number or kind, into lists
    /// (`data.0.start`, `data.pictures.path` for all of a kind). A path that is there beside the file is meant from there, any other from where the program was started.
    pub fn from_file(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let bad = |e: String| Error::bad_file(path, e.trim_end().replace('\n', " "));
        renamed(&text, path)?;
        let mut table: Table = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        beside(&mut table, path.parent().unwrap_or(Path::new("")));
        let read = |overrides: &[&String]| -> Result<Self> {
            let mut table = table.clone();
            for o in overrides {
                set(&mut table, o)?;
            }
            check_loss(&table).map_err(|e| bad(e.to_string()))?;
            Value::Table(table).try_into().map_err(|e: toml::de::Error| bad(crate::nearest::with_nearest(e.message())))
        };
        let all: Vec<&String> = overrides.iter().collect();
        read(&all).map_err(|e| {
            if e.to_string().starts_with("--set ") {
                return e;
            }
            // the override without which it would do, since the message names no key
            let without = |i: usize| [&all[..i], &all[i + 1..]].concat();
            match (0..all.len()).find(|&i| read(&without(i)).is_ok()) {
                Some(i) => Error::invalid(format!("--set {}: {e}", all[i])),
                None => e,
            }
        })
    }
}

/// An error that says what the first key of an earlier version is now.
pub(super) fn renamed(text: &str, path: &Path) -> Result<()> {
    let Ok(table) = toml::from_str::<Table>(text) else { return Ok(()) };
    let old = |key: &str| Error::bad_file(path, now(key, &table).unwrap_or_default());
    let nested =
        table.get("mixture").and_then(Value::as_table).into_iter().flatten().map(|k| format!("mixture.{}", k.0));
    match table.keys().cloned().chain(nested).find(|k| now(k, &table).is_some()) {
        Some(key) => Err(old(&key)),
        None => Ok(()),
    }
}

/// What is written instead of a key of an earlier version.
fn now(key: &str, table: &Table) -> Option<String> {
    let kind = table.get("kind").and_then(Value::as_str).unwrap_or_default();
    let instead = if OF_RUN.contains(&key) {
        format!("run.{key} (section [run])")
    } else if key == "tokenizer" && kind == "llamagen" {
        "image_tokenizer".to_owned()
    } else if key == "data" && table.get(key).is_some_and(Value::is_str) {
        "[[data]] kind = \"conversations\", path = .., images = ..".to_owned()
    } else {
        OLD.iter().find(|o| o.0 == key)?.1.to_owned()
    };
    Some(format!("`{key}` is now {instead}"))
}

/// Paths that are there beside the config's file, from there.
fn beside(table: &mut Table, dir: &Path) {
    for (key, value) in table.iter_mut() {
        match value {
            Value::String(text) if PATHS.contains(&key.as_str()) && Path::new(text).is_relative() => {
                let here = dir.join(&*text);
                if here.exists() && !dir.as_os_str().is_empty() {
                    *text = here.to_string_lossy().into_owned();
                }
            }
            Value::Table(inner) => beside(inner, dir),
            Value::Array(all) => all.iter_mut().filter_map(Value::as_table_mut).for_each(|t| beside(t, dir)),
            _ => {}
        }
    }
}

/// Weights of losses are not negative.
fn check_loss(table: &Table) -> Result<()> {
    let Some(loss) = table.get("loss").and_then(Value::as_table) else { return Ok(()) };
    for (key, value) in loss {
        let number = value.as_float().or(value.as_integer().map(|i| i as f64));
        if number.is_some_and(|n| !n.is_finite() || n < 0.0) {
            return Err(Error::invalid(format!("loss.{key} = {value}: write 0 or more")));
        }
    }
    Ok(())
}

/// Sets `a.b.0.c=value` or `a.b.KIND.c=value` in a table; a value that is not TOML is taken as a string.
fn set(table: &mut Table, assignment: &str) -> Result<()> {
    let (key, value) =
        assignment.split_once('=').ok_or_else(|| Error::invalid(format!("--set {assignment}: write key=value")))?;
    let key = key.trim();
    if let Some(instead) = now(key, table).filter(|_| !key.contains('.') || key.starts_with("mixture.")) {
        return Err(Error::invalid(format!("--set {assignment}: {instead}")));
    }
    let value = toml::from_str::<Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    let parts: Vec<&str> = key.split('.').collect();
    put(table, &parts, &value).map_err(|why| Error::invalid(format!("--set {assignment}: {why}")))
}

/// Puts a value at a path of keys.
fn put(at: &mut Table, path: &[&str], value: &Value) -> std::result::Result<(), String> {
    let Some((key, rest)) = path.split_first() else { return Ok(()) };
    if rest.is_empty() {
        at.insert((*key).to_owned(), value.clone());
        return Ok(());
    }
    match at.entry(*key).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => put(inner, rest, value),
        Value::Array(all) => {
            let (which, rest) = (rest[0], &rest[1..]);
            let n = all.len();
            let meant = |(i, e): &(usize, &mut Value)| {
                which.parse() == Ok(*i) || e.get("kind").and_then(Value::as_str) == Some(which)
            };
            let mut found = all.iter_mut().enumerate().filter(meant).peekable();
            if rest.is_empty() || found.peek().is_none() {
                return Err(format!("`{key}` is a list of {n}; write {key}.NUMBER.KEY, from 0, or {key}.KIND.KEY"));
            }
            found.try_for_each(|(_, e)| match e.as_table_mut() {
                Some(inner) => put(inner, rest, value),
                None => Err(format!("`{key}` is not a list of sections")),
            })
        }
        _ => Err(format!("`{key}` is not a section")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_earlier_versions_say_what_they_are_now() {
        for (text, says) in [
            ("kind = \"qlip\"\nsteps = 3\n", "`steps` is now run.steps"),
            ("kind = \"qlip\"\nphotos = \"x\"\n", "kind = \"pictures\""),
            ("kind = \"unified\"\nqlip = \"x\"\n", "`qlip` is now image_tokenizer"),
            ("kind = \"llamagen\"\ntokenizer = \"x\"\n", "`tokenizer` is now image_tokenizer"),
            ("kind = \"llava\"\ndata = \"x.json\"\n", "kind = \"conversations\""),
            ("kind = \"unified\"\n[mixture]\nphotos = 0.1\n", "`mixture.photos` is now"),
        ] {
            let e = renamed(text, Path::new("c.toml")).unwrap_err().to_string();
            assert!(e.contains(says) && e.contains("c.toml"), "{e}");
        }
        assert!(renamed("kind = \"unified\"\ntokenizer = \"x\"\n", Path::new("c.toml")).is_ok());
    }

    #[test]
    fn overrides_reach_into_sections_and_lists() {
        let mut t: Table = toml::from_str("kind = \"vq\"\n[[data]]\nkind = \"pictures\"\n").unwrap();
        set(&mut t, "run.steps=3").unwrap();
        set(&mut t, "data.0.path=a").unwrap();
        set(&mut t, "data.pictures.path=a/b").unwrap();
        assert_eq!((t["run"]["steps"].as_integer(), t["data"][0]["path"].as_str()), (Some(3), Some("a/b")));
        for (bad, says) in [
            ("data.4.path=a", "list of 1"),
            ("kind.x=1", "not a section"),
            ("steps=3", "run.steps"),
            ("x", "key=value"),
        ] {
            let e = set(&mut t, bad).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
        assert!(
            crate::nearest::with_nearest("unknown field `stesp`, expected one of `steps`, `seed`")
                .ends_with("did you mean `steps`?")
        );
    }
}
