//! LPIPS: the formula, and whole VGG16 and AlexNet trunks whose weights are made from integers.

use candle_core::{DType, Device, Tensor, Var};
use nn::Params;
use qlip::loss::{Lpips, Trunk, layer_distance};
use std::collections::HashMap;
use tests::{close, close_values, fixture, golden, values};

#[test]
fn the_formula() {
    let g = golden("lpips/lpips.safetensors");
    let mut sum: Option<Tensor> = None;
    for l in 0..3 {
        let head = g[&format!("lin{l}")].flatten_all().unwrap();
        let d = layer_distance(&g[&format!("a{l}")], &g[&format!("b{l}")], &head).unwrap();
        close(&format!("layer {l}"), &d, &g[&format!("layer{l}")], 1e-6);
        sum = Some(sum.map_or(d.clone(), |s| (s + d).unwrap()));
    }
    close("distance", &sum.unwrap(), &g["distance"], 1e-6);
}

/// Element i is low + (high - low) times the top 24 bits of splitmix64 of seed + (i + 1) golden ratios.
fn weights(name: &str) -> HashMap<String, Tensor> {
    let path = fixture(&format!("lpips/{name}.json"));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut out = HashMap::new();
    for t in json["tensors"].as_array().unwrap() {
        let shape: Vec<usize> = t["shape"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
        let (low, high, seed) = (t["low"].as_f64().unwrap(), t["high"].as_f64().unwrap(), t["seed"].as_u64().unwrap());
        let value = |i: usize| {
            let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (low + (high - low) * (z >> 40) as f64 / f64::from(1u32 << 24)) as f32
        };
        let all: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        let sum: f64 = all.iter().map(|v| f64::from(*v)).sum();
        assert!((sum - t["sum"].as_f64().unwrap()).abs() < 1e-3, "{}: the weights are made otherwise", t["name"]);
        let name = t["name"].as_str().unwrap().to_owned();
        out.insert(name, Tensor::from_vec(all, shape, &Device::Cpu).unwrap());
    }
    out
}

fn whole(name: &str, net: Trunk) {
    let params = Params::from_tensors(name, weights(name), DType::F32, &Device::Cpu);
    let model = Lpips::new(net, &params, &params).unwrap();
    let g = golden(&format!("lpips/{name}.safetensors"));
    let b = Var::from_tensor(&g["b"]).unwrap();
    let (fa, fb) = (model.features(&g["a"]).unwrap(), model.features(b.as_tensor()).unwrap());
    for (l, f) in fa.iter().enumerate() {
        let mean = f.mean((2, 3)).unwrap();
        close(&format!("{name} features {l}"), &mean, &g[&format!("feature_mean{l}")], 1e-5);
    }
    let (distance, layers) = model.distance(&fa, &fb).unwrap();
    for (l, d) in layers.iter().enumerate() {
        close(&format!("{name} layer {l}"), d, &g[&format!("layer{l}")], 1e-6);
    }
    close(&format!("{name} distance"), &distance, &g["distance"], 1e-6);
    let grads = distance.sum_all().unwrap().backward().unwrap();
    let grad = grads.get(b.as_tensor()).unwrap();
    close_values(&format!("{name} gradient"), &values(grad), &values(&g["b_grad"]), 1e-4, 0.0);
}

#[test]
fn vgg() {
    whole("vgg", Trunk::Vgg);
}

#[test]
fn alexnet() {
    whole("alex", Trunk::Alex);
}
