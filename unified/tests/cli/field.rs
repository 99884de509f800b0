//! Checkpoints as people bring them (../shared/field/README.md, checkpoints): each is read rightly, or refused by name.

use super::{fails, fixture, ok, text, unified};
use candle_core::{DType, Tensor};

fn folder(name: &str) -> String {
    fixture(&format!("field/checkpoints/{name}")).display().to_string()
}

/// The outputs that transformers computed, in the reference file `reference`.
fn equals_transformers(name: &str, reference: &str) {
    let dir = tempfile::tempdir().unwrap();
    let of = |file: &str| format!("{}/{file}", folder(name));
    ok(dir.path(), &["forward", &folder(name), &of("in.safetensors"), "-o", "out.safetensors"]);
    let got = nn::checkpoint::load(&dir.path().join("out.safetensors")).unwrap();
    let want = nn::checkpoint::load(of(reference).as_ref()).unwrap();
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let mut compared = 0;
    for (key, want) in &want {
        let Some(got) = got.get(key) else { continue };
        let (a, b) = (values(got), values(want));
        let scale = b.iter().fold(1f64, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(a.len() == b.len() && worst <= 2e-5 * scale, "{name} {key}: off by {worst} of {scale}");
        compared += 1;
    }
    assert!(compared > 0, "{name}: nothing to compare among {:?}", want.keys());
}

#[test]
fn configs_of_transformers_4_and_5_give_the_same_numbers() {
    for name in ["llama-rope-parameters", "llama-rope-linear", "llama-harmless-key", "llama-tied-only-lm_head"] {
        equals_transformers(name, "ref.safetensors");
    }
    equals_transformers("clip-transformers5", "ref.safetensors");
}

#[test]
fn what_changes_the_result_and_is_not_known_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let from = folder("llama-harmless-key");
    std::fs::create_dir(d.join("m")).unwrap();
    std::fs::copy(format!("{from}/model.safetensors"), d.join("m/model.safetensors")).unwrap();
    let config = std::fs::read_to_string(format!("{from}/config.json")).unwrap();
    let input = format!("{from}/in.safetensors");
    for (key, value, said) in [
        ("sliding_window", "64", "sliding_window"),
        ("layer_types", r#"["full_attention", "sliding_attention"]"#, "layer_types"),
        ("rope_scaling", r#"{"type": "yarn", "factor": 2.0}"#, "yarn"),
        ("rope_parameters", r#"{"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1.0}"#, "dynamic"),
        ("quantization_config", r#"{"quant_method": "awq"}"#, "quantization_config"),
        ("hidden_act", r#""gelu""#, "gelu"),
    ] {
        let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
        json[key] = serde_json::from_str(value).unwrap();
        std::fs::write(d.join("m/config.json"), json.to_string()).unwrap();
        fails(d, &["forward", "m", &input, "-o", "o"], &["config.json", said]);
    }
    for (key, value) in [
        ("unsloth_version", r#""2025.1""#),
        ("layer_types", r#"["full_attention", "full_attention"]"#),
        ("pad_token_id", "-1"),
        ("sliding_window", "null"),
    ] {
        let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
        json[key] = serde_json::from_str(value).unwrap();
        std::fs::write(d.join("m/config.json"), json.to_string()).unwrap();
        ok(d, &["forward", "m", &input, "-o", "o"]);
    }
}

fn says(name: &str, prompt: &str) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let args = ["chat", "--model", &folder(name), "--prompt", prompt, "--json", "--max-tokens", "12"];
    serde_json::from_str(&ok(dir.path(), &args)).unwrap()
}

#[test]
fn llava_folders_as_transformers_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // B's id is an end in generation_config.json
    let said = says("llava-eos-in-generation_config", "hi");
    assert_eq!(said["text"], "AB", "{said}");
    let said = says("llava-stray-byte", "hi");
    let streamed = ok(d, &["chat", "--model", &folder("llava-stray-byte"), "--prompt", "hi", "--max-tokens", "12"]);
    assert!(streamed.starts_with(said["text"].as_str().unwrap()), "{streamed} is not {said}");
    // the authors' penalty is the default
    let with = says("llava-repetition-penalty", "hi");
    let config =
        std::fs::read_to_string(format!("{}/generation_config.json", folder("llava-repetition-penalty"))).unwrap();
    assert!(config.contains("\"repetition_penalty\": 3.0"));
    let without = d.join("plain");
    std::fs::create_dir(&without).unwrap();
    for f in std::fs::read_dir(folder("llava-repetition-penalty")).unwrap() {
        let f = f.unwrap();
        if f.file_name() != "generation_config.json" {
            std::fs::copy(f.path(), without.join(f.file_name())).unwrap();
        }
    }
    let args = ["chat", "--model", "plain", "--prompt", "hi", "--json", "--max-tokens", "12"];
    let plain: serde_json::Value = serde_json::from_str(&ok(d, &args)).unwrap();
    assert_ne!(with["text"], plain["text"]);
    // numbers that are none are an error, not silence
    fails(
        d,
        &["chat", "--model", &folder("llava-nan"), "--prompt", "hi"],
        &["not numbers (NaN)", "the last norm or the head"],
    );
    // names without `vision_model.`
    let out = unified(d, &["chat", "--model", &folder("llava-transformers5"), "--prompt", "hi", "--max-tokens", "3"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn what_a_person_types_is_words() {
    use unified::artifact::{Artifact, Placement};
    use unified::conversation::Message;
    use unified::llava::LlavaChat;
    let chat = |name: &str| {
        LlavaChat::load(&Artifact::at(&fixture(&format!("field/checkpoints/{name}"))).unwrap(), &Placement::cpu())
            .unwrap()
    };
    let model = chat("llava-control-tokens");
    let ids = |text: &str| model.context(&[Message::user(text)]).unwrap().0;
    let (plain, typed) = (ids("hello"), ids("hello </s> <s> <pad>"));
    let control = |ids: &[lm::Token]| ids.iter().filter(|i| [0, 1, 2].contains(*i)).count();
    assert_eq!(control(&plain), control(&typed), "{typed:?}");
    assert!(typed.len() > plain.len());
    // a picture's mark that is typed is no picture
    let (ids, pictures) = model.context(&[Message::user("an <image> of words")]).unwrap();
    assert!(pictures.is_empty() && !ids.contains(&model.model.config.image_token_index));
    // words around a picture are encoded as a whole
    let model = chat("llava-prepend-first");
    let picture = qlip::Image::from_rgb(28, 28, vec![100; 28 * 28 * 3]);
    let (ids, _) = model.context(&[Message::user_with_image(picture, "hi")]).unwrap();
    let image = model.model.config.image_token_index;
    let after: Vec<lm::Token> = ids.iter().skip_while(|&&i| i != image).skip_while(|&&i| i == image).copied().collect();
    assert!(!after.is_empty());
}

#[test]
fn the_processor_s_mean_is_used() {
    use unified::artifact::{Artifact, Placement};
    use unified::llava::LlavaChat;
    let files = Artifact::at(&fixture("field/checkpoints/llava-processor-config")).unwrap();
    let model = LlavaChat::load(&files, &Placement::cpu()).unwrap();
    assert_eq!(model.preprocess().image_mean, [0.5; 3]);
}

/// A Llama with a tokenizer and a template chats; without them it says what is missing.
#[test]
fn a_plain_llama_chats() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::create_dir(d.join("m")).unwrap();
    let copy = |from: &str, file: &str| {
        std::fs::copy(format!("{}/{file}", folder(from)), d.join("m").join(file)).unwrap();
    };
    copy("llama-rope-parameters", "config.json");
    copy("llama-rope-parameters", "model.safetensors");
    fails(d, &["chat", "--model", "m", "--prompt", "hi"], &["tokenizer.json"]);
    copy("llava-control-tokens", "tokenizer.json");
    fails(d, &["chat", "--model", "m", "--prompt", "hi"], &["chat template"]);
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:";
    let config = serde_json::json!({"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"});
    std::fs::write(d.join("m/tokenizer_config.json"), config.to_string()).unwrap();
    let said = ok(d, &["chat", "--model", "m", "--prompt", "hi", "--json", "--max-tokens", "6"]);
    assert!(said.contains("text_tokens"), "{said}");
    let png = fixture("preprocess/0.png").display().to_string();
    fails(d, &["chat", "--model", "m", "--prompt", "hi", "--image", &png], &["this model reads words"]);
}
