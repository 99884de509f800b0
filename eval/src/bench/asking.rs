//! Asking a model: answers go line by line into a log that any kill leaves readable, and a run that goes on asks only what is not in
//! it. A line's `input` is a hash of everything the answer depends on: weights, words, pictures, settings, seed.

use super::ask::{Ask, Part, Spool};
use super::through::Through;
use super::{Files, Item, Notes, Task};
use crate::image::{psnr, ssim};
use crate::{Error, Result};
use candle_core::Tensor;
use lm::draw::DrawSettings;
use nn::rng;
use qlip::Image;
use qlip::data::caption;
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use unified::Model;
use unified::artifact::Artifact;
use unified::conversation::{Content, Message, Role};
use unified::eyes::Eyes;
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
        let (mut settings, best_of) = model.drawing();
        settings.guidance_scale = self.guidance.unwrap_or(settings.guidance_scale);
        settings.sample.temperature = self.temperature.unwrap_or(settings.sample.temperature);
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
struct Question<'a> {
    item: &'a Item,
    ask: Ask,
    input: String,
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
    let asked = Asked {
        model: &loaded,
        spool: &spool,
        through: how.through.as_deref(),
        task: task.name(),
        out,
        how,
        artifact: model.artifact(),
        classes: Mutex::new(HashMap::new()),
    };
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

fn decode(spool: &Spool, item: &Item, n: usize) -> Result<Image> {
    let shown = item.shown.get(n).ok_or_else(|| Error::invalid(format!("item {}: no picture {}", item.id, n + 1)))?;
    let bytes = spool.bytes(shown)?;
    Image::from_bytes(Path::new(&item.id), &bytes)
}

/// What is asked of: the model, the pictures, where drawings go, and what is kept between batches.
struct Asked<'a> {
    model: &'a Loaded,
    spool: &'a Spool,
    through: Option<&'a Through>,
    task: &'a str,
    out: &'a Path,
    how: &'a Asking,
    artifact: &'a Artifact,
    /// Vectors of classes, by their words.
    classes: Mutex<HashMap<String, Tensor>>,
}

impl Asked<'_> {
    /// An item's picture as the model is shown it.
    fn picture(&self, item: &Item, n: usize) -> Result<Image> {
        let image = decode(self.spool, item, n)?;
        match self.through {
            Some(t) => t.one(image),
            None => Ok(image),
        }
    }

    fn message(&self, item: &Item, parts: &[Part]) -> Result<Message> {
        let mut content = Vec::new();
        for part in parts {
            content.push(match part {
                Part::Words(w) => Content::Text(w.clone()),
                Part::Picture(n) => Content::Image(self.picture(item, *n)?),
            });
        }
        Ok(Message { role: Role::User, content })
    }

    /// A conversation whose pictures went through the image tokenizer, if there is one.
    fn shown(&self, messages: &[Message]) -> Result<Vec<Message>> {
        let mut messages = messages.to_vec();
        let Some(through) = self.through else { return Ok(messages) };
        for content in messages.iter_mut().flat_map(|m| &mut m.content) {
            if let Content::Image(image) = content {
                *image = through.one(image.clone())?;
            }
        }
        Ok(messages)
    }

    /// Writes a drawn picture below the run's folder; its path there.
    fn save(&self, item: &Item, image: &Image) -> Result<String> {
        let dir = format!("pictures/{}", self.task);
        std::fs::create_dir_all(self.out.join(&dir)).map_err(Error::io(self.out))?;
        let file = format!("{dir}/{}.png", item.id.replace(['/', '\\', ' '], "_"));
        image.save_png(&self.out.join(&file))?;
        Ok(file)
    }

    fn eyes(&self) -> Result<&Eyes> {
        self.model.eyes().ok_or_else(|| {
            Error::Unsupported("this model holds no pictures against words; a QLIP or a unified model does".into())
        })
    }

    /// Vectors of classes in sentences, made once a run.
    fn vectors(&self, classes: &[String], templates: &[String]) -> Result<Tensor> {
        let key = format!("{classes:?} {templates:?}");
        let mut known = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vectors) = known.get(&key) {
            return Ok(vectors.clone());
        }
        let templates: Vec<&str> = templates.iter().map(String::as_str).collect();
        let vectors = self.eyes()?.label_vectors(classes, &templates)?;
        known.insert(key, vectors.clone());
        Ok(vectors)
    }

    fn nearness(&self, images: &[Image], classes: &[String], templates: &[String]) -> Result<Vec<Value>> {
        let rows = self.eyes()?.classify(images, &self.vectors(classes, templates)?)?;
        Ok(rows.into_iter().map(|row| json!({"answer": classes[lm::sample::argmax(&row)], "scores": row})).collect())
    }

    fn draw(&self, messages: &[Vec<Message>], keys: &[u64]) -> Result<Vec<Image>> {
        let (settings, best_of) = self.how.drawing(self.model);
        let seeds: Vec<u64> = keys.iter().map(|k| self.how.seed.wrapping_add(*k)).collect();
        self.model.draw_after(messages, &seeds, (&settings, best_of), &mut |_| true)
    }

    /// A log line for each question.
    fn answers(&self, chunk: &[Question]) -> Result<Vec<Value>> {
        let clock = Instant::now();
        let mut found: Vec<Option<Value>> = vec![None; chunk.len()];
        // words of one length of answer go through the model together; so do drawings, and pictures held against the same classes
        let mut words: HashMap<usize, (Vec<usize>, Vec<Vec<Message>>)> = HashMap::new();
        let mut near: HashMap<(Vec<String>, Vec<String>), Vec<usize>> = HashMap::new();
        let (mut draws, mut back): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        let mut say = |max_tokens: usize, i: usize, messages: Vec<Message>| {
            let group = words.entry(max_tokens).or_default();
            group.0.push(i);
            group.1.push(messages);
        };
        for (i, q) in chunk.iter().enumerate() {
            match &q.ask {
                Ask::Words { parts, max_tokens } => say(*max_tokens, i, vec![self.message(q.item, parts)?]),
                Ask::Talk { messages, max_tokens } => say(*max_tokens, i, self.shown(messages)?),
                Ask::Likelihood { context, choices } => {
                    let choices: Vec<String> = choices.iter().map(|c| format!(" {c}")).collect();
                    found[i] = Some(json!({"answer": "", "ll": self.model.likelihoods(context, &choices)?}));
                }
                Ask::Text { text, window, rolling } => {
                    let loss = self.model.text_loss(text, (*window, *rolling))?;
                    found[i] = Some(json!({"answer": "", "nats": loss.nats, "tokens": loss.tokens}));
                }
                Ask::Nearness { classes, templates } => {
                    near.entry((classes.clone(), templates.clone())).or_default().push(i);
                }
                Ask::Reconstruct { .. } => back.push(i),
                Ask::Measure(what) => {
                    found[i] = Some(super::measure::values(self.model, self.artifact, what, self.how)?)
                }
                Ask::Draw { .. } | Ask::DrawClass { .. } => draws.push(i),
                Ask::Cycle { .. } | Ask::DrawAndAnswer { .. } => {}
                Ask::OfEach { words, max_tokens } => {
                    let about = |n: usize| {
                        let content = vec![Content::Image(self.picture(q.item, n)?), Content::Text(words.clone())];
                        Ok(vec![Message { role: Role::User, content }])
                    };
                    let asked = (0..q.item.shown.len()).map(about).collect::<Result<Vec<_>>>()?;
                    let said = self.model.words(&asked, *max_tokens)?;
                    found[i] = Some(json!({"answer": said.join("; "), "answers": said}));
                }
                Ask::Interleave { words } => {
                    let mut request = self.model.request(self.how.seed);
                    request.max_tokens = 64;
                    let reply = self.model.answer(&[Message::user(words.clone())], &request, &mut |_| true)?;
                    let picture = reply.images.first().map(|p| self.save(q.item, p)).transpose()?;
                    found[i] = Some(json!({"answer": reply.text, "picture": picture}));
                }
            }
        }
        let mut groups: Vec<_> = words.into_iter().collect();
        groups.sort_by_key(|g| g.0);
        for (max_tokens, (which, questions)) in groups {
            for (i, answer) in which.into_iter().zip(self.model.words(&questions, max_tokens)?) {
                found[i] = Some(json!({"answer": answer}));
            }
        }
        for ((classes, templates), which) in near {
            let images = which.iter().map(|i| self.picture(chunk[*i].item, 0)).collect::<Result<Vec<_>>>()?;
            for (i, line) in which.into_iter().zip(self.nearness(&images, &classes, &templates)?) {
                found[i] = Some(line);
            }
        }
        self.reconstruct(chunk, &back, &mut found)?;
        self.drawings(chunk, &draws, &mut found)?;
        self.round_trips(chunk, &mut found)?;
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

    /// Pictures through the model's image tokenizer and back: how near they came, and their codes.
    fn reconstruct(&self, chunk: &[Question], which: &[usize], found: &mut [Option<Value>]) -> Result<()> {
        if which.is_empty() {
            return Ok(());
        }
        let eyes = self.eyes()?;
        let side = eyes.side();
        let fitted = |i: &usize| Ok(unified::photos::centre(&self.picture(chunk[*i].item, 0)?, side));
        let images: Vec<Image> = which.par_iter().map(fitted).collect::<Result<_>>()?;
        let codes = eyes.encode(&images)?;
        let back = eyes.decode(&codes)?;
        for (((i, a), b), code) in which.iter().zip(&images).zip(&back).zip(codes.indices.chunks(codes.per_image())) {
            let mut line = json!({"answer": "", "psnr": psnr(a, b), "ssim": ssim(a, b), "bits": codes.bits,
                "group": eyes.model.bsq.group, "codes": code});
            if matches!(chunk[*i].ask, Ask::Reconstruct { keep: true }) {
                line["picture"] = json!(self.save(chunk[*i].item, b)?);
            }
            found[*i] = Some(line);
        }
        Ok(())
    }

    /// Drawings, and how near those of classes are to each class.
    fn drawings(&self, chunk: &[Question], which: &[usize], found: &mut [Option<Value>]) -> Result<()> {
        if which.is_empty() {
            return Ok(());
        }
        let (mut messages, mut keys) = (Vec::new(), Vec::new());
        for i in which {
            match &chunk[*i].ask {
                Ask::Draw { messages: m, key } => {
                    messages.push(self.shown(m)?);
                    keys.push(*key);
                }
                Ask::DrawClass { classes, class, key } => {
                    messages.push(vec![Message::user(format!("draw {}", caption(&classes[*class])))]);
                    keys.push(*key);
                }
                _ => {}
            }
        }
        for (i, image) in which.iter().zip(self.draw(&messages, &keys)?) {
            let picture = self.save(chunk[*i].item, &image)?;
            let mut line = json!({"answer": "", "picture": picture});
            if let Ask::DrawClass { classes, .. } = &chunk[*i].ask {
                let said: Vec<String> = classes.iter().map(|c| caption(c)).collect();
                line = self.nearness(&[image], &said, &["{}".to_owned()])?.pop().unwrap_or_default();
                line["picture"] = json!(picture);
            }
            found[*i] = Some(line);
        }
        Ok(())
    }

    /// Descriptions that are drawn, and drawings that are asked about.
    fn round_trips(&self, chunk: &[Question], found: &mut [Option<Value>]) -> Result<()> {
        let mut cycles = Vec::new();
        for (i, q) in chunk.iter().enumerate() {
            if let Ask::Cycle { describe, key } = &q.ask {
                let asked = Message {
                    role: Role::User,
                    content: vec![Content::Image(self.picture(q.item, 0)?), Content::Text(describe.clone())],
                };
                cycles.push((i, vec![asked], *key));
            }
        }
        if !cycles.is_empty() {
            let asked: Vec<Vec<Message>> = cycles.iter().map(|c| c.1.clone()).collect();
            let said = self.model.words(&asked, 64)?;
            let wanted: Vec<Vec<Message>> =
                said.iter().map(|s| vec![Message::user(format!("draw {}", s.trim().trim_end_matches('.')))]).collect();
            let keys: Vec<u64> = cycles.iter().map(|c| c.2).collect();
            for (((i, ..), said), image) in cycles.iter().zip(&said).zip(self.draw(&wanted, &keys)?) {
                found[*i] = Some(json!({"answer": said, "picture": self.save(chunk[*i].item, &image)?}));
            }
        }
        let mut own = Vec::new();
        for (i, q) in chunk.iter().enumerate() {
            if let Ask::DrawAndAnswer { words, questions, key } = &q.ask {
                own.push((i, vec![Message::user(format!("draw {words}"))], questions, *key));
            }
        }
        if !own.is_empty() {
            let wanted: Vec<Vec<Message>> = own.iter().map(|o| o.1.clone()).collect();
            let keys: Vec<u64> = own.iter().map(|o| o.3).collect();
            let images = self.draw(&wanted, &keys)?;
            let about =
                |image: &Image, question: &String| vec![Message::user_with_image(image.clone(), question.clone())];
            let asked: Vec<Vec<Message>> =
                own.iter().zip(&images).flat_map(|(o, image)| o.2.iter().map(|q| about(image, q))).collect();
            let mut said = self.model.words(&asked, 16)?.into_iter();
            for ((i, _, questions, _), image) in own.iter().zip(&images) {
                let answers: Vec<String> = said.by_ref().take(questions.len()).collect();
                let picture = self.save(chunk[*i].item, image)?;
                found[*i] = Some(json!({"answer": answers.join("; "), "answers": answers, "picture": picture}));
            }
        }
        Ok(())
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
