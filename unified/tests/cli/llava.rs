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
