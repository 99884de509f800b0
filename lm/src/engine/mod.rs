//! One engine for everything that generates: text, pictures, guidance, several of each at once.
//!
//! Sequences of different lengths share a forward pass without padding: its input is the list of all their new tokens, only
//! attention knows which are whose. Requests join and leave at any step; a token does not depend on what else is in the batch
//! (see [`nn::ops`]). A prompt that begins as another one did is not read again as far as they agree.

mod doubt;
mod guidance;
mod kept;
mod line;
mod request;
mod shared;

pub use doubt::Uncertain;
pub use request::{
    Context, Done, Event, Finish, Grammar, LogProb, Next, Part, Request, RequestId, Scales, Source, in_turn,
};
pub use shared::Shared;

use crate::sample::{SampleSettings, Sampler};
use crate::trunk::Trunk;
use crate::vocab::Token;
use candle_core::{DType, Tensor};
use doubt::Doubt;
use kept::{Kept, common};
use line::Line;
use nn::cache::Slot;
use nn::{Error, Result};
use std::sync::Arc;

/// What an engine needs of a model.
pub trait Model: Send + Sync {
    /// Its blocks.
    fn trunk(&self) -> &Trunk;
    /// Embeddings [tokens, width] of tokens of a head.
    fn embed(&self, head: u8, tokens: &[Token]) -> Result<Tensor>;
    /// The next token of each row of hidden states [rows, width]. `choose` is given logits [rows, choices] and says which
    /// choice each row takes, once or (bit groups) several times a token.
    fn next(&self, source: Source, hidden: &Tensor, choose: &mut Choose) -> Result<Vec<Token>>;
}

/// Logits to choices, a choice a row.
pub type Choose<'a> = dyn FnMut(&Tensor) -> Result<Vec<u32>> + 'a;

/// Tokens of prompts that go through the model in one step; decoding goes on between such steps.
const PREFILL: usize = 512;

struct Active {
    id: RequestId,
    /// Guidance's peers first, the main context last.
    lines: Vec<Line>,
    /// Keys of the main prompt, where it began empty.
    keys: Option<Vec<u64>>,
    /// Whether a kept cache has been looked for.
    placed: bool,
    reused: usize,
    grammar: Grammar,
    scales: Scales,
    doubt: Option<Doubt>,
    sampler: Sampler,
    settings: SampleSettings,
    banned: Vec<Token>,
    seen: Vec<Token>,
    logprobs: Option<usize>,
    tokens: Vec<Token>,
    next: Next,
}

impl Active {
    fn main(&self) -> &Line {
        &self.lines[self.lines.len() - 1]
    }
    fn reading(&self) -> bool {
        self.lines.iter().any(|l| !l.is_read())
    }
}

/// The engine.
pub struct Engine {
    model: Arc<dyn Model>,
    active: Vec<Active>,
    kept: Kept,
    count: u64,
}

impl Engine {
    /// For a model.
    pub fn new(model: Arc<dyn Model>) -> Self {
        Self { model, active: Vec::new(), kept: Kept::default(), count: 0 }
    }

    /// Requests that are not finished.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Bytes of the caches of requests, and of kept ones, as if none were shared.
    pub fn cache_bytes(&self) -> (usize, usize) {
        let active = self.active.iter().flat_map(|a| &a.lines).map(|l| l.slot.bytes()).sum();
        (active, self.kept.bytes())
    }

    /// Takes a request; what it needs is checked here, so that a step does not fail for one of many.
    pub fn submit(&mut self, r: Request) -> Result<RequestId> {
        r.sample.check()?;
        let trunk = self.model.trunk();
        let most = trunk.max_positions();
        for c in r.peers.iter().chain([&r.context]) {
            let len = c.len() + c.offset as usize;
            if c.prompt.iter().all(Part::is_empty) {
                return Err(Error::invalid("an empty context: there is nothing to continue"));
            }
            if len > most {
                return Err(Error::TooLong(format!("{len} tokens are more than the {most} the model can hold")));
            }
            for part in &c.prompt {
                match part {
                    // a row of no table is an error here, before anything is shared with others
                    Part::Tokens(head, ids) => {
                        if let Some(top) = ids.iter().max() {
                            self.model.embed(*head, &[*top])?;
                        }
                    }
                    Part::Embedded(t, keys) if t.dims() != [keys.len(), trunk.width()] => {
                        let (found, n, width) = (t.dims(), keys.len(), trunk.width());
                        return Err(Error::invalid(format!("embeddings {found:?} for {n} tokens of width {width}")));
                    }
                    Part::Embedded(..) => {}
                }
            }
        }
        let share = r.share && r.context.read.is_none();
        let keys = share.then(|| r.context.prompt.iter().flat_map(Part::keys).collect());
        let mut lines: Vec<Line> = r.peers.into_iter().map(|c| Line::new(c, || trunk.slot())).collect();
        lines.push(Line::new(r.context, || trunk.slot()));
        let mut grammar = r.grammar;
        let next = grammar(&[]);
        self.count += 1;
        let id = RequestId(self.count);
        self.active.push(Active {
            id,
            lines,
            keys,
            placed: false,
            reused: 0,
            grammar,
            scales: r.scales,
            doubt: r.uncertain.map(Doubt::new),
            sampler: Sampler::new(r.seed.0, r.seed.1),
            settings: r.sample,
            banned: r.banned,
            seen: r.seen,
            logprobs: r.logprobs,
            tokens: Vec::new(),
            next,
        });
        Ok(id)
    }

    /// Ends a request; its event comes with what it has.
    pub fn cancel(&mut self, id: RequestId) -> Option<Event> {
        let at = self.active.iter().position(|a| a.id == id)?;
        let a = self.active.remove(at);
        Some(self.finish(a, Finish::Cancelled))
    }

    /// Ends all requests with an error.
    fn fail_all(&mut self) -> Vec<Event> {
        let why = || Error::invalid("a fault in the engine ended this request; please report what was asked");
        self.active.drain(..).map(|a| Event::Failed(a.id, why())).collect()
    }

    fn finish(&mut self, mut a: Active, finish: Finish) -> Event {
        let Some(line) = a.lines.pop() else {
            return Event::Failed(a.id, Error::invalid("a request without a context"));
        };
        let unread = line.waiting().min(a.tokens.len());
        if let Some(mut keys) = a.keys.take() {
            // tokens of several heads may follow: only a prompt's keys are sure, so the rest is left out
            keys.truncate(line.slot.len());
            let mut slot = line.slot.clone();
            slot.truncate(keys.len());
            self.kept.keep(keys, slot);
        }
        Event::Done(a.id, Box::new(Done { tokens: a.tokens, finish, slot: line.slot, unread, reused: a.reused }))
    }

    /// Keeps what a conversation has read: its prompt and answer as one, so that the next turn reads only what is new.
    pub fn remember(&mut self, parts: &[Part], slot: &Slot) {
        let mut keys: Vec<u64> = parts.iter().flat_map(Part::keys).collect();
        keys.truncate(slot.len());
        let mut slot = slot.clone();
        slot.truncate(keys.len());
        if !keys.is_empty() {
            self.kept.keep(keys, slot);
        }
    }

    /// Gives requests that have not begun the caches of those that began alike; false for those that had better wait.
    fn place(&mut self) -> Vec<bool> {
        let mut go = Vec::with_capacity(self.active.len());
        for i in 0..self.active.len() {
            if self.active[i].placed || self.active[i].keys.is_none() {
                go.push(true);
                continue;
            }
            let keys = self.active[i].keys.clone().unwrap_or_default();
            let mut best = self.kept.best(&keys);
            let mut promised = 0;
            for a in &self.active[..i] {
                let Some(other) = &a.keys else { continue };
                let slot = &a.main().slot;
                let n = common(&keys, other, slot.len());
                if n > best.0 {
                    best = (n, Some(slot));
                }
                promised = promised.max(common(&keys, other, usize::MAX));
            }
            if promised > best.0 {
                go.push(false);
                continue;
            }
            if let (n, Some(slot)) = best {
                let mut slot = slot.clone();
                slot.truncate(n);
                let a = &mut self.active[i];
                a.reused = n;
                if let Some(line) = a.lines.last_mut() {
                    line.begin_with(slot);
                }
                self.kept.used(&keys, n);
            }
            self.active[i].placed = true;
            go.push(true);
        }
        go
    }

    /// One forward pass of whatever is to be read, and a token for each request that has read all.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.settle(&mut events);
        let go = self.place();
        // what each line reads now: decoding first, prompts as far as a step goes
        let mut room = PREFILL;
        let mut reads: Vec<(usize, usize, Vec<Part>)> = Vec::new();
        for (i, a) in self.active.iter_mut().enumerate().filter(|(i, _)| go[*i]) {
            for (j, line) in a.lines.iter_mut().enumerate() {
                let want = line.waiting();
                let n = if want == 1 { 1 } else { want.min(room) };
                if n == 0 {
                    continue;
                }
                if want > 1 {
                    room -= n;
                }
                reads.push((i, j, line.take(n)));
            }
        }
        let lens: Vec<usize> = reads.iter().map(|(i, j, _)| self.active[*i].lines[*j].slot.len()).collect();
        if let Err(e) = self.read(&reads) {
            self.read_alone(&reads, &lens, e, &mut events);
        }
        self.choose(&mut events);
        self.settle(&mut events);
        events
    }

    /// Runs the trunk over all parts.
    fn read(&mut self, reads: &[(usize, usize, Vec<Part>)]) -> Result<()> {
        if reads.is_empty() {
            return Ok(());
        }
        let model = self.model.clone();
        let mut pieces = Vec::new();
        let mut run: Option<(u8, Vec<Token>)> = None;
        let flush = |run: &mut Option<(u8, Vec<Token>)>, pieces: &mut Vec<Tensor>| -> Result<()> {
            if let Some((head, ids)) = run.take() {
                pieces.push(model.embed(head, &ids)?);
            }
            Ok(())
        };
        for part in reads.iter().flat_map(|r| &r.2) {
            match part {
                Part::Tokens(head, ids) => match &mut run {
                    Some((h, all)) if h == head => all.extend(ids),
                    _ => {
                        flush(&mut run, &mut pieces)?;
                        run = Some((*head, ids.clone()));
                    }
                },
                Part::Embedded(t, _) => {
                    flush(&mut run, &mut pieces)?;
                    pieces.push(t.clone());
                }
            }
        }
        flush(&mut run, &mut pieces)?;
        let x = if pieces.len() == 1 { pieces.remove(0) } else { Tensor::cat(&pieces, 0)? };
        let mut positions = Vec::with_capacity(x.dim(0)?);
        let mut parts = Vec::with_capacity(reads.len());
        let mut ends = Vec::with_capacity(reads.len());
        let mut at = reads.iter();
        let mut read = at.next();
        let mut row = 0;
        for (i, a) in self.active.iter_mut().enumerate() {
            for (j, line) in a.lines.iter_mut().enumerate() {
                let Some((_, _, part)) = read.filter(|r| (r.0, r.1) == (i, j)) else { continue };
                let n: usize = part.iter().map(Part::len).sum();
                let from = line.slot.len() as u32 + line.offset;
                positions.extend(from..from + n as u32);
                row += n;
                if line.is_read() {
                    ends.push((i, j, row - 1));
                }
                parts.push((&mut line.slot, n));
                read = at.next();
            }
        }
        let hidden = model.trunk().step(&x, positions, parts)?;
        for (i, j, row) in ends {
            self.active[i].lines[j].hidden = Some(hidden.narrow(0, row, 1)?);
        }
        Ok(())
    }

    /// A pass that failed is tried request by request, so that only the one whose fault it is fails.
    fn read_alone(
        &mut self,
        reads: &[(usize, usize, Vec<Part>)],
        lens: &[usize],
        whole: Error,
        events: &mut Vec<Event>,
    ) {
        // the failed pass may have made room for tokens that it did not write
        for ((i, j, _), len) in reads.iter().zip(lens) {
            self.active[*i].lines[*j].slot.truncate(*len);
        }
        let requests: std::collections::BTreeSet<usize> = reads.iter().map(|r| r.0).collect();
        let mut failed = Vec::new();
        if let (1, Some(&i)) = (requests.len(), requests.first()) {
            failed.push((i, whole));
        } else {
            for i in requests {
                let mine: Vec<_> = reads.iter().filter(|r| r.0 == i).cloned().collect();
                if let Err(e) = self.read(&mine) {
                    failed.push((i, e));
                }
            }
        }
        for (i, e) in failed.into_iter().rev() {
            let a = self.active.remove(i);
            events.push(Event::Failed(a.id, e));
        }
    }

    /// A token for each request that has read all and is to choose; requests of the same rows share a product.
    fn choose(&mut self, events: &mut Vec<Event>) {
        let source = |a: &Active| match a.next {
            Next::Choose(s) if !a.reading() => Some(s),
            _ => None,
        };
        let mut groups: Vec<(Source, Vec<usize>)> = Vec::new();
        for (i, a) in self.active.iter().enumerate() {
            if let Some(s) = source(a) {
                match groups.iter_mut().find(|g| g.0 == s) {
                    Some(g) => g.1.push(i),
                    None => groups.push((s, vec![i])),
                }
            }
        }
        let mut failed = Vec::new();
        for (source, who) in groups {
            if let Err(e) = self.choose_from(source, &who, events, &mut failed) {
                let why = e.to_string();
                failed.extend(who.iter().map(|&i| (i, Error::invalid(why.clone()))));
            }
        }
        failed.sort_by_key(|f| f.0);
        failed.dedup_by_key(|f| f.0);
        for (i, e) in failed.into_iter().rev() {
            let a = self.active.remove(i);
            events.push(Event::Failed(a.id, e));
        }
    }

    fn choose_from(
        &mut self,
        source: Source,
        who: &[usize],
        events: &mut Vec<Event>,
        failed: &mut Vec<(usize, Error)>,
    ) -> Result<()> {
        // where guidance is off for a token, its peers' logits are not needed
        let mut rows = Vec::new();
        let mut lines = Vec::with_capacity(who.len());
        let mut scales = Vec::with_capacity(who.len());
        for &i in who {
            let a = &self.active[i];
            let scale = (a.scales)(a.tokens.len()).filter(|_| a.lines.len() > 1);
            let from = if scale.is_some() { 0 } else { a.lines.len() - 1 };
            let first = rows.len();
            for line in &a.lines[from..] {
                rows.push(line.hidden.clone().ok_or_else(|| Error::invalid("a context that was not read"))?);
            }
            lines.push(first..rows.len());
            scales.push(scale.unwrap_or_default());
        }
        let hidden = if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(&rows, 0)? };
        let model = self.model.clone();
        let mut logprobs: Vec<Option<LogProb>> = vec![None; who.len()];
        let mut broken = vec![false; who.len()];
        let tokens = model.next(source, &hidden, &mut |logits| {
            let width = logits.dim(1)?;
            let values = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let row = |r: usize| &values[r * width..(r + 1) * width];
            let mut chosen = vec![0u32; values.len() / width.max(1)];
            for (n, &i) in who.iter().enumerate() {
                let a = &mut self.active[i];
                let contexts: Vec<&[f32]> = lines[n].clone().map(row).collect();
                let mut settings = a.settings;
                if let (Some(doubt), Some(main)) = (&mut a.doubt, contexts.last()) {
                    doubt.see(main);
                    scales[n].iter_mut().for_each(|s| *s = doubt.scale(*s));
                    settings.temperature = doubt.temperature(settings.temperature);
                }
                let mut mixed = guidance::mixed(&contexts, &scales[n]);
                if mixed.iter().any(|v| v.is_nan()) {
                    broken[n] = true;
                    continue;
                }
                for &b in a.banned.iter().filter(|_| source.head == 0) {
                    if let Some(v) = b.checked_sub(source.start).and_then(|b| mixed.get_mut(b as usize)) {
                        *v = f32::NEG_INFINITY;
                    }
                }
                let index = a.sampler.sample(&mixed, &seen_of(a, source), &settings) as u32;
                if let Some(top) = a.logprobs {
                    logprobs[n] = Some(logprob(&mixed, index, top, source.start));
                }
                chosen[lines[n].clone()].fill(index);
            }
            Ok(chosen)
        })?;
        for (n, &i) in who.iter().enumerate() {
            let a = &mut self.active[i];
            if broken[n] {
                let layer = a.lines.iter().find_map(|l| l.slot.first_broken_layer());
                let place = layer.map_or("the last norm or the head".to_owned(), |l| format!("layer {l}"));
                let at = a.main().slot.len();
                let why = format!("the logits after {at} tokens are not numbers (NaN); it began in {place}");
                failed.push((i, Error::invalid(why)));
                continue;
            }
            let token = tokens[lines[n].start];
            events.push(Event::Token(a.id, token, logprobs[n].take()));
            take_token(a, source.head, token);
        }
        Ok(())
    }

    /// Takes forced tokens and ends what is over.
    fn settle(&mut self, events: &mut Vec<Event>) {
        let most = self.model.trunk().max_positions();
        let mut i = 0;
        while i < self.active.len() {
            let a = &mut self.active[i];
            while let Next::Only(head, token) = a.next {
                events.push(Event::Token(a.id, token, None));
                take_token(a, head, token);
                if a.main().slot.len() + a.main().waiting() > most {
                    break;
                }
            }
            let line = a.main();
            let full = line.slot.len() + line.waiting() + line.offset as usize > most;
            let finish = match a.next {
                // a request that chooses nothing still reads its context
                Next::Done(f) if !a.tokens.is_empty() || !a.reading() => Some(f),
                _ if full => Some(Finish::Length),
                _ => None,
            };
            match finish {
                Some(f) => {
                    let a = self.active.remove(i);
                    let done = self.finish(a, f);
                    events.push(done);
                }
                None => i += 1,
            }
        }
    }
}

/// Tokens that count as seen, as indices into the logits.
fn seen_of(a: &Active, source: Source) -> Vec<u32> {
    // a group of bits is no token
    if a.settings.repetition_penalty == 1.0 || source.rows == 0 {
        return Vec::new();
    }
    let index = |t: &Token| t.checked_sub(source.start).and_then(|i| u32::try_from(i).ok());
    a.seen.iter().chain(&a.tokens).filter_map(index).collect()
}

fn take_token(a: &mut Active, head: u8, token: Token) {
    a.tokens.push(token);
    for line in &mut a.lines {
        line.push(head, token);
    }
    a.next = (a.grammar)(&a.tokens);
}

fn logprob(logits: &[f32], chosen: u32, top: usize, start: Token) -> LogProb {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let of = |i: usize| (f64::from(logits[i] - max) - total.ln()) as f32;
    let mut best: Vec<usize> = (0..logits.len()).collect();
    let n = top.min(best.len());
    if n > 0 && n < best.len() {
        best.select_nth_unstable_by(n - 1, |&a, &b| logits[b].total_cmp(&logits[a]));
    }
    best.truncate(n);
    best.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    LogProb { chosen: of(chosen as usize), top: best.into_iter().map(|i| (start + i as Token, of(i))).collect() }
}
