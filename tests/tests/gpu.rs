//! On a GPU: the decoder, its cache and the image tokenizer against the golden tensors. Without a device it says so.

use candle_core::{DType, Device, Tensor};
use lm::engine::Model;
use lm::{Context, Llama, Part, Source};
use nn::Params;
use qlip::config::read_json;
use qlip::{Pixels, Qlip};
use std::sync::Arc;
use tests::{fixture, golden, integers};

fn device() -> Option<Device> {
    if !candle_core::utils::cuda_is_available() {
        eprintln!("skipped: this build has no CUDA (--features cuda)");
        return None;
    }
    Device::new_cuda(0).inspect_err(|e| eprintln!("skipped: no CUDA device ({e})")).ok()
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    (wide(a) - wide(b)).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn the_decoder_and_its_cache() {
    let Some(device) = device() else { return };
    let (dir, io) = (fixture("llama/gqa"), golden("llama/gqa/io.safetensors"));
    let ids: Vec<u32> = integers(&io["input_ids"]).iter().map(|&i| i as u32).collect();
    let (batch, tokens) = io["input_ids"].dims2().unwrap();
    for (dtype, near) in [(DType::F32, 1e-4), (DType::F16, 2e-2), (DType::BF16, 2e-1)] {
        let config = read_json(&dir.join("config.json")).unwrap();
        let model = Arc::new(Llama::new(&Params::from_dir(&dir, dtype, &device).unwrap(), &config).unwrap());
        assert!(off(&model.forward(&ids, batch).unwrap(), &io["logits"]) < near, "{dtype:?}");
        let mut slot = model.trunk().slot();
        for (from, to) in [(0, 3), (3, tokens)] {
            let x = Model::embed(&*model, 0, &ids[from..to]).unwrap();
            let parts = vec![(&mut slot, to - from)];
            let h = model.trunk().step(&x, (from as u32..to as u32).collect(), parts).unwrap();
            let logits = model.logits(&h, 0..model.config.vocab_size).unwrap();
            let want = io["logits"].get(0).unwrap().narrow(0, from, to - from).unwrap();
            assert!(off(&logits, &want) < near, "{dtype:?} {from}..{to}");
        }
        if dtype == DType::F32 {
            let prompt: Vec<u32> = integers(&io["greedy_prompt"]).iter().map(|&i| i as u32).collect();
            let want: Vec<u32> = integers(&io["greedy_tokens"]).iter().map(|&i| i as u32).collect();
            let rows = Source::rows(0..model.config.vocab_size);
            let context = Context::new(vec![Part::tokens(prompt)]);
            assert_eq!(lm::generate::likeliest(model, vec![context], rows, want.len()).unwrap().concat(), want);
        }
    }
}

#[test]
fn the_image_tokenizer() {
    let Some(device) = device() else { return };
    let dir = fixture("qlip/eva");
    let config = read_json(&dir.join("config.json")).unwrap();
    let load = |at: &Device| Qlip::new(&Params::from_dir(&dir, DType::F32, at).unwrap(), &config, false).unwrap();
    let (cpu, gpu) = (load(&Device::Cpu), load(&device));
    let side = cpu.config.vision_config.image_size;
    let values: Vec<f32> = (0..2 * 3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_vec(values, (2, 3, side, side), &Device::Cpu).unwrap();
    let want = cpu.encode(&Pixels(x.clone())).unwrap();
    let got = gpu.encode(&Pixels(x.to_device(&device).unwrap())).unwrap();
    assert!(off(&got.latents.0, &want.latents.0) < 1e-4);
    let codes = cpu.codes(&want.latents).unwrap();
    assert!(off(&gpu.decode(&codes).unwrap().0, &cpu.decode(&codes).unwrap().0) < 1e-3);
}
