//! Exponential moving average of weights, kept apart from the graph.

use crate::{Error, Result};
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// average = decay * average + (1 - decay) * weights, after every step.
pub struct Ema {
    decay: f32,
    averages: BTreeMap<String, Vec<f32>>,
}

impl Ema {
    /// Starts at the current weights.
    pub fn new(decay: f64, vars: &BTreeMap<String, Var>) -> Result<Self> {
        let values = |v: &Var| -> Result<Vec<f32>> { Ok(v.flatten_all()?.to_vec1()?) };
        let averages = vars.iter().map(|(n, v)| Ok((n.clone(), values(v)?))).collect::<Result<_>>()?;
        Ok(Self { decay: decay as f32, averages })
    }

    /// Takes in the weights of one step.
    pub fn update(&mut self, vars: &BTreeMap<String, Var>) -> Result<()> {
        let d = self.decay;
        for (name, avg) in &mut self.averages {
            let var = vars.get(name).ok_or_else(|| Error::invalid(format!("no variable `{name}` to average")))?;
            let now = var.flatten_all()?.to_vec1::<f32>()?;
            avg.par_iter_mut().with_min_len(16 * 1024).zip(&now).for_each(|(a, p)| *a = d * *a + (1.0 - d) * p);
        }
        Ok(())
    }

    /// The averages in the shapes of their variables.
    pub fn tensors(&self, vars: &BTreeMap<String, Var>) -> Result<BTreeMap<String, Tensor>> {
        self.averages
            .iter()
            .map(|(n, a)| {
                let var = vars.get(n).ok_or_else(|| Error::invalid(format!("no variable `{n}`")))?;
                Ok((n.clone(), Tensor::from_slice(a, var.shape(), &Device::Cpu)?))
            })
            .collect()
    }

    /// Takes back averages that [`Self::tensors`] gave, stored under `ema.NAME`.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        for (name, avg) in &mut self.averages {
            let t = state
                .get(&format!("ema.{name}"))
                .filter(|t| t.elem_count() == avg.len())
                .ok_or_else(|| Error::invalid(format!("the training state lacks `ema.{name}`")))?;
            *avg = t.flatten_all()?.to_vec1()?;
        }
        Ok(())
    }
}
