//! Optimisers over named variables, with parameter groups; schedules, clipping, averaging.

mod ema;
mod muon;
mod schedule;

pub use ema::Ema;
pub use schedule::{Schedule, Shape};

use crate::parallel::World;
use crate::params::is_hidden_matrix;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

/// How gradients become updates. Moments are bias-corrected in both rules; weight decay is decoupled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Loshchilov and Hutter 2019.
    Adamw,
    /// You et al. 2020: Adam's step with decay, rescaled for each tensor to the length of the tensor.
    Lamb,
    /// Jordan et al. 2024: orthogonalised Nesterov momentum for hidden weight matrices, AdamW for the rest.
    Muon,
}

/// Settings that all groups share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Update rule.
    pub rule: Rule,
    /// Decay of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// Learning rate and weight decay of the variables whose name starts with `prefix` (the longest match counts).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Beginning of the tensor names; empty for all.
    pub prefix: String,
    /// Factor on the scheduled learning rate.
    pub lr_scale: f64,
    /// Decay of tensors with two or more dimensions; vectors (norms, biases) never decay.
    pub weight_decay: f64,
}

struct Slot {
    var: Var,
    lr_scale: f64,
    weight_decay: f64,
    /// Rows and columns, where the tensor is updated as a matrix.
    matrix: Option<(usize, usize)>,
    /// The process that has the moments and makes the update.
    owner: usize,
    moments: Mutex<Moments>,
}

#[derive(Default)]
struct Moments {
    m: Vec<f32>,
    v: Vec<f32>,
}

/// An optimiser with its state.
pub struct Optimizer {
    settings: Settings,
    steps: u64,
    slots: BTreeMap<String, Slot>,
    /// This process.
    rank: usize,
}

/// Values of gradients that are summed over processes in one go.
const REDUCED: usize = 1 << 22;

impl Optimizer {
    /// For these variables; every one must belong to a group.
    pub fn new(settings: Settings, vars: BTreeMap<String, Var>, groups: &[Group]) -> Result<Self> {
        let mut slots = BTreeMap::new();
        for (name, var) in vars {
            let group = groups
                .iter()
                .filter(|g| name.starts_with(g.prefix.as_str()))
                .max_by_key(|g| g.prefix.len())
                .ok_or_else(|| Error::invalid(format!("no parameter group for `{name}`")))?;
            let n = var.elem_count();
            let weight_decay = if var.rank() >= 2 { group.weight_decay } else { 0.0 };
            let muon = settings.rule == Rule::Muon && is_hidden_matrix(&name, var.dims());
            let matrix = muon.then(|| (var.dims()[0], n / var.dims()[0].max(1)));
            let v = if muon { vec![] } else { vec![0.0; n] };
            let moments = Mutex::new(Moments { m: vec![0.0; n], v });
            slots.insert(name, Slot { var, lr_scale: group.lr_scale, weight_decay, matrix, owner: 0, moments });
        }
        Ok(Self { settings, steps: 0, slots, rank: 0 })
    }

    /// Divides the moments among processes (ZeRO stage 1, Rajbhandari et al. 2020), the largest tensors first, each to the process that has
    /// least.
    pub fn share(&mut self, world: &World) {
        self.rank = world.rank();
        let mut load = vec![0usize; world.size()];
        let mut slots: Vec<&mut Slot> = self.slots.values_mut().collect();
        slots.sort_by_key(|s| std::cmp::Reverse(s.var.elem_count()));
        for slot in slots {
            slot.owner = (0..load.len()).min_by_key(|&r| load[r]).unwrap_or(0);
            load[slot.owner] += slot.var.elem_count();
            if slot.owner != self.rank {
                *slot.moments.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner) = Moments::default();
            }
        }
    }

    /// Gradients summed over all processes. A variable that has none in one process may have one in another.
    pub fn reduce(&self, grads: &mut GradStore, world: &World) -> Result<()> {
        if world.size() == 1 {
            return Ok(());
        }
        let mut there: Vec<f64> =
            self.slots.values().map(|s| f64::from(u8::from(grads.get(s.var.as_tensor()).is_some()))).collect();
        world.sum_numbers(&mut there);
        let slots: Vec<&Slot> = self.slots.values().zip(&there).filter(|s| *s.1 > 0.0).map(|s| s.0).collect();
        let mut from = 0;
        while from < slots.len() {
            let (mut to, mut flat) = (from, Vec::new());
            while to < slots.len() && (to == from || flat.len() + slots[to].var.elem_count() <= REDUCED) {
                match grads.get(slots[to].var.as_tensor()) {
                    Some(g) => flat.extend(g.flatten_all()?.to_vec1::<f32>()?),
                    None => flat.resize(flat.len() + slots[to].var.elem_count(), 0.0),
                }
                to += 1;
            }
            world.sum(&mut flat);
            let mut at = 0;
            for slot in &slots[from..to] {
                let n = slot.var.elem_count();
                let sum = Tensor::from_slice(&flat[at..at + n], slot.var.shape(), &Device::Cpu)?;
                grads.insert(slot.var.as_tensor(), sum.to_device(slot.var.device())?);
                at += n;
            }
            from = to;
        }
        Ok(())
    }

    /// Every variable from the process that updated it to all others.
    pub fn spread(&self, world: &World) -> Result<()> {
        if world.size() == 1 {
            return Ok(());
        }
        for slot in self.slots.values() {
            let mut values = slot.var.flatten_all()?.to_vec1::<f32>()?;
            world.broadcast(slot.owner, &mut values);
            if slot.owner != self.rank {
                slot.var.set(&Tensor::from_vec(values, slot.var.shape(), slot.var.device())?)?;
            }
        }
        Ok(())
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Norm of the gradients of the variables that `of` names, all together; an error names a variable that has none (a cut graph) or a norm that is not finite.
    pub fn grad_norm(&self, grads: &GradStore, of: impl Fn(&str) -> bool) -> Result<f64> {
        let mut sum = 0f64;
        for (name, slot) in self.slots.iter().filter(|s| of(s.0)) {
            let g = grads
                .get(slot.var.as_tensor())
                .ok_or_else(|| Error::invalid(format!("`{name}` got no gradient: something cuts the graph")))?;
            let square = f64::from(g.sqr()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?);
            if !square.is_finite() {
                return Err(Error::invalid(format!("the gradient of `{name}` is not finite: lower the learning rate")));
            }
            sum += square;
        }
        Ok(sum.sqrt())
    }

    /// One update at learning rate `lr`, each gradient multiplied by its variable's `grad_scale` first.
    pub fn step(&mut self, grads: &GradStore, lr: f64, grad_scale: impl Fn(&str) -> f64 + Sync) -> Result<()> {
        self.steps += 1;
        // the updates of matrices have products too
        let exec = crate::Exec::now();
        let rank = self.rank;
        self.slots.par_iter().filter(|s| s.1.owner == rank).try_for_each(|(name, slot)| {
            let g = grads
                .get(slot.var.as_tensor())
                .ok_or_else(|| Error::invalid(format!("`{name}` got no gradient: something cuts the graph")))?;
            let update = Update {
                settings: self.settings,
                steps: self.steps,
                lr: lr * slot.lr_scale,
                weight_decay: slot.weight_decay,
                matrix: slot.matrix,
                grad_scale: grad_scale(name) as f32,
                moments: &slot.moments,
            };
            exec.run(|| update.apply(&slot.var, g))
        })
    }

    /// The moments by the names they are saved under, `m.NAME` and, where the rule has second moments, `v.NAME`: the variable and its shape.
    pub fn moments(&self) -> BTreeMap<String, (String, Vec<usize>)> {
        let one = |(name, slot): (&String, &Slot)| {
            let keys: &[&str] = if slot.matrix.is_some() { &["m"] } else { &["m", "v"] };
            let of = |key: &&str| (format!("{key}.{name}"), (name.clone(), slot.var.dims().to_vec()));
            keys.iter().map(of).collect::<Vec<_>>()
        };
        self.slots.iter().flat_map(one).collect()
    }

    /// Values of one of [`Self::moments`], from the process that has them.
    pub fn moment(&self, key: &str, name: &str, world: &World) -> Result<Vec<f32>> {
        let slot = self.slots.get(name).ok_or_else(|| Error::invalid(format!("no variable `{name}`")))?;
        let mut values = {
            let s = slot.moments.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if key.starts_with("m.") { s.m.clone() } else { s.v.clone() }
        };
        values.resize(slot.var.elem_count(), 0.0);
        world.broadcast(slot.owner, &mut values);
        Ok(values)
    }

    /// Takes back moments by those names, and the number of steps.
    pub fn restore(&mut self, steps: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        self.steps = steps;
        let rank = self.rank;
        for (name, slot) in self.slots.iter_mut().filter(|s| s.1.owner == rank) {
            let values = |key: &str| -> Result<Vec<f32>> {
                let full = format!("{key}.{name}");
                let t = state
                    .get(&full)
                    .filter(|t| t.shape() == slot.var.shape())
                    .ok_or_else(|| Error::invalid(format!("the training state lacks `{full}`")))?;
                Ok(t.flatten_all()?.to_vec1()?)
            };
            let m = values("m")?;
            let v = if slot.matrix.is_some() { vec![] } else { values("v")? };
            *slot.moments.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner) = Moments { m, v };
        }
        Ok(())
    }
}

/// Factor that brings a gradient of this norm down to `max_norm`; 1 below it or when `max_norm` is 0.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 && norm > max_norm { max_norm / (norm + 1e-6) } else { 1.0 }
}

struct Update<'a> {
    settings: Settings,
    steps: u64,
    lr: f64,
    weight_decay: f64,
    matrix: Option<(usize, usize)>,
    grad_scale: f32,
    moments: &'a Mutex<Moments>,
}

const CHUNK: usize = 16 * 1024;
/// Momentum of Muon; the published value.
const MUON_MOMENTUM: f32 = 0.95;

impl Update<'_> {
    fn apply(&self, var: &Var, grad: &Tensor) -> Result<()> {
        let grad = grad.contiguous()?;
        if var.device().is_cpu() {
            var.as_tensor().inplace_op2(&grad, &self)?;
        } else {
            let mut p = var.flatten_all()?.to_vec1::<f32>()?;
            self.run(&mut p, &grad.flatten_all()?.to_vec1::<f32>()?);
            var.set(&Tensor::from_vec(p, var.shape(), var.device())?)?;
        }
        Ok(())
    }

    fn run(&self, p: &mut [f32], g: &[f32]) {
        let mut state = self.moments.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Moments { m, v } = &mut *state;
        let (b1, b2) = (self.settings.betas.0 as f32, self.settings.betas.1 as f32);
        let c1 = (1.0 - self.settings.betas.0.powi(self.steps as i32)) as f32;
        let c2 = (1.0 - self.settings.betas.1.powi(self.steps as i32)) as f32;
        let (eps, lr, wd, scale) =
            (self.settings.eps as f32, self.lr as f32, self.weight_decay as f32, self.grad_scale);
        if let Some((rows, cols)) = self.matrix {
            let nesterov: Vec<f32> = m
                .iter_mut()
                .zip(g)
                .map(|(m, g)| {
                    *m = MUON_MOMENTUM * *m + scale * g;
                    scale * g + MUON_MOMENTUM * *m
                })
                .collect();
            let update = muon::orthogonalise(&nesterov, rows, cols);
            p.iter_mut().zip(update).for_each(|(p, u)| *p = *p * (1.0 - lr * wd) - lr * u);
            return;
        }
        let direction = |m: &mut f32, v: &mut f32, g: f32| {
            let g = g * scale;
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            (*m / c1) / ((*v / c2).sqrt() + eps)
        };
        let chunks =
            p.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)));
        match self.settings.rule {
            Rule::Adamw | Rule::Muon => chunks.for_each(|((p, m), (v, g))| {
                for i in 0..p.len() {
                    let u = direction(&mut m[i], &mut v[i], g[i]);
                    p[i] = p[i] * (1.0 - lr * wd) - lr * u;
                }
            }),
            Rule::Lamb => {
                let mut u = vec![0f32; chunks.len() * CHUNK];
                let norms: Vec<(f64, f64)> = chunks
                    .zip(u.par_chunks_mut(CHUNK))
                    .map(|(((p, m), (v, g)), u)| {
                        let (mut np, mut nu) = (0f64, 0f64);
                        for i in 0..p.len() {
                            u[i] = direction(&mut m[i], &mut v[i], g[i]) + wd * p[i];
                            np += f64::from(p[i]).powi(2);
                            nu += f64::from(u[i]).powi(2);
                        }
                        (np, nu)
                    })
                    .collect();
                let (np, nu) = norms.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
                let trust = if np > 0.0 && nu > 0.0 { (np / nu).sqrt() } else { 1.0 };
                let lr = (self.lr * trust) as f32;
                for (p, u) in p.iter_mut().zip(&u) {
                    *p -= lr * u;
                }
            }
        }
    }
}

impl InplaceOp2 for &Update<'_> {
    fn name(&self) -> &'static str {
        "optimizer-update"
    }
    fn cpu_fwd(&self, p: &mut CpuStorage, lp: &Layout, g: &CpuStorage, lg: &Layout) -> candle_core::Result<()> {
        match (p, lp.contiguous_offsets(), g, lg.contiguous_offsets()) {
            (CpuStorage::F32(p), Some((a, b)), CpuStorage::F32(g), Some((c, d))) => {
                self.run(&mut p[a..b], &g[c..d]);
                Ok(())
            }
            _ => candle_core::bail!("an optimiser update needs contiguous float32 values"),
        }
    }
}
