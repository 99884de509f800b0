//! Optimisers, clipping, schedule and averaging against reference trajectories.

use candle_core::{Tensor, Var};
use nn::optim::{Ema, Group, Optimizer, Rule, Schedule, Settings, Shape, clip_factor};
use std::collections::BTreeMap;
use tests::{close_values, golden, values};

fn group(prefix: &str, weight_decay: f64) -> Group {
    Group { prefix: prefix.into(), lr_scale: 1.0, weight_decay }
}

/// Gradients as the optimiser wants them: of a sum of var * grad.
fn grads(pairs: &[(&Var, Tensor)]) -> candle_core::backprop::GradStore {
    let parts: Vec<Tensor> = pairs.iter().map(|(v, g)| (v.as_tensor() * g).unwrap().sum_all().unwrap()).collect();
    Tensor::stack(&parts, 0).unwrap().sum_all().unwrap().backward().unwrap()
}

fn trajectory(rule: Rule, eps: f64, decay: f64, key: &str) {
    let io = golden("optim/optim.safetensors");
    let var = Var::from_tensor(&io["start"]).unwrap();
    let vars = BTreeMap::from([("w".to_owned(), var.clone())]);
    let settings = Settings { rule, betas: (0.9, 0.95), eps };
    let mut opt = Optimizer::new(settings, vars.clone(), &[group("", decay)]).unwrap();
    let mut averages = [(0.99, Ema::new(0.99, &vars).unwrap()), (0.9999, Ema::new(0.9999, &vars).unwrap())];
    for step in 0..20 {
        let g = io["grads"].get(step).unwrap();
        opt.step(&grads(&[(&var, g)]), 0.01, |_| 1.0).unwrap();
        close_values(&format!("{key} {step}"), &values(&var), &values(&io[key].get(step).unwrap()), 1e-6, 0.0);
        for (d, ema) in &mut averages {
            ema.update(&vars).unwrap();
            if rule == Rule::Adamw {
                let want = values(&io[&format!("ema_{d}_of_adamw")].get(step).unwrap());
                close_values(&format!("ema {d} {step}"), &values(&ema.tensors(&vars).unwrap()["w"]), &want, 1e-6, 0.0);
            }
        }
    }
}

#[test]
fn adamw_and_its_averages() {
    trajectory(Rule::Adamw, 1e-8, 0.1, "adamw");
}

#[test]
fn lamb() {
    trajectory(Rule::Lamb, 1e-6, 0.05, "lamb");
}

#[test]
fn schedule() {
    let io = golden("optim/optim.safetensors");
    let s = Schedule { shape: Shape::Cosine, peak: 3e-4, floor: 3e-5, warmup: 10, total: 100 };
    let got: Vec<f64> = (0..111).map(|n| s.at(n)).collect();
    close_values("cosine", &got, &values(&io["cosine_schedule"]), 1e-12, 0.0);
}

#[test]
fn clip_then_step_with_groups() {
    let io = golden("optim/optim.safetensors");
    // b is a matrix and decays, a is a vector and does not
    let (a, b) = (Var::from_tensor(&io["step_a_start"]).unwrap(), Var::from_tensor(&io["step_b_start"]).unwrap());
    let vars = BTreeMap::from([("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())]);
    let settings = Settings { rule: Rule::Adamw, betas: (0.9, 0.95), eps: 1e-8 };
    let mut opt = Optimizer::new(settings, vars, &[group("", 0.1)]).unwrap();
    let s = Schedule { shape: Shape::Cosine, peak: 3e-4, floor: 3e-5, warmup: 10, total: 100 };
    for step in 0..20 {
        let g = grads(&[(&a, io["step_a_grads"].get(step).unwrap()), (&b, io["step_b_grads"].get(step).unwrap())]);
        let norm = opt.grad_norm(&g, |_| true).unwrap();
        close_values("norm", &[norm], &values(&io["step_norm"].get(step).unwrap()), 1e-6, 0.0);
        opt.step(&g, s.at(step), |_| clip_factor(norm, 1.0)).unwrap();
        close_values(&format!("a {step}"), &values(&a), &values(&io["step_a"].get(step).unwrap()), 1e-6, 0.0);
        close_values(&format!("b {step}"), &values(&b), &values(&io["step_b"].get(step).unwrap()), 1e-6, 0.0);
    }
    for step in [0, 3] {
        let list = |k: &str| values(&io[&format!("clip_{k}_{step}")]);
        let norm = list("in_a").iter().chain(&list("in_b")).map(|v| v * v).sum::<f64>().sqrt();
        for k in ["a", "b"] {
            let got: Vec<f64> = list(&format!("in_{k}")).iter().map(|v| v * clip_factor(norm, 1.0)).collect();
            close_values("clip", &got, &list(&format!("out_{k}")), 1e-6, 0.0);
        }
    }
}
