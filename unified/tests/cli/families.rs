//! Janus, Chameleon and Emu3 against reference tensors: everything that `unified forward` gives, from both layouts where there are two;
//! and Janus in conversation.

use super::{fails, fixture, ok};
use candle_core::{DType, Tensor};
use std::path::Path;

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The outputs of a folder on the inputs of `io` are those of `io`; `names` are among them.
fn equals(folder: &str, io: &str, names: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| fixture(name).display().to_string();
    ok(dir.path(), &["forward", &path(folder), &path(io), "-o", "out.safetensors"]);
    let got = nn::checkpoint::load(&dir.path().join("out.safetensors")).unwrap();
    let want = nn::checkpoint::load(&fixture(io)).unwrap();
    for name in names {
        assert!(got.contains_key(*name), "{folder}: no output `{name}`");
    }
    for (name, got) in &got {
        let Some(want) = want.get(name) else { continue };
        assert_eq!(got.dims(), want.dims(), "{folder} {name}");
        let (a, b) = (values(got), values(want));
        let scale = b.iter().fold(1f64, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        let near = match want.dtype() {
            DType::I64 => 0.0,
            DType::U8 => 1.0 / scale,
            _ if name.starts_with("vq_") || name.ends_with("_pixels") => 5e-5,
            _ => 1e-5,
        };
        assert!(worst <= near * scale, "{folder} {name}: off by {worst} of {scale}");
    }
}

const JANUS: [&str; 15] = [
    "vision_last_hidden_state",
    "image_features",
    "logits",
    "loss",
    "greedy_tokens",
    "two_images_logits",
    "drawing_embeddings",
    "drawing_logits_cond",
    "drawing_logits_uncond",
    "drawing_loss",
    "greedy_scale1",
    "greedy_scale5",
    "vq_indices",
    "vq_decoded",
    "vq_decoded_bytes",
];

#[test]
fn janus_of_both_layouts() {
    equals("janus", "janus/io.safetensors", &JANUS);
    equals("janus/original", "janus/io.safetensors", &JANUS);
}

#[test]
fn chameleon_with_either_norm() {
    let names = [
        "image_ids",
        "expanded_ids",
        "logits",
        "loss",
        "greedy_words",
        "drawing_guided",
        "drawing_unguided",
        "interleaved_tokens",
        "words_guided",
        "vq_indices",
    ];
    equals("chameleon/swin", "chameleon/swin/io.safetensors", &names);
    let painted = [&names[..], &["vq_decoded", "drawing_guided_pixels"]].concat();
    equals("chameleon/plain", "chameleon/plain/io.safetensors", &painted);
    // the same weights in the authors' layout: the repository's folder, and the decoder's in it
    equals("chameleon/plain/original", "chameleon/plain/io.safetensors", &painted);
    equals("chameleon/plain/original/models/7b", "chameleon/plain/io.safetensors", &painted);
}

/// Emu3's weights under its authors' names, decoder and image tokenizer apart, as they publish them.
fn emu3_of_its_authors(dir: &Path) {
    let fixture = fixture("emu3");
    let weights = nn::checkpoint::load(&fixture.join("model.safetensors")).unwrap();
    let names: Vec<serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(fixture.join("names.json")).unwrap()).unwrap();
    for (folder, file, config) in [
        ("Emu3-Gen", "Emu3-Chat", "config.json"),
        ("Emu3-VisionTokenizer", "Emu3-VisionTokenizer", "tokenizer_config.json"),
    ] {
        let mut tensors = std::collections::BTreeMap::new();
        for n in names.iter().filter(|n| n["file"] == file) {
            let mut t = weights[n["transformers"].as_str().unwrap()].clone();
            if let Some(shape) = n["original_shape"].as_array() {
                let shape: Vec<usize> = shape.iter().map(|v| v.as_u64().unwrap() as usize).collect();
                t = t.reshape(shape).unwrap();
            }
            tensors.insert(n["original"].as_str().unwrap().to_owned(), t);
        }
        assert!(tensors.len() > 20, "{folder}");
        let dir = dir.join(folder);
        std::fs::create_dir_all(&dir).unwrap();
        nn::checkpoint::save(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
        std::fs::copy(fixture.join("original").join(config), dir.join("config.json")).unwrap();
    }
    // the words, which end where the special entries begin
    let text = std::fs::read_to_string(fixture.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let words = config["vocabulary_map"].as_object().unwrap();
    let mut words: Vec<(&String, u64)> = words.iter().map(|(w, id)| (w, id.as_u64().unwrap())).collect();
    words.retain(|w| w.1 < words_end(&config));
    words.sort_by_key(|w| w.1);
    use base64::Engine;
    let line = |(w, id): &(&String, u64)| format!("{} {id}\n", base64::engine::general_purpose::STANDARD.encode(w));
    std::fs::write(dir.join("Emu3-Gen/emu3.tiktoken"), words.iter().map(line).collect::<String>()).unwrap();
}

/// The first special entry.
fn words_end(config: &serde_json::Value) -> u64 {
    config["vocabulary_map"]["<|endoftext|>"].as_u64().unwrap()
}

#[test]
fn emu3_pictures_and_videos() {
    let names = [
        "image_ids",
        "expanded_ids",
        "logits",
        "loss",
        "greedy_tokens",
        "drawing_scale1",
        "drawing_scale3",
        "vq_indices",
        "vq_decoded",
        "vq_video_indices",
        "vq_video_decoded",
    ];
    equals("emu3", "emu3/io.safetensors", &names);
    let dir = tempfile::tempdir().unwrap();
    emu3_of_its_authors(dir.path());
    equals(&dir.path().join("Emu3-Gen").display().to_string(), "emu3/io.safetensors", &names);
    // the image tokenizer by itself, and a decoder without it, say what is wanted
    let alone = dir.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    std::fs::rename(dir.path().join("Emu3-Gen"), alone.join("Emu3-Gen")).unwrap();
    let io = fixture("emu3/io.safetensors").display().to_string();
    fails(dir.path(), &["forward", "alone/Emu3-Gen", &io, "-o", "x"], &["put BAAI/Emu3-VisionTokenizer there"]);
    fails(dir.path(), &["forward", "Emu3-VisionTokenizer", &io, "-o", "x"], &["give the decoder's folder"]);
}

/// Anole's own folder talks and draws: config, words and both files of weights are found.
#[test]
fn anole_in_its_authors_layout_is_a_whole_model() {
    let d = tempfile::tempdir().unwrap();
    let own = fixture("chameleon/plain/original").display().to_string();
    let info = ok(d.path(), &["info", &own, "--json"]);
    assert!(info.contains("Chameleon"), "{info}");
    // what is missing is named
    copy(&fixture("chameleon/plain/original/models/7b"), &d.path().join("models/7b"));
    let io = fixture("chameleon/plain/io.safetensors").display().to_string();
    fails(d.path(), &["forward", ".", &io, "-o", "x"], &["tokenizer/vqgan.ckpt", "no such file"]);
    std::fs::rename(d.path().join("models/7b/consolidated.pth"), d.path().join("models/7b/consolidated.00.pth"))
        .unwrap();
    fails(d.path(), &["forward", ".", &io, "-o", "x"], &["facebook/chameleon-30b"]);
}

/// Each input by itself is enough for what it tells.
#[test]
fn any_subset_of_inputs_will_do() {
    for (folder, given, gives) in [
        ("janus", &["vq_pixels"][..], "vq_indices"),
        ("janus", &["drawing_tokens"], "drawing_embeddings"),
        ("janus", &["drawing_ids", "drawing_mask"], "greedy_scale1"),
        ("chameleon/plain", &["words_prompt"], "words_guided"),
        ("chameleon/swin", &["pixel_values"], "image_ids"),
        ("emu3", &["vq_video_pixels"], "vq_video_decoded"),
        ("emu3", &["drawing_prompt"], "drawing_scale1"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let all = nn::checkpoint::load(&fixture(&format!("{folder}/io.safetensors"))).unwrap();
        let some = all.into_iter().filter(|(k, _)| given.contains(&k.as_str())).collect();
        nn::checkpoint::save(&dir.path().join("in.safetensors"), &some, &[]).unwrap();
        let model = fixture(folder).display().to_string();
        ok(dir.path(), &["forward", &model, "in.safetensors", "-o", "out.safetensors"]);
        let out = nn::checkpoint::load(&dir.path().join("out.safetensors")).unwrap();
        assert!(out.contains_key(gives), "{folder} {given:?}: {:?}", out.keys());
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// A tokenizer of single letters with the marks of the tiny model.
fn tokenizer(dir: &Path) {
    let mut vocab = serde_json::Map::new();
    for (i, c) in (32u8..127).enumerate() {
        vocab.insert(char::from(c).to_string(), i.into());
    }
    let marks = [
        (111, "<｜begin▁of▁sentence｜>"),
        (112, "<｜end▁of▁sentence｜>"),
        (113, "<｜▁pad▁｜>"),
        (114, "<begin_of_image>"),
        (116, "<end_of_image>"),
        (118, "<image_placeholder>"),
        (100, "<|User|>"),
        (101, "<|Assistant|>"),
    ];
    for (id, mark) in marks {
        vocab.insert(mark.into(), id.into());
    }
    let added: Vec<_> = marks
        .iter()
        .map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": added, "decoder": {"type": "Fuse"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": " "},
    });
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
}

#[test]
fn janus_answers_about_pictures_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    copy(&fixture("janus"), &d.join("m"));
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(d.join("m/config.json")).unwrap()).unwrap();
    config["text_config"]["max_position_embeddings"] = 1024.into();
    std::fs::write(d.join("m/config.json"), config.to_string()).unwrap();
    tokenizer(&d.join("m"));
    let photo = fixture("images/photo.jpg").display().to_string();
    let said = ok(d, &["describe", "--model", "m", &photo, "--json"]);
    assert!(said.contains("photo.jpg"), "{said}");
    ok(d, &["generate", "--model", "m", "a fox", "-n", "2", "-o", "a", "--seed", "3"]);
    ok(d, &["generate", "--model", "m", "a fox", "-n", "2", "-o", "b", "--seed", "3", "--batch", "1"]);
    for name in super::files(&d.join("a")) {
        let read = |folder: &str| qlip::Image::open(&d.join(folder).join(&name)).unwrap();
        assert_eq!(read("a").rgb(), read("b").rgb(), "{name}");
        assert_eq!((read("a").width(), read("a").height()), (16, 16));
    }
    std::fs::write(d.join("m/model.safetensors"), b"cut").unwrap();
    fails(d, &["generate", "--model", "m", "a fox", "-o", "c"], &["model.safetensors", "complete?"]);
    config["vision_config"]["use_qk_norm"] = true.into();
    std::fs::write(d.join("m/config.json"), config.to_string()).unwrap();
    std::fs::copy(fixture("janus/model.safetensors"), d.join("m/model.safetensors")).unwrap();
    fails(d, &["generate", "--model", "m", "a fox", "-o", "c"], &["config.json", "use_qk_norm"]);
}

/// A tokenizer of whole words, those of the tiny model's vocabulary.
fn word_tokenizer(dir: &Path, vocabulary: &serde_json::Value, marks: &[&str]) {
    let added: Vec<_> = marks
        .iter()
        .map(|m| {
            serde_json::json!({"id": vocabulary[m], "content": m, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let unknown =
        vocabulary.as_object().unwrap().keys().find(|k| k.chars().all(char::is_alphanumeric) && !k.starts_with("IMG"));
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": added, "decoder": {"type": "Fuse"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[0-9]|\\*|\\s+"}, "behavior": "Isolated", "invert": false},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
    });
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
}

fn config_of(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn chameleon_answers_draws_and_does_both_in_one_reply() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    copy(&fixture("chameleon/plain"), &d.join("m"));
    let config = config_of(&d.join("m"));
    word_tokenizer(
        &d.join("m"),
        &config["vocabulary_map"],
        &["<s>", "</s>", "<eoss>", "<racm3:break>", "<reserved08706>"],
    );
    let photo = fixture("images/photo.jpg").display().to_string();
    let said = ok(d, &["describe", "--model", "m", &photo, "--max-tokens", "5", "--json"]);
    assert!(said.contains("photo.jpg"), "{said}");
    ok(d, &["generate", "--model", "m", "a fox", "-n", "2", "-o", "a", "--seed", "3"]);
    ok(d, &["generate", "--model", "m", "a fox", "-n", "2", "-o", "b", "--seed", "3", "--batch", "1"]);
    for name in super::files(&d.join("a")) {
        let read = |folder: &str| qlip::Image::open(&d.join(folder).join(&name)).unwrap();
        assert_eq!(read("a").rgb(), read("b").rgb(), "{name}");
        let side = config["vq_config"]["resolution"].as_u64().unwrap() as usize;
        assert_eq!((read("a").width(), read("a").height()), (side, side));
    }
    // among many seeds of an untrained model some draw in the middle of their words, and answers repeat
    let mut drew = 0;
    for seed in 0..40 {
        let args =
            ["chat", "--model", "m", "--prompt", "word1 word2", "--temperature", "1.5", "--max-tokens", "30", "--json"];
        let (seed, out) = (seed.to_string(), format!("out-{seed}"));
        let all = [&args[..], &["--seed", &seed, "--out", &out]].concat();
        let (one, two) = (ok(d, &all), ok(d, &all));
        let parse = |s: &str| serde_json::from_str::<serde_json::Value>(s).unwrap();
        assert_eq!(parse(&one)["text"], parse(&two)["text"]);
        drew += parse(&one)["images"].as_array().map_or(0, Vec::len);
    }
    assert!(drew > 0, "no answer drew a picture");
    // Meta's own files have no picture decoder
    copy(&fixture("chameleon/swin"), &d.join("blind"));
    let config = config_of(&d.join("blind"));
    word_tokenizer(
        &d.join("blind"),
        &config["vocabulary_map"],
        &["<s>", "</s>", "<eoss>", "<racm3:break>", "<reserved08706>"],
    );
    fails(d, &["generate", "--model", "blind", "a fox", "-o", "c"], &["no picture decoder", "Anole"]);
    ok(d, &["chat", "--model", "blind", "--prompt", "word1", "--max-tokens", "4"]);
}

#[test]
fn emu3_answers_about_pictures_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    copy(&fixture("emu3"), &d.join("m"));
    let mut config = config_of(&d.join("m"));
    config["text_config"]["max_position_embeddings"] = 1024.into();
    std::fs::write(d.join("m/config.json"), config.to_string()).unwrap();
    // small pictures, so that one fits the tiny window
    std::fs::write(d.join("m/preprocessor_config.json"), r#"{"min_pixels": 2304, "max_pixels": 6400}"#).unwrap();
    word_tokenizer(&d.join("m"), &config["vocabulary_map"], &["<|extra_203|>", "<|extra_204|>", "<|image start|>"]);
    let photo = fixture("images/photo.jpg").display().to_string();
    let said = ok(d, &["describe", "--model", "m", &photo, "--max-tokens", "5", "--json"]);
    assert!(said.contains("photo.jpg"), "{said}");
    ok(d, &["generate", "--model", "m", "a fox", "-n", "2", "-o", "a", "--seed", "3"]);
    ok(d, &["generate", "--model", "m", "a fox", "-n", "2", "-o", "b", "--seed", "3", "--batch", "1"]);
    for name in super::files(&d.join("a")) {
        let read = |folder: &str| qlip::Image::open(&d.join(folder).join(&name)).unwrap();
        assert_eq!(read("a").rgb(), read("b").rgb(), "{name}");
        assert_eq!(read("a").width(), read("a").height());
    }
}
