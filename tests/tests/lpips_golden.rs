//! LPIPS: the formula, and whole VGG16 and AlexNet trunks whose weights are made from integers.

use candle_core::{DType, Device, Tensor, Var};
use nn::Params;
use qlip::loss::{Lpips, Trunk, layer_distance};
use tests::{close, close_values, golden, made_weights, values};

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

fn whole(name: &str, net: Trunk) {
    let params = Params::from_tensors(name, made_weights(&format!("lpips/{name}")), DType::F32, &Device::Cpu);
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
