//! Writes an AlexNet trunk for `[lpips]` with random weights: a network that was never trained still sees texture
//! (Ustyuzhaninov et al. 2017), which is what a Gram loss needs where no trained weights are at hand.
//! `cargo run --release --example random_trunk -- FILE`

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Index in torchvision's `features`, channels in and out, kernel.
const CONVOLUTIONS: [(usize, usize, usize, usize); 5] =
    [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: random_trunk FILE")?;
    let mut tensors = BTreeMap::new();
    for (tap, (at, input, output, kernel)) in CONVOLUTIONS.into_iter().enumerate() {
        let fan_in = input * kernel * kernel;
        let deviation = (2.0 / fan_in as f32).sqrt();
        let mut r = nn::rng::keyed(1, &[at as u64]);
        let weight: Vec<f32> = (0..output * fan_in).map(|_| deviation * nn::rng::normal(&mut r)).collect();
        let weight = Tensor::from_vec(weight, (output, input, kernel, kernel), &Device::Cpu)?;
        tensors.insert(format!("features.{at}.weight"), weight);
        tensors.insert(format!("features.{at}.bias"), Tensor::from_vec(vec![0f32; output], output, &Device::Cpu)?);
        let head = Tensor::from_vec(vec![1.0 / output as f32; output], (1, output, 1, 1), &Device::Cpu)?;
        tensors.insert(format!("lin{tap}.model.1.weight"), head);
    }
    nn::checkpoint::save(&path, &tensors, &[])?;
    println!("{}", path.display());
    Ok(())
}
