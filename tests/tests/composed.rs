//! What runs on a GPU (operations composed of candle's, caches of tensors) on the CPU: in float64 it is the formula, in float16
//! and bfloat16 it is near it.

use candle_core::{DType, Device, Tensor};
use lm::engine::Model;
use lm::{Context, Llama, Part, Source};
use nn::Params;
use qlip::config::read_json;
use qlip::{Pixels, Qlip};
use std::sync::Arc;
use tests::{fixture, golden, integers};

fn llama(dtype: DType) -> Arc<Llama> {
    let dir = fixture("llama/gqa");
    let config = read_json(&dir.join("config.json")).unwrap();
    Arc::new(Llama::new(&Params::from_dir(&dir, dtype, &Device::Cpu).unwrap(), &config).unwrap())
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    (wide(a) - wide(b)).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn the_decoder_and_its_cache_in_every_type() {
    let io = golden("llama/gqa/io.safetensors");
    let ids: Vec<u32> = integers(&io["input_ids"]).iter().map(|&i| i as u32).collect();
    let (batch, tokens) = io["input_ids"].dims2().unwrap();
    for (dtype, near) in [(DType::F64, 1e-5), (DType::F16, 2e-2), (DType::BF16, 2e-1)] {
        let model = llama(dtype);
        let logits = model.forward(&ids, batch).unwrap();
        assert_eq!(logits.dtype(), dtype);
        let d = off(&logits, &io["logits"]);
        assert!(d < near, "{dtype:?}: off by {d}");
        // through caches of tensors: uneven pieces, a fork, and a part taken back
        let row = &ids[..tokens];
        let mut slot = model.trunk().slot();
        let step = |slot: &mut nn::cache::Slot, from: usize, to: usize| {
            let x = Model::embed(&*model, 0, &row[from..to]).unwrap();
            let h = model.trunk().step(&x, (from as u32..to as u32).collect(), vec![(slot, to - from)]).unwrap();
            model.logits(&h, 0..model.config.vocab_size).unwrap()
        };
        step(&mut slot, 0, 3);
        let mut fork = slot.clone();
        step(&mut fork, 3, tokens);
        fork.truncate(5);
        step(&mut slot, 3, 4);
        let rest = step(&mut slot, 4, tokens);
        let again = step(&mut fork, 5, tokens);
        let want = io["logits"].get(0).unwrap();
        let d = off(&rest, &want.narrow(0, 4, tokens - 4).unwrap());
        assert!(d < near, "{dtype:?} cached: off by {d}");
        let d = off(&again, &want.narrow(0, 5, tokens - 5).unwrap());
        assert!(d < near, "{dtype:?} forked: off by {d}");
    }
    let model = llama(DType::F64);
    let prompt: Vec<u32> = integers(&io["greedy_prompt"]).iter().map(|&i| i as u32).collect();
    let want: Vec<u32> = integers(&io["greedy_tokens"]).iter().map(|&i| i as u32).collect();
    let rows = Source::rows(0..model.config.vocab_size);
    let context = Context::new(vec![Part::tokens(prompt)]);
    assert_eq!(lm::generate::likeliest(model, vec![context], rows, want.len()).unwrap().concat(), want);
}

#[test]
fn a_tokenizer_in_half_precision() {
    for case in std::fs::read_dir(fixture("qlip")).unwrap() {
        let dir = case.unwrap().path();
        if !dir.join("config.json").is_file() {
            continue;
        }
        let config = read_json(&dir.join("config.json")).unwrap();
        let load = |dtype| Qlip::new(&Params::from_dir(&dir, dtype, &Device::Cpu).unwrap(), &config, false).unwrap();
        let side = load(DType::F32).config.vision_config.image_size;
        let values: Vec<f32> = (0..2 * 3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
        let pixels = Tensor::from_vec(values, (2, 3, side, side), &Device::Cpu).unwrap();
        let exact = load(DType::F32);
        let want = exact.encode(&Pixels(pixels.clone())).unwrap();
        let codes = exact.codes(&want.latents).unwrap();
        let drawn = exact.decode(&codes).unwrap();
        for (dtype, near) in [(DType::F64, 1e-4), (DType::F16, 3e-2)] {
            let model = load(dtype);
            let got = model.encode(&Pixels(pixels.to_dtype(dtype).unwrap())).unwrap();
            let d = off(&got.latents.0, &want.latents.0);
            assert!(d < near, "{} {dtype:?}: latents off by {d}", dir.display());
            let d = off(&model.decode(&codes).unwrap().0, &drawn.0);
            assert!(d < 2.0 * near, "{} {dtype:?}: pixels off by {d}", dir.display());
        }
    }
}
