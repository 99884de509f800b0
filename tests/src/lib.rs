//! Helpers of the cross-crate tests: golden files and comparisons at the tolerances of fixtures/README.md.

use candle_core::{DType, Device, Tensor};
use lm::engine::Model;
use lm::{Context, Llama, Part, Source};
use qlip::{Pixels, Qlip};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file or folder under tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// All tensors of a golden file.
pub fn golden(name: &str) -> HashMap<String, Tensor> {
    nn::checkpoint::load(&fixture(name)).expect("a golden file")
}

/// Values in float64.
pub fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().and_then(|t| t.to_dtype(DType::F64)).and_then(|t| t.to_vec1()).expect("values")
}

/// Values as integers.
pub fn integers(t: &Tensor) -> Vec<i64> {
    t.flatten_all().and_then(|t| t.to_dtype(DType::I64)).and_then(|t| t.to_vec1()).expect("integers")
}

/// Asserts |got - want| <= tolerance * max(1, largest |want|) everywhere.
pub fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}: shape");
    close_values(what, &values(got), &values(want), tolerance, 1.0);
}

/// Asserts |got - want| <= tolerance * largest |want| (at least `floor`).
pub fn close_values(what: &str, got: &[f64], want: &[f64], tolerance: f64, floor: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(floor, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance * scale && worst.is_finite(), "{what}: off by {worst:e}, largest value {scale}");
}

/// Largest difference, in float64 on the CPU.
pub fn off(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_device(&Device::Cpu).and_then(|t| t.to_dtype(DType::F64));
    let off = || -> candle_core::Result<f64> { (wide(a)? - wide(b)?)?.abs()?.max_all()?.to_scalar() };
    off().expect("tensors of one shape")
}

/// The decoder of llama/gqa and its golden tensors.
pub fn small_llama(dtype: DType, device: &Device) -> (Arc<Llama>, HashMap<String, Tensor>) {
    let dir = fixture("llama/gqa");
    let config = qlip::config::read_json(&dir.join("config.json")).expect("a config");
    let params = nn::Params::from_dir(&dir, dtype, device).expect("weights");
    (Arc::new(Llama::new(&params, &config).expect("a model")), golden("llama/gqa/io.safetensors"))
}

/// Whole, and through caches in uneven pieces, with a fork and a part taken back: within `near` of the golden logits.
pub fn check_decoder(dtype: DType, device: &Device, near: f64) {
    let (model, io) = small_llama(dtype, device);
    let ids: Vec<lm::Token> = integers(&io["input_ids"]).iter().map(|&i| i as lm::Token).collect();
    let (batch, tokens) = io["input_ids"].dims2().expect("ids of two dimensions");
    let logits = model.forward(&ids, batch).expect("logits");
    assert_eq!(logits.dtype(), dtype);
    let near_golden = |what: &str, got: &Tensor, want: &Tensor| {
        let d = off(got, want);
        assert!(d < near, "{dtype:?} {what}: off by {d}");
    };
    near_golden("whole", &logits, &io["logits"]);
    let row = &ids[..tokens];
    let step = |slot: &mut nn::cache::Slot, from: usize, to: usize| {
        let x = Model::embed(&*model, 0, &row[from..to]).expect("embeddings");
        let positions = (from as u32..to as u32).collect();
        let h = model.trunk().step(&x, positions, vec![(slot, to - from)]).expect("a step");
        model.logits(&h, 0..model.config.vocab_size).expect("logits")
    };
    let part = |from: usize, to: usize| io["logits"].get(0).and_then(|l| l.narrow(0, from, to - from)).expect("rows");
    let mut slot = model.trunk().slot();
    near_golden("begun", &step(&mut slot, 0, 3), &part(0, 3));
    let mut fork = slot.clone();
    step(&mut fork, 3, tokens);
    fork.truncate(5);
    step(&mut slot, 3, 4);
    near_golden("cached", &step(&mut slot, 4, tokens), &part(4, tokens));
    near_golden("forked", &step(&mut fork, 5, tokens), &part(5, tokens));
}

/// The engine's greedy tokens are the golden ones.
pub fn check_greedy(dtype: DType, device: &Device) {
    let (model, io) = small_llama(dtype, device);
    let ids = |name: &str| -> Vec<lm::Token> { integers(&io[name]).iter().map(|&i| i as lm::Token).collect() };
    let rows = Source::rows(0..model.config.vocab_size);
    let (context, want) = (Context::new(vec![Part::tokens(ids("greedy_prompt"))]), ids("greedy_tokens"));
    let got = lm::generate::likeliest(model, vec![context], rows, want.len()).expect("tokens");
    assert_eq!(got.concat(), want);
}

/// The image tokenizer of a folder in a type and on a device: latents within `near` of float32 on the CPU, pixels of the same
/// codes within `near_pixels`.
pub fn check_tokenizer(dir: &Path, dtype: DType, device: &Device, near: f64, near_pixels: f64) {
    let config = qlip::config::read_json(&dir.join("config.json")).expect("a config");
    let load = |dtype, device: &Device| {
        let params = nn::Params::from_dir(dir, dtype, device).expect("weights");
        Qlip::new(&params, &config, false).expect("a model")
    };
    let (exact, model) = (load(DType::F32, &Device::Cpu), load(dtype, device));
    let side = exact.config.vision_config.image_size;
    let values: Vec<f32> = (0..2 * 3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
    let pixels = Tensor::from_vec(values, (2, 3, side, side), &Device::Cpu).expect("pixels");
    let want = exact.encode(&Pixels(pixels.clone())).expect("latents");
    let moved = pixels.to_device(device).and_then(|p| p.to_dtype(dtype)).expect("pixels");
    let got = model.encode(&Pixels(moved)).expect("latents");
    let d = off(&got.latents.0, &want.latents.0);
    assert!(d < near, "{} {dtype:?}: latents off by {d}", dir.display());
    let codes = exact.codes(&want.latents).expect("codes");
    let d = off(&model.decode(&codes).expect("pixels").0, &exact.decode(&codes).expect("pixels").0);
    assert!(d < near_pixels, "{} {dtype:?}: pixels off by {d}", dir.display());
}

/// Tensors as a list of tests/fixtures, NAME.json, makes them from integers: element i is low + (high - low) times the top 24 bits of splitmix64 of seed + (i + 1) golden ratios.
pub fn made_weights(name: &str) -> HashMap<String, Tensor> {
    let path = fixture(&format!("{name}.json"));
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
