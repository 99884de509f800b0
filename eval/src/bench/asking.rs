//! Asking a model: answers go line by line into a log that any kill leaves readable, and a run that goes on asks only what is not in
//! it. A line's `input` is a hash of everything the answer depends on: weights, words, pictures, settings, seed.

use super::answering::Asked;
use super::ask::{Ask, Spool};
use super::through::Through;
use super::{Files, Item, Notes, Task};
use crate::{Error, Result};
use lm::draw::DrawSettings;
use nn::rng;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use unified::Model;
use unified::loaded::Loaded;

/// How a run asks.
#[derive(Debug, Clone)]
pub struct Asking {
    /// Items that are asked at once.
    pub batch: usize,
    /// Threads that ask.
    pub workers: usize,
    /// Which part of the items: (i, n).
    pub shard: (usize, usize),
    /// Seed of what is drawn.
    pub seed: u64,
    /// Whether answers that are there already count.
    pub resume: bool,
    /// About so many items.
    pub limit: Option<usize>,
    /// Whether missing shards of data may be missing.
    pub partial: bool,
    /// Guidance scale of drawings, if not the model's own.
    pub guidance: Option<f32>,
    /// Temperature of drawings, likewise.
    pub temperature: Option<f32>,
    /// Sum of probabilities that drawings choose from, likewise.
    pub top_p: Option<f32>,
    /// Drawings of which the model keeps its favourite, likewise.
    pub best_of: Option<usize>,
    /// Folder of the classifier that looks at drawings of classes.
    pub judge: Option<PathBuf>,
    /// What pictures go through before the model is shown them.
    pub through: Option<Arc<Through>>,
}

impl Asking {
    /// How pictures are drawn: as the model's config says, but for what the run says.
    pub(super) fn drawing(&self, model: &Loaded) -> (DrawSettings, usize) {
        let (settings, best_of) = model.drawing();
        let mut settings = settings.guided(self.guidance).heated(self.temperature);
        settings.sample.top_p = self.top_p.unwrap_or(settings.sample.top_p);
        (settings, self.best_of.unwrap_or(best_of))
    }
}

/// Where a task's answers lie: one log a shard.
pub fn logs(out: &Path, task: &str) -> Result<Vec<PathBuf>> {
    let dir = out.join("answers");
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(&dir)
        .map_err(Error::io(&dir))?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| super::name(p) == format!("{task}.jsonl") || super::name(p).starts_with(&format!("{task}.part-")))
        .collect();
    found.sort();
    Ok(found)
}

/// Inputs that have an answer in the logs.
fn answered(logs: &[PathBuf]) -> Result<HashSet<String>> {
    let mut all = HashSet::new();
    for path in logs {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        for line in text.lines() {
            if let Ok(v) = serde_json::from_str::<Value>(line)
                && let Some(input) = v["input"].as_str()
            {
                all.insert(input.to_owned());
            }
        }
    }
    Ok(all)
}

/// Cuts a line that a kill left unfinished.
fn without_torn_line(path: &Path) -> Result<()> {
    let Ok(bytes) = std::fs::read(path) else { return Ok(()) };
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        let file = std::fs::OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
        file.set_len(whole as u64).map_err(Error::io(path))?;
    }
    Ok(())
}

/// What is asked for an item, ready for the model.
pub(super) struct Question<'a> {
    pub item: &'a Item,
    pub ask: Ask,
    /// A hash of all that the answer depends on.
    pub input: String,
}

fn hash(item: &Item, ask: &Ask, spool: &Spool, model: &str, how: &Asking) -> Result<String> {
    let mut sum = Sha256::new();
    sum.update(model.as_bytes());
    if let Some(through) = &how.through {
        sum.update(through.name.as_bytes());
    }
    sum.update(item.id.as_bytes());
    ask.hash(&mut sum);
    if ask.draws() {
        sum.update(how.seed.to_le_bytes());
        let said = (how.guidance, how.temperature, how.top_p, how.best_of);
        if said != (None, None, None, None) {
            sum.update(format!("{said:?}"));
        }
    }
    if let Ask::Measure(_) = ask {
        sum.update(format!("{:?} {:?}", how.judge, how.limit));
    }
    for shown in &item.shown {
        sum.update(Sha256::digest(spool.bytes(shown)?));
    }
    Ok(sum.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect())
}

/// Asks a model for what its log lacks; `tell` hears how far it is.
pub fn ask(
    task: &Task,
    data: Option<&Path>,
    model: &Model,
    out: &Path,
    how: &Asking,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<()> {
    let spool = Spool::default();
    let mut notes = Notes { partial: how.partial, spool: Some(spool.clone()), ..Notes::default() };
    let files = Files::of_task(task, data, out)?;
    let mut items = task.load(&files, &mut notes)?;
    if let Some(limit) = how.limit {
        items = super::run::limited(items, limit);
    }
    items.retain(|i| i.missing().is_none());
    let (part, parts) = how.shard;
    items.retain(|i| rng::mix(rng::name_key(&i.id)) % parts.max(1) as u64 == part as u64);
    let before = logs(out, task.name())?;
    if !before.is_empty() && !how.resume {
        return Err(Error::bad_file(
            &before[0],
            "answers are here already; --resume goes on, another --out begins anew",
        ));
    }
    let dir = out.join("answers");
    std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    let log = dir.join(match parts {
        0 | 1 => format!("{}.jsonl", task.name()),
        n => format!("{}.part-{part}-of-{n}.jsonl", task.name()),
    });
    without_torn_line(&log)?;
    let there = answered(&before)?;
    let name = model.artifact().fingerprint()?;
    let mut wanted = Vec::new();
    for item in &items {
        let ask = task.ask(item)?;
        let input = hash(item, &ask, &spool, &name, how)?;
        if !there.contains(&input) {
            wanted.push(Question { item, ask, input });
        }
    }
    let all = items.len();
    tell(&format!("{}: {all} items, {} answered before", task.name(), all - wanted.len()));
    let loaded = model.loaded()?;
    let asked = Asked::new(task.name(), model.artifact(), &loaded, &spool, out, how);
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).map_err(Error::io(&log))?;
    let file = Mutex::new(file);
    let (next, done, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let first_error: Mutex<Option<Error>> = Mutex::new(None);
    let clock = Instant::now();
    let chunks: Vec<&[Question]> = wanted.chunks(how.batch.max(1)).collect();
    let work = || {
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let answered = asked.answers(chunk).and_then(|lines| {
                let text: String = lines.iter().map(|l| l.to_string() + "\n").collect();
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                // one write a batch: a kill can tear the last line alone
                file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map_err(Error::io(&log))
            });
            if let Err(e) = answered {
                stop.store(true, Ordering::Relaxed);
                first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                return;
            }
            let n = done.fetch_add(chunk.len(), Ordering::Relaxed) + chunk.len();
            let left = clock.elapsed().as_secs_f64() / n as f64 * (wanted.len() - n) as f64;
            tell(&format!("{}: {n} of {} asked, {left:.0} s to go", task.name(), wanted.len()));
        }
    };
    std::thread::scope(|s| {
        let others: Vec<_> = (1..how.workers.max(1)).map(|_| s.spawn(work)).collect();
        work();
        drop(others);
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}

/// The lines of a run's logs for its tasks, as answers of a file are read: of several answers to one item the last counts, which is
/// the one of the weights that were asked last.
pub fn replayed(out: &Path, task: &str) -> Result<super::run::Replay> {
    let mut by_id: HashMap<String, Value> = HashMap::new();
    for path in logs(out, task)? {
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        for line in text.lines() {
            if let Ok(v) = serde_json::from_str::<Value>(line) {
                by_id.insert(v["id"].as_str().unwrap_or_default().to_owned(), v);
            }
        }
    }
    let mut lines: Vec<(String, Value)> = by_id.into_iter().collect();
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(super::run::Replay::of(lines.into_iter().map(|l| l.1).collect()))
}
