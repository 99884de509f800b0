//! A model's answers to a batch of questions, a log line each: words of one length, drawings, and pictures held against the same classes go through the model together.

use super::Item;
use super::ask::{Ask, Names, Part, Spool};
use super::asking::{Asking, Question};
use super::through::Through;
use crate::image::{psnr, ssim};
use crate::{Error, Result};
use candle_core::Tensor;
use qlip::Image;
use qlip::data::caption;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use unified::artifact::Artifact;
use unified::conversation::{Content, Message, Role};
use unified::eyes::Eyes;
use unified::loaded::Loaded;

fn decode(spool: &Spool, item: &Item, n: usize) -> Result<Image> {
    let shown = item.shown.get(n).ok_or_else(|| Error::invalid(format!("item {}: no picture {}", item.id, n + 1)))?;
    let bytes = spool.bytes(shown)?;
    Image::from_bytes(Path::new(&item.id), &bytes)
}

/// What is asked of: the model, the pictures, where drawings go, and what is kept between batches.
pub(super) struct Asked<'a> {
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

impl<'a> Asked<'a> {
    pub fn new(
        task: &'a str,
        artifact: &'a Artifact,
        model: &'a Loaded,
        spool: &'a Spool,
        out: &'a Path,
        how: &'a Asking,
    ) -> Self {
        Self { model, spool, through: how.through.as_deref(), task, out, how, artifact, classes: Mutex::default() }
    }

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

    /// A question about the item's n-th picture.
    fn about(&self, item: &Item, n: usize, words: &str) -> Result<Vec<Message>> {
        Ok(vec![Message::user_with_image(self.picture(item, n)?, words)])
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
    pub fn answers(&self, chunk: &[Question]) -> Result<Vec<Value>> {
        let clock = Instant::now();
        let mut found: Vec<Option<Value>> = vec![None; chunk.len()];
        // words of one length of answer go through the model together; so do drawings, and pictures held against the same classes
        let mut words: HashMap<usize, (Vec<usize>, Vec<Vec<Message>>)> = HashMap::new();
        let mut near: HashMap<(Names, Names), Vec<usize>> = HashMap::new();
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
                    let asked = (0..q.item.shown.len()).map(|n| self.about(q.item, n, words));
                    let asked = asked.collect::<Result<Vec<_>>>()?;
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
        self.cycles(chunk, &mut found)?;
        self.own_drawings(chunk, &mut found)?;
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

    /// Descriptions of pictures, and drawings of what they say.
    fn cycles(&self, chunk: &[Question], found: &mut [Option<Value>]) -> Result<()> {
        let (mut which, mut asked, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (i, q) in chunk.iter().enumerate() {
            if let Ask::Cycle { describe, key } = &q.ask {
                which.push(i);
                asked.push(self.about(q.item, 0, describe)?);
                keys.push(*key);
            }
        }
        if which.is_empty() {
            return Ok(());
        }
        let said = self.model.words(&asked, 64)?;
        let wanted = |s: &String| vec![Message::user(format!("draw {}", s.trim().trim_end_matches('.')))];
        let images = self.draw(&said.iter().map(wanted).collect::<Vec<_>>(), &keys)?;
        for ((i, said), image) in which.into_iter().zip(&said).zip(images) {
            found[i] = Some(json!({"answer": said, "picture": self.save(chunk[i].item, &image)?}));
        }
        Ok(())
    }

    /// Drawings, and answers to questions about them.
    fn own_drawings(&self, chunk: &[Question], found: &mut [Option<Value>]) -> Result<()> {
        let (mut which, mut wanted, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (i, q) in chunk.iter().enumerate() {
            if let Ask::DrawAndAnswer { words, questions, key } = &q.ask {
                which.push((i, questions));
                wanted.push(vec![Message::user(format!("draw {words}"))]);
                keys.push(*key);
            }
        }
        if which.is_empty() {
            return Ok(());
        }
        let images = self.draw(&wanted, &keys)?;
        let about = |image: &Image, q: &String| vec![Message::user_with_image(image.clone(), q.clone())];
        let asked = which.iter().zip(&images).flat_map(|((_, qs), image)| qs.iter().map(|q| about(image, q)));
        let mut said = self.model.words(&asked.collect::<Vec<_>>(), 16)?.into_iter();
        for ((i, questions), image) in which.into_iter().zip(&images) {
            let answers: Vec<String> = said.by_ref().take(questions.len()).collect();
            let picture = self.save(chunk[i].item, image)?;
            found[i] = Some(json!({"answer": answers.join("; "), "answers": answers, "picture": picture}));
        }
        Ok(())
    }
}
