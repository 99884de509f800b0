//! The bones of a training loop: step, clip, update, log, save, resume. What differs between trainings is passed in.

use crate::exec::Exec;
use crate::optim::{Ema, Group, Optimizer, Rule, Schedule, Settings, Shape, clip_factor};
use crate::tensorboard::EventFile;
use crate::{Error, Params, Result, checkpoint};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arithmetic of the matrix products during training; weights, sums and updates are float32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Full.
    #[default]
    F32,
    /// Inputs of products rounded to bfloat16, where the processor has instructions for that.
    Bf16,
}

/// Optimiser part of a training config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// Update rule.
    #[serde(default = "adamw")]
    pub rule: Rule,
    /// Decay of the first and second moment.
    #[serde(default = "betas")]
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate that the schedule ends at.
    pub lr_floor: f64,
    /// How the learning rate goes down: cosine, constant, linear, or wsd (warm-up, stable, decay).
    #[serde(default)]
    pub schedule: Shape,
    /// Steps of warm-up.
    pub warmup: usize,
    /// Decay for groups that do not name their own.
    pub weight_decay: f64,
    /// Largest gradient norm; 0 for no clipping.
    pub clip: f64,
    /// Decay of the weight average that is exported; absent for none.
    pub ema: Option<f64>,
    /// Groups with their own learning rate or decay.
    #[serde(default)]
    pub groups: Vec<Group>,
}

impl OptimConfig {
    /// Whether every number is in its range.
    pub fn check(&self) -> Result<()> {
        let groups =
            self.groups.iter().flat_map(|g| [("groups.lr_scale", g.lr_scale), ("groups.weight_decay", g.weight_decay)]);
        let numbers =
            [("lr", self.lr), ("lr_floor", self.lr_floor), ("weight_decay", self.weight_decay), ("clip", self.clip)];
        for (key, value) in numbers.into_iter().chain(groups) {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::invalid(format!("optim.{key} = {value}: write 0 or more")));
            }
        }
        let share = |v: f64| (0.0..1.0).contains(&v);
        if !share(self.betas.0) || !share(self.betas.1) {
            return Err(Error::invalid(format!("optim.betas = {:?}: write shares from 0 to 1", self.betas)));
        }
        if self.eps.is_nan() || self.eps <= 0.0 {
            return Err(Error::invalid(format!("optim.eps = {}: write more than 0", self.eps)));
        }
        match self.ema {
            Some(d) if !share(d) => Err(Error::invalid(format!("optim.ema = {d}: write a share from 0 to 1"))),
            _ => Ok(()),
        }
    }
}

fn adamw() -> Rule {
    Rule::Adamw
}
fn betas() -> (f64, f64) {
    (0.9, 0.95)
}
fn eps() -> f64 {
    1e-8
}

/// What every training config has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoopConfig {
    /// Updates in all.
    pub steps: usize,
    /// Samples an update.
    pub batch_size: usize,
    /// Updates between checkpoints.
    pub checkpoint_every: usize,
    /// Seed of initial values, data order and augmentation.
    pub seed: u64,
    /// Arithmetic of the products.
    pub precision: Precision,
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
        let mut grads = loss.backward()?;
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
    /// Loop settings.
    pub config: LoopConfig,
    /// Optimiser settings.
    pub optim: OptimConfig,
    /// The variables.
    pub params: &'a Params,
    /// Folder for log, state and export.
    pub out: &'a Path,
    /// Continue from the folder's state.
    pub resume: bool,
    /// Beginnings of names whose gradients are clipped by themselves, apart from all others.
    pub apart: &'static [&'static str],
    /// Whether blocks compute their inner values again in the backward pass.
    pub recompute: bool,
    /// Numbers beside the variables that a step reads and changes; they are saved and restored with the state.
    pub numbers: RefCell<BTreeMap<String, f64>>,
}

impl<'a> Trainer<'a> {
    /// A training of these variables.
    pub fn new(config: LoopConfig, optim: &OptimConfig, params: &'a Params, out: &'a Path, resume: bool) -> Self {
        Self {
            config,
            optim: optim.clone(),
            params,
            out,
            resume,
            apart: &[],
            recompute: false,
            numbers: RefCell::default(),
        }
    }

    /// Runs to the end. `step` computes the gradients of update n from nothing but n, the variables and the numbers, so
    /// that a resumed run repeats an uninterrupted one; `export` writes the model from named tensors at every checkpoint. `progress` hears of every
    /// update; by false it asks for a checkpoint now and the end.
    pub fn run(
        &self,
        mut step: impl FnMut(usize) -> Result<StepOutput>,
        mut export: impl FnMut(&BTreeMap<String, Tensor>) -> Result<()>,
        mut progress: impl FnMut(&Progress) -> bool,
    ) -> Result<Summary> {
        self.optim.check()?;
        for (key, n) in [("steps", self.config.steps), ("batch_size", self.config.batch_size)] {
            if n == 0 {
                return Err(Error::invalid(format!("{key} = 0: nothing to train; write 1 or more")));
            }
        }
        let vars = self.params.vars();
        let mut groups = vec![Group { prefix: String::new(), lr_scale: 1.0, weight_decay: self.optim.weight_decay }];
        groups.extend(self.optim.groups.iter().cloned());
        let settings = Settings { rule: self.optim.rule, betas: self.optim.betas, eps: self.optim.eps };
        let mut optimizer = Optimizer::new(settings, vars.clone(), &groups)?;
        let mut ema = self.optim.ema.map(|d| Ema::new(d, &vars)).transpose()?;
        let mut start = 0;
        let state = self.out.join(STATE_FILE);
        if self.resume && state.exists() {
            let numbers;
            (start, numbers) = restore(&state, &vars, &mut optimizer, ema.as_mut())?;
            *self.numbers.borrow_mut() = numbers;
        }
        let mut log = Log::open(&self.out.join("metrics.jsonl"), start)?;
        let mut events = EventFile::create(self.out)?;
        let mut summary =
            Summary { steps: self.config.steps, batch_size: self.config.batch_size, ..Summary::default() };
        let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
        let tail = (self.config.steps / 10).clamp(1, 100);
        let schedule = Schedule {
            shape: self.optim.schedule,
            peak: self.optim.lr,
            floor: self.optim.lr_floor,
            warmup: self.optim.warmup,
            total: self.config.steps,
        };
        let exec = Exec { bf16: self.config.precision == Precision::Bf16, recompute: self.recompute };
        let clock = Instant::now();
        for n in start..self.config.steps {
            let StepOutput { loss, grads, metrics } = exec
                .run(|| step(n))
                .map_err(|e| if n == start { e } else { Error::invalid(format!("step {n}: {e}")) })?;
            let apart = self.apart;
            let is_apart = |name: &str| apart.iter().any(|a| name.starts_with(a));
            let clip = self.optim.clip;
            let norm = optimizer.grad_norm(&grads, |name| !is_apart(name))?;
            let norm_apart = optimizer.grad_norm(&grads, is_apart)?;
            // the schedule's value at 0 is 0, so update n uses the value at n + 1
            let lr = schedule.at(n + 1);
            exec.run(|| {
                optimizer.step(&grads, lr, |name| clip_factor(if is_apart(name) { norm_apart } else { norm }, clip))
            })?;
            if let Some(ema) = &mut ema {
                ema.update(&vars)?;
            }
            let seconds = (clock.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
            let mut line = vec![("loss", loss), ("lr", lr), ("grad_norm", norm), ("seconds", seconds)];
            line.extend(metrics);
            log.line(n + 1, &line)?;
            events.scalars(n + 1, &line)?;
            (summary.ran, summary.seconds) = (n + 1 - start, seconds);
            if n + tail >= self.config.steps {
                for (name, v) in line.iter().filter(|l| !["lr", "seconds"].contains(&l.0)) {
                    // the mean so far, over the updates that have it
                    let count = counts.entry(*name).or_insert(0.0);
                    *count += 1.0;
                    let mean = summary.last.entry((*name).to_owned()).or_default();
                    *mean += (v - *mean) / *count;
                }
            }
            let stopped = !progress(&Progress { step: n + 1, steps: self.config.steps, loss });
            let done = n + 1;
            if stopped || done.is_multiple_of(self.config.checkpoint_every.max(1)) || done == self.config.steps {
                log.sync()?;
                // the model before the state: killed in between, the next run writes both again
                let mut weights: BTreeMap<String, Tensor> = self.params.frozen();
                match &ema {
                    Some(e) => weights.extend(e.tensors(&vars)?),
                    None => weights.extend(vars.iter().map(|(k, v)| (k.clone(), v.as_detached_tensor()))),
                }
                export(&weights)?;
                save(&state, done, &vars, &optimizer, ema.as_ref(), &self.numbers.borrow())?;
            }
            if stopped {
                summary.stopped_at = Some(done);
                break;
            }
        }
        summary.peak_memory_mib = peak_memory_bytes().map(|b| b >> 20);
        // a run that was already at its end says nothing new, unless it was killed before it could say it
        if summary.ran > 0 || !self.out.join(SUMMARY_FILE).exists() {
            let json = serde_json::to_string_pretty(&summary).map_err(|e| Error::invalid(e.to_string()))?;
            checkpoint::write_atomic(&self.out.join(SUMMARY_FILE), json.as_bytes())?;
        }
        Ok(summary)
    }
}

fn save(
    path: &Path,
    step: usize,
    vars: &BTreeMap<String, candle_core::Var>,
    opt: &Optimizer,
    ema: Option<&Ema>,
    numbers: &BTreeMap<String, f64>,
) -> Result<()> {
    let mut all = opt.state()?;
    for (name, var) in vars {
        all.insert(format!("p.{name}"), var.as_detached_tensor());
    }
    if let Some(e) = ema {
        all.extend(e.tensors(vars)?.into_iter().map(|(k, v)| (format!("ema.{k}"), v)));
    }
    // bits, not decimals: what is read must be what was written
    let bits: BTreeMap<&String, u64> = numbers.iter().map(|(k, v)| (k, v.to_bits())).collect();
    let numbers = serde_json::to_string(&bits).map_err(|e| Error::invalid(e.to_string()))?;
    checkpoint::save(path, &all, &[("step", step.to_string()), ("numbers", numbers)])
}

fn restore(
    path: &Path,
    vars: &BTreeMap<String, candle_core::Var>,
    opt: &mut Optimizer,
    ema: Option<&mut Ema>,
) -> Result<(usize, BTreeMap<String, f64>)> {
    let metadata = checkpoint::metadata(path)?;
    let bits: BTreeMap<String, u64> = match metadata.get("numbers") {
        Some(n) => serde_json::from_str(n).map_err(|e| Error::bad_file(path, format!("its numbers: {e}")))?,
        None => BTreeMap::new(),
    };
    let numbers = bits.into_iter().map(|(k, v)| (k, f64::from_bits(v))).collect();
    let step: usize = metadata
        .get("step")
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| Error::bad_file(path, "no step number: not a training state"))?;
    let state = checkpoint::load(path)?;
    for (name, var) in vars {
        let t = state
            .get(&format!("p.{name}"))
            .filter(|t| t.shape() == var.shape())
            .ok_or_else(|| Error::bad_file(path, format!("no `{name}` of this shape: another config?")))?;
        var.set(&t.to_device(var.device())?)?;
    }
    opt.restore(step as u64, &state)?;
    if let Some(e) = ema {
        e.restore(&state)?;
    }
    Ok((step, numbers))
}

/// metrics.jsonl: one JSON object a step.
struct Log {
    path: PathBuf,
    file: std::fs::File,
}

impl Log {
    /// Opens the log and drops lines after `step`, which a killed run may have written beyond its last checkpoint.
    fn open(path: &Path, step: usize) -> Result<Self> {
        let kept: String = match std::fs::read_to_string(path) {
            Ok(text) if step > 0 => text
                .lines()
                .filter(|l| {
                    let line = serde_json::from_str::<serde_json::Value>(l).ok();
                    line.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step as u64)
                })
                .flat_map(|l| [l, "\n"])
                .collect(),
            _ => String::new(),
        };
        checkpoint::write_atomic(path, kept.as_bytes())?;
        let file = std::fs::OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    fn line(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let mut line = serde_json::Map::new();
        line.insert("step".into(), step.into());
        for (k, v) in values {
            line.insert((*k).into(), (*v).into());
        }
        let text = serde_json::Value::Object(line).to_string() + "\n";
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}
