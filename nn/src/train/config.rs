//! What every training config has: `[run]` and `[optim]`.

use crate::optim::{Group, Rule, Shape};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Arithmetic of the matrix products during training; weights, sums and updates are float32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Full.
    #[default]
    F32,
    /// Inputs of products rounded to bfloat16, where the processor has instructions for that.
    Bf16,
}

/// Section `[run]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Updates in all.
    pub steps: usize,
    /// Samples an update, over all processes.
    pub batch_size: usize,
    /// Samples whose graph is in memory at once; a process's whole share if absent. The gradient is the whole batch's either way.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Updates between checkpoints.
    #[serde(default = "hundred")]
    pub checkpoint_every: usize,
    /// Seed of initial values, data order and augmentation.
    #[serde(default)]
    pub seed: u64,
    /// Arithmetic of the products.
    #[serde(default)]
    pub precision: Precision,
    /// Whether blocks forget their inner values and compute them again in the backward pass.
    #[serde(default)]
    pub recompute: bool,
    /// Losses on samples that are not trained on; none if absent.
    #[serde(default)]
    pub validation: Option<ValidationConfig>,
}

/// Section `[run.validation]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ValidationConfig {
    /// Updates between validations.
    pub every: usize,
    /// Samples of each.
    pub samples: usize,
    /// Share of every source that is never trained on.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// What says which checkpoint is best; it stays in the folder `best`.
    #[serde(default = "loss")]
    pub best: String,
    /// Validations without a better one after which the training ends; it goes on to its last step if absent.
    #[serde(default)]
    pub patience: Option<usize>,
}

fn hundred() -> usize {
    100
}
fn held_out() -> f64 {
    0.01
}
fn loss() -> String {
    "loss".into()
}

impl RunConfig {
    /// Whether every number is in its range.
    pub fn check(&self) -> Result<()> {
        let numbers =
            [("steps", self.steps), ("batch_size", self.batch_size), ("checkpoint_every", self.checkpoint_every)];
        for (key, n) in numbers.into_iter().chain(self.micro_batch.map(|m| ("micro_batch", m))) {
            if n == 0 {
                return Err(Error::invalid(format!("run.{key} = 0: nothing to train; write 1 or more")));
            }
        }
        let Some(v) = &self.validation else { return Ok(()) };
        for (key, n) in [("every", v.every), ("samples", v.samples), ("patience", v.patience.unwrap_or(1))] {
            if n == 0 {
                return Err(Error::invalid(format!("run.validation.{key} = 0: write 1 or more")));
            }
        }
        if !(v.held_out > 0.0 && v.held_out < 1.0) {
            return Err(Error::invalid(format!("run.validation.held_out = {}: write a share", v.held_out)));
        }
        Ok(())
    }

    /// Share of every source that is kept from training.
    pub fn held_out(&self) -> f64 {
        self.validation.as_ref().map_or(0.0, |v| v.held_out)
    }
}

/// Section `[optim]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
