//! LLaVA: both stages, killed and whole.

use super::{fails, fixture, nano, ok, resumes, tiny};
use candle_core::Tensor;
use std::path::Path;

/// Three pictures with conversations, one of them with two pictures, one with none.
fn conversations(dir: &Path) {
    for name in ["photo.jpg", "palette.png"] {
        std::fs::copy(fixture("images").join(name), dir.join(name)).unwrap();
    }
    let turns = |ask: &str, answer: &str| serde_json::json!([{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]);
    let data = serde_json::json!([
        {"id": 1, "image": "photo.jpg", "conversations": turns("<image>\nwhat is it?", "a ship")},
        {"id": 2, "image": ["photo.jpg", "palette.png"], "conversations": turns("<image> and <image>: same?", "no")},
        {"id": 3, "conversations": turns("hello", "hello!")},
    ]);
    std::fs::write(dir.join("llava.json"), data.to_string()).unwrap();
}

fn llava_sets(data: &Path) -> Vec<String> {
    let mut sets = tiny();
    sets.retain(|s| !s.starts_with("data.") && !s.starts_with("tokenizer="));
    sets.push("run.batch_size=2".into());
    sets.push(format!("data.0.path={}", data.join("llava.json").display()));
    sets.push(format!("data.0.images={}", data.display()));
    sets
}

#[test]
fn llava_training_resumes_exactly() {
    let data = tempfile::tempdir().unwrap();
    conversations(data.path());
    let mut sets = llava_sets(data.path());
    sets.push(format!("tower={}", nano().join("qlip").display()));
    sets.push(format!("language_model={}", nano().display()));
    resumes("llava/example-stage1.toml", &sets);
}

#[test]
fn llava_learns_its_projector_then_adapters_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    conversations(d);
    let config = |n: u8| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/llava/example-stage{n}.toml"));
        path.to_str().unwrap().to_owned()
    };
    let train = |n: u8, out: &str, more: &[String]| {
        let sets: Vec<String> = llava_sets(d).into_iter().chain(more.to_vec()).collect();
        let path = config(n);
        let mut args = vec!["train", &path, "--out", out];
        for s in &sets {
            args.extend(["--set", s]);
        }
        ok(d, &args);
    };
    let weights = |folder: &str| nn::checkpoint::load_dir(&d.join(folder)).unwrap();
    let same =
        |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() == 0.0;
    let parts = [format!("tower={}", nano().join("qlip").display()), format!("language_model={}", nano().display())];
    train(1, "one", &parts);
    let lora = [format!("start={}", d.join("one").display()), "lora={rank=2,alpha=4.0}".to_owned()];
    train(2, "two", &lora);
    let (one, two) = (weights("one"), weights("two"));
    assert_eq!(one.len(), two.len(), "adapters are merged");
    let q = "language_model.model.layers.0.self_attn.q_proj.weight";
    let tower = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight";
    assert!(!same(&one[q], &two[q]) && same(&one[tower], &two[tower]));
    assert!(!same(&one["multi_modal_projector.linear_1.weight"], &two["multi_modal_projector.linear_1.weight"]));
    for dtype in ["f32", "q8_0"] {
        let out = ok(d, &["describe", "photo.jpg", "--model", "two", "--dtype", dtype, "--json"]);
        assert!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["answer"].is_string());
    }
    // the adapters by themselves, beside the base model that they name: the same answers, and the same weights when they are merged
    let peft: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(d.join("two/adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&peft["peft_type"], &peft["r"], &peft["lora_alpha"]), (&"LORA".into(), &2.into(), &4.0.into()));
    let answer = |model: &str| ok(d, &["describe", "photo.jpg", "--model", model, "--max-tokens", "8"]);
    assert_eq!(answer("two/adapter"), answer("two"));
    let adapters = nn::checkpoint::load(&d.join("two/adapter/adapter_model.safetensors")).unwrap();
    let of = |m: &str| {
        &adapters[&format!("base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_{m}.weight")]
    };
    let by_hand = (&one[q] + (of("B").matmul(of("A")).unwrap() * 2.0).unwrap()).unwrap();
    let far = |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(far(&by_hand, &two[q]) < 1e-6);
    ok(d, &["export", "two/adapter", "merged", "--dtype", "f32"]);
    let merged = weights("merged");
    assert_eq!(merged.len(), two.len());
    assert!(merged.iter().all(|(name, t)| far(t, &two[name]) < 1e-6));
    ok(d, &["export", "two/adapter", "small", "--dtype", "q8_0"]);
    answer("small");
    // held in blocks: a little coarser, and learned all the same
    let qlora = [format!("start={}", d.join("one").display()), "lora={rank=2,alpha=4.0,base=\"q8_0\"}".to_owned()];
    train(2, "three", &qlora);
    let three = weights("three");
    assert!(!same(&one[q], &three[q]) && far(&two[q], &three[q]) < 0.05);
    // what is not known is refused by name
    let config_path = d.join("two/adapter/adapter_config.json");
    let plain = std::fs::read_to_string(&config_path).unwrap();
    for (from, to, says) in [
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        ("\"r\": 2", "\"r\": 3", "its rank is not r 3"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias all"),
    ] {
        std::fs::write(&config_path, plain.replace(from, to)).unwrap();
        fails(d, &["info", "two/adapter"], &[says]);
    }
    let base = d.join("one").display().to_string();
    std::fs::write(&config_path, plain.replace(&base, "nobody/nowhere/x")).unwrap();
    fails(d, &["info", "two/adapter"], &["base_model_name_or_path"]);
    let long =
        ["train", &config(1), "--out", "x", "--set", "sequence_length=20", "--set", &parts[0], "--set", &parts[1]];
    let (data, images) =
        (format!("data.0.path={}", d.join("llava.json").display()), format!("data.0.images={}", d.display()));
    fails(
        d,
        &[&long[..], &["--set", &data, "--set", &images]].concat(),
        &["llava.json", "entry", "sequence_length is 20"],
    );
    assert!(!d.join("x/model.safetensors").exists());
}
