//! An engine that several threads use: whoever waits for its own request drives all of them a step.

use super::{Done, Engine, Event, LogProb, Model, Part, Request, RequestId};
use crate::vocab::Token;
use nn::cache::Slot;
use nn::{Error, Result};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An engine behind a lock, with a letter box for each request.
pub struct Shared {
    inner: Mutex<Inner>,
}

struct Inner {
    engine: Engine,
    mail: HashMap<RequestId, VecDeque<Event>>,
}

/// Requests of a caller; those that are not finished are cancelled when the caller leaves.
struct Mine<'a> {
    shared: &'a Shared,
    ids: Vec<RequestId>,
}

impl Drop for Mine<'_> {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        for id in &self.ids {
            inner.engine.cancel(*id);
            inner.mail.remove(id);
        }
    }
}

impl Shared {
    /// For a model.
    pub fn new(model: Arc<dyn Model>) -> Self {
        Self { inner: Mutex::new(Inner { engine: Engine::new(model), mail: HashMap::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // a caller that panicked in a step leaves an engine whose requests are cancelled by its owners
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs requests to their end, all at once. `on` sees each token with its request's place, and may stop all by false;
    /// what has come until then is returned. An error of one ends them all.
    pub fn run(
        &self,
        requests: Vec<Request>,
        on: &mut dyn FnMut(usize, Token, Option<LogProb>) -> bool,
    ) -> Result<Vec<Done>> {
        self.run_each(requests, on)?.into_iter().collect()
    }

    /// The same with a result for each.
    pub fn run_each(
        &self,
        requests: Vec<Request>,
        on: &mut dyn FnMut(usize, Token, Option<LogProb>) -> bool,
    ) -> Result<Vec<Result<Done>>> {
        let mut mine = Mine { shared: self, ids: Vec::new() };
        for r in requests {
            let mut inner = self.lock();
            let id = inner.engine.submit(r)?;
            inner.mail.insert(id, VecDeque::new());
            mine.ids.push(id);
        }
        let place: HashMap<RequestId, usize> = mine.ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let mut results: Vec<Option<Result<Done>>> = mine.ids.iter().map(|_| None).collect();
        while results.iter().any(Option::is_none) {
            let mut news = self.news(&mine.ids);
            while let Some(event) = news.pop_front() {
                match event {
                    Event::Token(id, token, logprob) => {
                        if !on(place[&id], token, logprob) {
                            self.cancel(&mine.ids, &place, &mut results, news);
                            break;
                        }
                    }
                    Event::Done(id, done) => results[place[&id]] = Some(Ok(*done)),
                    Event::Failed(id, e) => results[place[&id]] = Some(Err(e)),
                }
            }
        }
        Ok(results.into_iter().map(|r| r.unwrap_or_else(|| Err(Error::invalid("a request without an end")))).collect())
    }

    /// Events of some requests; makes a step where there are none yet.
    fn news(&self, ids: &[RequestId]) -> VecDeque<Event> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let mut news = VecDeque::new();
        for id in ids {
            news.extend(inner.mail.get_mut(id).map(std::mem::take).unwrap_or_default());
        }
        if !news.is_empty() {
            return news;
        }
        let step = std::panic::AssertUnwindSafe(|| inner.engine.step());
        // a fault in the program ends the requests under way, not whoever asks next
        let events = std::panic::catch_unwind(step).unwrap_or_else(|_| inner.engine.fail_all());
        for event in events {
            let id = match &event {
                Event::Token(id, ..) | Event::Done(id, _) | Event::Failed(id, _) => *id,
            };
            if ids.contains(&id) {
                news.push_back(event);
            } else if let Some(mail) = inner.mail.get_mut(&id) {
                mail.push_back(event);
            }
        }
        news
    }

    fn cancel(
        &self,
        ids: &[RequestId],
        place: &HashMap<RequestId, usize>,
        results: &mut [Option<Result<Done>>],
        news: VecDeque<Event>,
    ) {
        for event in news {
            match event {
                Event::Done(id, done) => results[place[&id]] = Some(Ok(*done)),
                Event::Failed(id, e) => results[place[&id]] = Some(Err(e)),
                Event::Token(..) => {}
            }
        }
        let mut inner = self.lock();
        for id in ids {
            if let Some(Event::Done(id, done)) = inner.engine.cancel(*id) {
                results[place[&id]] = Some(Ok(*done));
            }
            for event in inner.mail.get_mut(id).map(std::mem::take).unwrap_or_default() {
                match event {
                    Event::Done(id, done) => results[place[&id]] = Some(Ok(*done)),
                    Event::Failed(id, e) => results[place[&id]] = Some(Err(e)),
                    Event::Token(..) => {}
                }
            }
        }
    }

    /// See [`Engine::remember`].
    pub fn remember(&self, parts: &[Part], slot: &Slot) {
        self.lock().engine.remember(parts, slot);
    }

    /// Requests under way, and bytes of caches in use and kept.
    pub fn load(&self) -> (usize, usize, usize) {
        let inner = self.lock();
        let (active, kept) = inner.engine.cache_bytes();
        (inner.engine.active(), active, kept)
    }
}
