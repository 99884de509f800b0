//! Trainings that are killed and go on, and what they leave.

use super::{fails, fixture, nano, ok, resumes, tiny};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn tokenizer_training_resumes_exactly() {
    let mut sets = tiny();
    for tower in ["vision_config", "decoder_config"] {
        sets.extend([format!("model.{tower}.num_hidden_layers=1"), format!("model.{tower}.image_size=16")]);
    }
    resumes("nano/qlip-stage1.toml", &sets);
}

#[test]
fn the_balance_of_pixels_and_alignment_is_probed_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/qlip-stage1.toml");
    std::fs::copy(config, d.join("c.toml")).unwrap();
    let mut sets = tiny();
    for tower in ["vision_config", "decoder_config"] {
        sets.extend([format!("model.{tower}.num_hidden_layers=1"), format!("model.{tower}.image_size=16")]);
    }
    let mut args = vec!["train", "c.toml", "--out", "p", "--probe-balance"];
    sets.iter().for_each(|s| args.extend(["--set", s]));
    let said = ok(d, &args);
    let config = std::fs::read_to_string(d.join("c.toml")).unwrap();
    let line = config.lines().find(|l| l.starts_with("reconstruction = ")).unwrap();
    assert!(said.contains(line) && line != "reconstruction = 10.0", "{said}");
    let value: f64 = line.trim_start_matches("reconstruction = ").parse().unwrap();
    assert!(value > 0.01 && value < 1000.0, "{value}");
    fails(
        d,
        &["train", "c.toml", "--out", "q", "--probe-balance", "--set", "stage=2", "--set", "start=x"],
        &["stage 1"],
    );
}

#[test]
fn tokenizer_training_with_every_term_resumes_exactly() {
    let mut sets = tiny();
    for tower in ["vision_config", "decoder_config"] {
        sets.push(format!("model.{tower}.num_hidden_layers=2"));
    }
    let more = [
        "loss.quantized_alignment=0.5",
        "loss.distillation=0.5",
        "loss.quantized_distillation=0.5",
        "loss.balance=running",
        "loss.adversarial=0.1",
        "loss.alignment_loss=sigmoid",
        "loss.proximal_steps=3",
        "loss.proximal_ramp=3",
        "adversary={net={kind=\"patch\",width=4,layers=2},r1_gamma=1.0,r1_every=2}",
        "model.vision_config.quantizer_levels=[1]",
        "micro_batch=3",
        "recompute=true",
        "sample_every=5",
    ];
    sets.extend(more.map(str::to_owned));
    sets.push(format!("teacher={}", nano().join("qlip").display()));
    resumes("nano/qlip-stage1.toml", &sets);
}

#[test]
fn unified_training_resumes_exactly() {
    let mut sets = tiny();
    sets.push(format!("qlip={}", nano().join("qlip").display()));
    sets.extend(["model.num_hidden_layers=1", "model.hidden_size=64", "model.intermediate_size=64"].map(str::to_owned));
    resumes("nano/unified.toml", &sets);
}

#[test]
fn a_text_model_grows_into_a_unified_one() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // the nano model's text rows as a Llama of its own
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(nano().join("config.json")).unwrap()).unwrap();
    let text = config["vocabulary"]["text"].as_u64().unwrap() as usize;
    let mut llama = config["text_config"].clone();
    llama["model_type"] = "llama".into();
    llama["vocab_size"] = text.into();
    llama["qk_norm"] = false.into();
    llama["tie_word_embeddings"] = true.into();
    std::fs::create_dir(d.join("llama")).unwrap();
    std::fs::write(d.join("llama/config.json"), llama.to_string()).unwrap();
    let mut tensors: BTreeMap<String, Tensor> = nn::checkpoint::load_dir(&nano()).unwrap().into_iter().collect();
    tensors.retain(|k, _| !k.contains("_norm.weight") || k.contains("layernorm") || k == "model.norm.weight");
    let table = tensors["model.embed_tokens.weight"].narrow(0, 0, text).unwrap().contiguous().unwrap();
    tensors.insert("model.embed_tokens.weight".into(), table);
    tensors.remove("lm_head.weight");
    nn::checkpoint::save(&d.join("llama/model.safetensors"), &tensors, &[]).unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/unified.toml");
    let sets = [
        format!("photos={}", fixture("photos").display()),
        format!("tokenizer={}", nano().join("tokenizer.json").display()),
        format!("qlip={}", nano().join("qlip").display()),
        "start=llama".to_owned(),
        "head=tokens".to_owned(),
        "group_bits=10".to_owned(),
        "steps=2".to_owned(),
        "batch_size=2".to_owned(),
    ];
    let mut args = vec!["train", config.to_str().unwrap(), "--out", "um"];
    for s in &sets {
        args.extend(["--set", s]);
    }
    fails(d, &args, &["either `start`", "[model]"]);
    let without_model = std::fs::read_to_string(&config).unwrap();
    std::fs::write(d.join("start.toml"), without_model.split("[model]").next().unwrap()).unwrap();
    args[1] = "start.toml";
    ok(d, &args);
    let rows = nn::checkpoint::load_dir(&d.join("um")).unwrap()["model.embed_tokens.weight"].dim(0).unwrap();
    assert_eq!(rows, text + 2048);
    ok(d, &["chat", "--model", "um", "--prompt", "hello", "--max-tokens", "4"]);
}

/// A token a code instead of two, no visual rows, and no photographs where the mixture has none.
#[test]
fn a_unified_model_with_a_bitwise_head_trains_resumes_and_draws() {
    let mut sets = tiny();
    sets.push(format!("qlip={}", nano().join("qlip").display()));
    sets.extend(["model.num_hidden_layers=1", "model.hidden_size=64", "model.intermediate_size=64"].map(str::to_owned));
    sets.extend(["head=bits", "head_width=16", "shared_bits=false", "recompute=true"].map(str::to_owned));
    resumes("nano/unified.toml", &sets);
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/unified.toml");
    let mut args = vec!["train", config.to_str().unwrap(), "--out", "um"];
    sets.retain(|s| !s.starts_with("photos="));
    sets.extend(["photos=nowhere".to_owned(), "mixture.photos=0.0".to_owned()]);
    sets.iter().for_each(|s| args.extend(["--set", s]));
    ok(d, &args);
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(d.join("um/config.json")).unwrap()).unwrap();
    assert_eq!(config["text_config"]["vocab_size"], config["vocabulary"]["text"]);
    let weights = nn::checkpoint::load_dir(&d.join("um")).unwrap();
    assert!(weights.contains_key("bit_head.output.weight"));
    ok(d, &["generate", "a red circle", "--model", "um", "-n", "3", "-o", "out"]);
    assert_eq!(std::fs::read_dir(d.join("out")).unwrap().count(), 3);
    ok(d, &["describe", "--model", "um", "out/unified-0001.png"]);
    ok(d, &["export", "um", "small", "--dtype", "q8_0"]);
    ok(d, &["generate", "a red circle", "--model", "small", "-o", "again"]);
    fails(d, &["export", "um", "um"], &["export writes a copy"]);
    sets.push("mixture.photos=0.5".into());
    let without = std::fs::read_to_string(d.join("um/training.toml")).unwrap();
    let without: String = without.lines().filter(|l| !l.starts_with("photos = \"")).map(|l| format!("{l}\n")).collect();
    std::fs::write(d.join("c.toml"), without).unwrap();
    fails(d, &["train", "c.toml", "--out", "no", "--set", "mixture.photos=0.5"], &["photos is missing"]);
}
