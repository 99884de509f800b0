//! The bones of a training: batches made ahead, gradients, clipping, updates, validation, log, checkpoints, resume, and all of it shared by
//! several processes. What differs between trainings is a [`Task`].

mod config;
mod log;
mod state;

pub use config::{OptimConfig, Precision, RunConfig, ValidationConfig};

use crate::ahead::Ahead;
use crate::exec::Exec;
use crate::optim::{Ema, Group, Optimizer, Schedule, Settings, clip_factor};
use crate::parallel::World;
use crate::tensorboard::EventFile;
use crate::{Error, Params, Result, checkpoint};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use log::Log;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

/// Which samples a batch is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The update, or the number of a validation batch.
    pub step: usize,
    /// Rows of the whole batch that this process makes.
    pub rows: Range<usize>,
    /// Samples of the whole batch.
    pub batch_size: usize,
    /// Whether the samples are those that are never trained on.
    pub held_out: bool,
}

/// What one training is to the trainer.
pub trait Task: Sync {
    /// Some samples, ready for the model.
    type Batch: Send;
    /// Makes the samples of a place, from nothing but the seed and the place; called on other threads while a step computes.
    fn batch(&self, place: &Place) -> Result<Self::Batch>;
    /// The gradients of this process's rows, which add up over all processes to the whole batch's; loss and metrics are the whole batch's.
    fn gradients(&self, at: &At, batch: Self::Batch) -> Result<StepOutput>;
    /// Losses and measurements of samples that are not trained on, as sums with the number of samples (or targets) that each is over.
    fn validate(&self, batch: Self::Batch) -> Result<Vec<Measure>>;
    /// A picture to look at after a validation, of what the weights make of samples that are not trained on; nothing where a training has
    /// none. `weights` are those that would be exported, and the variables hold them too while this is called.
    fn sheet(&self, weights: &BTreeMap<String, Tensor>) -> Result<Option<Sheet>> {
        let _ = weights;
        Ok(None)
    }
    /// Writes the model's weights into a folder.
    fn export(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()>;
}

/// Where a training is, for a task's step.
pub struct At<'a> {
    /// The update.
    pub step: usize,
    /// Section `[run]`.
    pub run: &'a RunConfig,
    /// The variables.
    pub vars: &'a BTreeMap<String, Var>,
    /// All processes.
    pub world: &'a World,
    /// Numbers beside the variables that a step reads and changes; they are saved and restored with the state.
    pub numbers: &'a RefCell<BTreeMap<String, f64>>,
}

/// A picture of what a model makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sheet {
    /// As PNG, RGB.
    pub png: Vec<u8>,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
}

/// A measurement of a validation.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// Its name; `loss` is the one that says what is best where the config does not.
    pub name: &'static str,
    /// Sum over what it is of.
    pub sum: f64,
    /// Number of those.
    pub count: f64,
}

impl Measure {
    /// A mean over `count` samples.
    pub fn mean(name: &'static str, mean: f64, count: usize) -> Self {
        Self { name, sum: mean * count as f64, count: count as f64 }
    }
}

/// Adds metrics by name.
fn add_metrics(all: &mut Vec<(&'static str, f64)>, more: Vec<(&'static str, f64)>) {
    for (name, v) in more {
        match all.iter_mut().find(|m| m.0 == name) {
            Some(m) => m.1 += v,
            None => all.push((name, v)),
        }
    }
}

/// Gradients of a batch from whole outputs of its parts, each with the share of the batch that it is: for losses that are means over samples.
pub fn of_shares<P>(
    at: &At,
    parts: impl IntoIterator<Item = (P, f64)>,
    mut step: impl FnMut(P) -> Result<StepOutput>,
) -> Result<StepOutput> {
    let (mut sum, mut metrics) = (Accumulator::default(), Vec::new());
    for (part, share) in parts {
        add_metrics(&mut metrics, sum.add_share(step(part)?, share, at.vars)?);
    }
    sum.finish(metrics)?.over(at.world)
}

/// Gradients of a batch part by part: `parts` are of at most `run.micro_batch` rows, and each part's loss is already a share of the whole
/// batch's, as its metrics are.
pub fn in_parts<P>(
    at: &At,
    parts: impl IntoIterator<Item = P>,
    mut loss: impl FnMut(P) -> Result<(Tensor, Vec<(&'static str, f64)>)>,
) -> Result<StepOutput> {
    let mut sum = Accumulator::default();
    let mut metrics: Vec<(&'static str, f64)> = Vec::new();
    for part in parts {
        let (loss, more) = loss(part)?;
        sum.add(&loss, at.vars)?;
        add_metrics(&mut metrics, more);
    }
    sum.finish(metrics)?.over(at.world)
}

/// What one step computed.
pub struct StepOutput {
    /// The loss that the gradients are of.
    pub loss: f64,
    /// Gradients of the variables.
    pub grads: GradStore,
    /// Parts of the loss and other measurements, for the log.
    pub metrics: Vec<(&'static str, f64)>,
}

impl StepOutput {
    /// The backward pass of a scalar loss.
    pub fn of(loss: &Tensor, metrics: Vec<(&'static str, f64)>) -> Result<Self> {
        Ok(Self { loss: finite(loss)?, grads: loss.backward()?, metrics })
    }

    /// Loss and metrics summed over all processes, each of which has its share. The processes name the same metrics, or none.
    pub fn over(mut self, world: &World) -> Result<Self> {
        if world.size() > 1 {
            self.metrics.sort_by_key(|m| m.0);
            let mut all: Vec<f64> = self.metrics.iter().map(|m| m.1).chain([self.loss]).collect();
            world.sum_numbers(&mut all);
            self.loss = all.pop().unwrap_or(f64::NAN);
            self.metrics.iter_mut().zip(all).for_each(|(m, v)| m.1 = v);
        }
        Ok(self)
    }
}

/// The value of a scalar loss.
fn finite(loss: &Tensor) -> Result<f64> {
    let value = loss.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::invalid(format!("the loss is {value}: lower the learning rate")))
}

/// The gradient of a batch as the sum of its parts' gradients, so that only one part's graph is in memory.
#[derive(Default)]
pub struct Accumulator {
    loss: f64,
    grads: Option<GradStore>,
}

impl Accumulator {
    /// Adds a part's loss, which already has the part's share of the batch as its weight.
    pub fn add(&mut self, loss: &Tensor, vars: &BTreeMap<String, Var>) -> Result<()> {
        self.loss += finite(loss)?;
        self.add_grads(loss.backward()?, vars)
    }

    /// Adds a part's output, times the part's share of the batch; its metrics are given back so weighted.
    pub fn add_share(
        &mut self,
        mut part: StepOutput,
        share: f64,
        vars: &BTreeMap<String, Var>,
    ) -> Result<Vec<(&'static str, f64)>> {
        self.loss += part.loss * share;
        if share != 1.0 {
            for var in vars.values() {
                if let Some(g) = part.grads.remove(var.as_tensor()) {
                    part.grads.insert(var.as_tensor(), (g * share)?);
                }
            }
        }
        self.add_grads(part.grads, vars)?;
        Ok(part.metrics.into_iter().map(|(k, v)| (k, v * share)).collect())
    }

    fn add_grads(&mut self, mut grads: GradStore, vars: &BTreeMap<String, Var>) -> Result<()> {
        let Some(sum) = &mut self.grads else {
            self.grads = Some(grads);
            return Ok(());
        };
        for var in vars.values() {
            let var = var.as_tensor();
            let Some(g) = grads.remove(var) else { continue };
            let g = match sum.remove(var) {
                Some(before) => (before + g)?,
                None => g,
            };
            sum.insert(var, g);
        }
        Ok(())
    }

    /// The whole batch.
    pub fn finish(self, metrics: Vec<(&'static str, f64)>) -> Result<StepOutput> {
        let grads = self.grads.ok_or_else(|| Error::invalid("a batch of no parts"))?;
        Ok(StepOutput { loss: self.loss, grads, metrics })
    }
}

/// A line of the log, as the progress display sees it.
pub struct Progress {
    /// Updates done.
    pub step: usize,
    /// Updates in all.
    pub steps: usize,
    /// Loss of this step.
    pub loss: f64,
}

/// The name of the file that holds everything `--resume` needs.
pub const STATE_FILE: &str = "training.safetensors";

/// The name of the file that holds the summary.
pub const SUMMARY_FILE: &str = "summary.json";

/// What a training leaves to say; summary.json in its folder.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Updates in all.
    pub steps: usize,
    /// Updates of this run.
    pub ran: usize,
    /// The update after which somebody ended it, if it was not the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<usize>,
    /// The update after which validation had not become better for long enough, if that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<usize>,
    /// Samples an update.
    pub batch_size: usize,
    /// Seconds of this run.
    pub seconds: f64,
    /// Most memory that the process has had so far, in MiB; absent where the system does not tell.
    pub peak_memory_mib: Option<u64>,
    /// Loss and measurements, each the mean over those of the last tenth of the updates (at most 100) that this run did.
    pub last: BTreeMap<String, f64>,
}

/// Linux's count of the most memory that this process has had.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// A training in a folder.
pub struct Trainer<'a> {
    /// Section `[run]`.
    pub run: &'a RunConfig,
    /// Section `[optim]`.
    pub optim: &'a OptimConfig,
    /// The variables.
    pub params: &'a Params,
    /// Folder for log, state and export.
    pub out: &'a Path,
    /// Continue from the folder's state.
    pub resume: bool,
    /// All processes.
    pub world: &'a World,
    /// Beginnings of names whose gradients are clipped by themselves, apart from all others.
    pub apart: &'static [&'static str],
}

/// What a training has at hand between updates.
struct Running<'a> {
    vars: BTreeMap<String, Var>,
    optimizer: Optimizer,
    ema: Option<Ema>,
    exec: Exec,
    numbers: RefCell<BTreeMap<String, f64>>,
    log: Option<(Log, EventFile)>,
    trainer: &'a Trainer<'a>,
}

impl Trainer<'_> {
    /// Runs to the end. `progress` hears of every update; by false it asks for a checkpoint now and the end.
    pub fn run<T: Task>(&self, task: &T, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Summary> {
        self.optim.check()?;
        self.run.check()?;
        if self.run.batch_size < self.world.size() {
            let (n, all) = (self.run.batch_size, self.world.size());
            return Err(Error::invalid(format!("run.batch_size = {n} for {all} processes: write {all} or more")));
        }
        // the world stays with this thread
        let first = self.place(0, false);
        let make = |step: usize| task.batch(&Place { step, ..first.clone() });
        std::thread::scope(|scope| {
            let batches = Ahead::new(scope, self.run.steps, &make)?;
            self.follow(task, |n| batches.take(n), progress)
        })
    }

    fn place(&self, step: usize, held_out: bool) -> Place {
        let batch_size = self.run.batch_size;
        Place { step, rows: self.world.rows(batch_size), batch_size, held_out }
    }

    fn follow<T: Task>(
        &self,
        task: &T,
        batch: impl Fn(usize) -> Result<T::Batch>,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<Summary> {
        let vars = self.params.vars();
        let mut groups = vec![Group { prefix: String::new(), lr_scale: 1.0, weight_decay: self.optim.weight_decay }];
        groups.extend(self.optim.groups.iter().cloned());
        let settings = Settings { rule: self.optim.rule, betas: self.optim.betas, eps: self.optim.eps };
        let mut optimizer = Optimizer::new(settings, vars.clone(), &groups)?;
        optimizer.share(self.world);
        let ema = self.optim.ema.map(|d| Ema::new(d, &vars)).transpose()?;
        let exec = Exec { bf16: self.run.precision == Precision::Bf16, recompute: self.run.recompute };
        let mut now = Running { vars, optimizer, ema, exec, numbers: RefCell::default(), log: None, trainer: self };
        let state = self.out.join(STATE_FILE);
        let start = if self.resume && state.exists() { now.restore(&state)? } else { 0 };
        if self.world.is_first() {
            now.log = Some((Log::open(&self.out.join("metrics.jsonl"), start)?, EventFile::create(self.out)?));
        }
        let schedule = Schedule {
            shape: self.optim.schedule,
            peak: self.optim.lr,
            floor: self.optim.lr_floor,
            warmup: self.optim.warmup,
            total: self.run.steps,
        };
        let mut summary = Summary { steps: self.run.steps, batch_size: self.run.batch_size, ..Summary::default() };
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        let tail = (self.run.steps / 10).clamp(1, 100);
        let clock = Instant::now();
        for n in start..self.run.steps {
            let line = now
                .update(task, n, batch(n)?, schedule.at(n + 1))
                .map_err(|e| if n == start { e } else { Error::invalid(format!("step {n}: {e}")) })?;
            let seconds = (clock.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
            let loss = line[0].1;
            (summary.ran, summary.seconds) = (n + 1 - start, seconds);
            if n + tail >= self.run.steps {
                for (name, v) in line.iter().filter(|l| l.0 != "lr") {
                    // the mean so far, over the updates that have it
                    let count = counts.entry(name.clone()).or_insert(0.0);
                    *count += 1.0;
                    let mean = summary.last.entry(name.clone()).or_default();
                    *mean += (v - *mean) / *count;
                }
            }
            let done = n + 1;
            now.say(done, [line, vec![("seconds".into(), seconds)]].concat())?;
            let enough = match &self.run.validation {
                Some(v) if done.is_multiple_of(v.every) || done == self.run.steps => now.validate(task, done, v)?,
                _ => false,
            };
            let shown = Progress { step: done, steps: self.run.steps, loss };
            let asked = self.world.any(!progress(&shown));
            let stopped = asked || enough;
            if stopped || done.is_multiple_of(self.run.checkpoint_every) || done == self.run.steps {
                if let Some((log, _)) = &now.log {
                    log.sync()?;
                    // the model before the state: killed in between, the next run writes both again
                    task.export(self.out, &now.weights()?)?;
                }
                now.save(&state, done)?;
            }
            if enough {
                summary.ended_at = Some(done);
            } else if asked {
                summary.stopped_at = Some(done);
            }
            if stopped {
                break;
            }
        }
        summary.peak_memory_mib = peak_memory_bytes().map(|b| b >> 20);
        // a run that was already at its end says nothing new, unless it was killed before it could say it
        if self.world.is_first() && (summary.ran > 0 || !self.out.join(SUMMARY_FILE).exists()) {
            let json = serde_json::to_string_pretty(&summary).map_err(|e| Error::invalid(e.to_string()))?;
            checkpoint::write_atomic(&self.out.join(SUMMARY_FILE), json.as_bytes())?;
        }
        Ok(summary)
    }
}

/// Folder of the pictures that validations leave, and their name in TensorBoard.
const SAMPLES: &str = "samples";

/// Names of the numbers that a validation keeps.
const BEST: &str = "validation.best";
const WORSE: &str = "validation.worse";

impl Running<'_> {
    /// One update at a learning rate; what it says of itself, the loss first.
    fn update<T: Task>(&mut self, task: &T, n: usize, batch: T::Batch, lr: f64) -> Result<Vec<(String, f64)>> {
        let Trainer { run, world, apart, optim, .. } = self.trainer;
        let at = At { step: n, run, vars: &self.vars, world, numbers: &self.numbers };
        let StepOutput { loss, mut grads, metrics } = self.exec.run(|| task.gradients(&at, batch))?;
        self.optimizer.reduce(&mut grads, world)?;
        let is_apart = |name: &str| apart.iter().any(|a| name.starts_with(a));
        let norm = self.optimizer.grad_norm(&grads, |name| !is_apart(name))?;
        let norm_apart = self.optimizer.grad_norm(&grads, is_apart)?;
        let factor = |name: &str| clip_factor(if is_apart(name) { norm_apart } else { norm }, optim.clip);
        self.exec.run(|| self.optimizer.step(&grads, lr, factor))?;
        self.optimizer.spread(world)?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.vars)?;
        }
        let line = [("loss", loss), ("lr", lr), ("grad_norm", norm)].into_iter().chain(metrics);
        Ok(line.map(|(k, v)| (k.to_owned(), v)).collect())
    }

    /// A line of the log.
    fn say(&mut self, step: usize, line: Vec<(String, f64)>) -> Result<()> {
        let Some((log, events)) = &mut self.log else { return Ok(()) };
        log.line(step, &line)?;
        events.scalars(step, &line)
    }

    /// The weights that are exported: the averages, or the variables themselves, and what is held.
    fn weights(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut weights: BTreeMap<String, Tensor> = self.trainer.params.frozen();
        match &self.ema {
            Some(e) => weights.extend(e.tensors(&self.vars)?),
            None => weights.extend(self.vars.iter().map(|(k, v)| (k.clone(), v.as_detached_tensor()))),
        }
        Ok(weights)
    }

    /// Measures what would be exported on samples that are not trained on; true where it has not become better for long enough.
    fn validate<T: Task>(&mut self, task: &T, step: usize, v: &ValidationConfig) -> Result<bool> {
        let Trainer { run, world, out, .. } = self.trainer;
        let trained = self.swap_in_averages()?;
        let mut sums: BTreeMap<&'static str, (f64, f64)> = BTreeMap::new();
        for n in 0..v.samples.div_ceil(run.batch_size) {
            let whole = self.trainer.place(n, true);
            let size = run.micro_batch.unwrap_or(whole.rows.len()).max(1);
            for start in whole.rows.clone().step_by(size) {
                let rows = start..(start + size).min(whole.rows.end);
                let batch = task.batch(&Place { rows, ..whole.clone() })?;
                for m in self.exec.run(|| task.validate(batch))? {
                    let sum = sums.entry(m.name).or_default();
                    *sum = (sum.0 + m.sum, sum.1 + m.count);
                }
            }
        }
        // one process draws, the others wait for its numbers below
        let sheet = match world.is_first() {
            true => self.exec.run(|| task.sheet(&self.weights()?))?,
            false => None,
        };
        for (name, value) in trained.iter().flatten() {
            self.vars[name].set(value)?;
        }
        if let Some(sheet) = sheet {
            let dir = out.join(SAMPLES);
            std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
            checkpoint::write_atomic(&dir.join(format!("val-{step:06}.png")), &sheet.png)?;
            if let Some((_, events)) = &mut self.log {
                events.image(step, SAMPLES, &sheet)?;
            }
        }
        let mut flat: Vec<f64> = sums.values().flat_map(|s| [s.0, s.1]).collect();
        world.sum_numbers(&mut flat);
        let found: Vec<(String, f64)> = sums
            .keys()
            .zip(flat.chunks(2))
            .filter(|(_, s)| s[1] > 0.0)
            .map(|(name, s)| (format!("val_{name}"), s[0] / s[1]))
            .collect();
        let wanted = format!("val_{}", v.best);
        let Some(value) = found.iter().find(|f| f.0 == wanted).map(|f| f.1) else {
            let names: Vec<&str> = sums.keys().copied().collect();
            let why = format!("run.validation.best = {:?}: there are {}", v.best, names.join(", "));
            return Err(Error::invalid(why));
        };
        self.say(step, found)?;
        // losses go down; what is right, alike or clear goes up
        let rises = ["accuracy", "psnr", "zero_shot"].iter().any(|w| v.best.contains(w));
        let score = if rises { -value } else { value };
        let (before, worse) = {
            let numbers = self.numbers.borrow();
            (numbers.get(BEST).copied().unwrap_or(f64::INFINITY), numbers.get(WORSE).copied().unwrap_or(0.0))
        };
        let better = score < before;
        let worse = if better { 0.0 } else { worse + 1.0 };
        self.numbers.borrow_mut().insert(WORSE.into(), worse);
        if better {
            self.numbers.borrow_mut().insert(BEST.into(), score);
            if world.is_first() {
                state::keep_best(out, |dir| task.export(dir, &self.weights()?))?;
            }
        }
        Ok(v.patience.is_some_and(|p| worse >= p as f64))
    }

    /// The averages in the variables' place; what was there, to be put back.
    fn swap_in_averages(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        let Some(ema) = &self.ema else { return Ok(None) };
        let averages = ema.tensors(&self.vars)?;
        let mut before = BTreeMap::new();
        for (name, var) in &self.vars {
            before.insert(name.clone(), var.as_tensor().copy()?.detach());
            var.set(&averages[name].to_device(var.device())?)?;
        }
        Ok(Some(before))
    }
}
