//! The Frechet distance's network against numpy (tests/fixtures/inception/make.py), weights made from integers; and the command on folders.

use candle_core::{DType, Device};
use eval::metrics::inception::Inception;
use nn::Params;
use tests::{close, golden, made_weights};

#[test]
fn every_output_of_the_network() {
    let mut all = made_weights("inception/inception");
    let pixels = all.remove("pixels").unwrap();
    let net = Inception::new(&Params::from_tensors("made", all, DType::F32, &Device::Cpu)).unwrap();
    let (pooled, spatial, logits) = net.look(&pixels).unwrap();
    let g = golden("inception/inception.safetensors");
    close("pooled", &pooled, &g["pooled"], 1e-4);
    close("spatial", &spatial, &g["spatial"], 1e-4);
    close("logits", &logits, &g["logits"], 1e-4);
}
