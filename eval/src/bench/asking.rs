//! Asking a model: answers go line by line into a log that any kill leaves readable, and a run that goes on asks only what is not in
//! it. A line's `input` is a hash of everything the answer depends on: weights, words, pictures, settings, seed.

use super::ask::{Ask, Part, Spool};
use super::{Files, Item, Notes, Task};
use crate::{Error, Result};
use nn::rng;
use qlip::Image;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use unified::Model;
use unified::conversation::{Content, Message, Role};
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
struct Question<'a> {
    item: &'a Item,
    ask: Ask,
    input: String,
}

fn hash(item: &Item, ask: &Ask, spool: &Spool, model: &str, seed: u64) -> Result<String> {
    let mut sum = Sha256::new();
    sum.update(model.as_bytes());
    sum.update(item.id.as_bytes());
    ask.hash(&mut sum);
    if matches!(ask, Ask::Draw { .. } | Ask::Interleave { .. }) {
        sum.update(seed.to_le_bytes());
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
    let mut items = (task.load)(&files, &mut notes)?;
    if let Some(limit) = how.limit {
        items = super::run::limited(items, limit);
    }
    let (part, parts) = how.shard;
    items.retain(|i| rng::mix(rng::name_key(&i.id)) % parts.max(1) as u64 == part as u64);
    let before = logs(out, task.name)?;
    if !before.is_empty() && !how.resume {
        return Err(Error::bad_file(
            &before[0],
            "answers are here already; --resume goes on, another --out begins anew",
        ));
    }
    let dir = out.join("answers");
    std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    let log = dir.join(match parts {
        0 | 1 => format!("{}.jsonl", task.name),
        n => format!("{}.part-{part}-of-{n}.jsonl", task.name),
    });
    without_torn_line(&log)?;
    let there = answered(&before)?;
    let name = model.artifact().fingerprint()?;
    let mut wanted = Vec::new();
    for item in &items {
        let ask = (task.ask)(item)?;
        let input = hash(item, &ask, &spool, &name, how.seed)?;
        if !there.contains(&input) {
            wanted.push(Question { item, ask, input });
        }
    }
    let all = items.len();
    tell(&format!("{}: {all} items, {} answered before", task.name, all - wanted.len()));
    let loaded = model.loaded()?;
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
            let answered = answers(&loaded, chunk, &spool, out, how.seed).and_then(|lines| {
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
            tell(&format!("{}: {n} of {} asked, {left:.0} s to go", task.name, wanted.len()));
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

fn decode(spool: &Spool, item: &Item, n: usize) -> Result<Image> {
    let shown = item.shown.get(n).ok_or_else(|| Error::invalid(format!("item {}: no picture {}", item.id, n + 1)))?;
    let bytes = spool.bytes(shown)?;
    Image::from_bytes(Path::new(&item.id), &bytes)
}

fn message(spool: &Spool, item: &Item, parts: &[Part]) -> Result<Message> {
    let mut content = Vec::new();
    for part in parts {
        content.push(match part {
            Part::Words(w) => Content::Text(w.clone()),
            Part::Picture(n) => Content::Image(decode(spool, item, *n)?),
        });
    }
    Ok(Message { role: Role::User, content })
}

/// A log line for each question.
fn answers(model: &Loaded, chunk: &[Question], spool: &Spool, out: &Path, seed: u64) -> Result<Vec<Value>> {
    let clock = Instant::now();
    let mut found: Vec<Option<Value>> = vec![None; chunk.len()];
    // words of one length of answer go through the model together; so do drawings
    let mut words: HashMap<usize, (Vec<usize>, Vec<Vec<Message>>)> = HashMap::new();
    let mut draws: Vec<usize> = Vec::new();
    for (i, q) in chunk.iter().enumerate() {
        match &q.ask {
            Ask::Words { parts, max_tokens } => {
                let group = words.entry(*max_tokens).or_default();
                group.0.push(i);
                group.1.push(vec![message(spool, q.item, parts)?]);
            }
            Ask::Talk { messages, max_tokens } => {
                let group = words.entry(*max_tokens).or_default();
                group.0.push(i);
                group.1.push(messages.clone());
            }
            Ask::Likelihood { context, choices } => {
                let choices: Vec<String> = choices.iter().map(|c| format!(" {c}")).collect();
                found[i] = Some(json!({"answer": "", "ll": model.likelihoods(context, &choices)?}));
            }
            Ask::Nearness { classes } => {
                let eyes = model.eyes().ok_or_else(|| {
                    Error::Unsupported(
                        "this model holds no pictures against words; a QLIP or a unified model does".into(),
                    )
                })?;
                let vectors = eyes.label_vectors(classes, super::templates::OPENAI)?;
                let row = eyes.classify(&[decode(spool, q.item, 0)?], &vectors)?.pop().unwrap_or_default();
                found[i] = Some(json!({"answer": classes[lm::sample::argmax(&row)], "scores": row}));
            }
            Ask::Draw { .. } => draws.push(i),
            Ask::Interleave { words } => {
                let mut request = model.request(seed);
                request.max_tokens = 64;
                let reply = model.answer(&[Message::user(words.clone())], &request, &mut |_| true)?;
                let picture = reply.images.first().map(|p| save(out, chunk[i].item, p)).transpose()?;
                found[i] = Some(json!({"answer": reply.text, "picture": picture}));
            }
        }
    }
    let mut groups: Vec<_> = words.into_iter().collect();
    groups.sort_by_key(|g| g.0);
    for (max_tokens, (which, questions)) in groups {
        for (i, answer) in which.into_iter().zip(model.words(&questions, max_tokens)?) {
            found[i] = Some(json!({"answer": answer}));
        }
    }
    if !draws.is_empty() {
        let (settings, best_of) = model.drawing();
        let wanted = |i: &usize| match &chunk[*i].ask {
            Ask::Draw { messages, key } => Some((messages.clone(), seed.wrapping_add(*key))),
            _ => None,
        };
        let (messages, seeds): (Vec<Vec<Message>>, Vec<u64>) = draws.iter().filter_map(wanted).unzip();
        let images = model.draw_after(&messages, &seeds, (&settings, best_of), &mut |_| true)?;
        for (i, image) in draws.into_iter().zip(images) {
            let picture = save(out, chunk[i].item, &image)?;
            found[i] = Some(json!({"answer": "", "picture": picture}));
        }
    }
    let each = clock.elapsed().as_secs_f64() / chunk.len().max(1) as f64;
    let line = |(q, found): (&Question, Option<Value>)| {
        let pictures = q.item.shown.len();
        let mut line = json!({"id": q.item.id, "input": q.input, "pictures": pictures, "seconds": each});
        if let (Some(to), Some(from)) = (line.as_object_mut(), found.as_ref().and_then(Value::as_object)) {
            to.extend(from.clone());
        }
        line
    };
    Ok(chunk.iter().zip(found).map(line).collect())
}

/// Writes a drawn picture below the run's folder; its path there.
fn save(out: &Path, item: &Item, image: &Image) -> Result<String> {
    let dir = out.join("pictures");
    std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    let file = format!("pictures/{}.png", item.id.replace(['/', '\\', ' '], "_"));
    image.save_png(&out.join(&file))?;
    Ok(file)
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
