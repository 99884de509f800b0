//! Pictures, pipes, drawings and what is wrong with them, through the commands of a finished model.

use super::{fails, files, fixture, nano, ok, text, unified};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn pictures_of_every_kind_go_through() {
    let dir = tempfile::tempdir().unwrap();
    let folder = fixture("images");
    let mut paths: Vec<String> = files(&folder)
        .into_iter()
        .filter(|n| n != "bomb.png")
        .map(|n| folder.join(n).to_str().unwrap().to_owned())
        .collect();
    paths.sort();
    let list: Vec<&str> = paths.iter().map(String::as_str).collect();
    let out = ok(dir.path(), &[&["reconstruct", "-o", "out"], &list[..]].concat());
    assert_eq!(out.lines().count(), paths.len());
    for line in out.lines() {
        let img = qlip::Image::open(&dir.path().join(line)).unwrap();
        assert_eq!((img.width(), img.height()), (64, 64), "{line}");
    }
    assert!(files(&dir.path().join("out")).contains(&"rotated.png".to_owned()), "the stem is kept");
    assert_eq!(ok(dir.path(), &[&["describe", "--json"], &list[..]].concat()).lines().count(), paths.len());
    let labels = ok(dir.path(), &[&["classify", "--labels", "cat,dog", "--json"], &list[..]].concat());
    for line in labels.lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        let p = json["probabilities"].as_object().unwrap();
        let sum: f64 = p.values().map(|v| v.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5 && p.len() == 2, "{line}");
    }
}

#[test]
fn orientation_is_applied() {
    // the file says "rotate by 90 degrees": 40 x 30 becomes 30 x 40
    let img = qlip::Image::open(&fixture("images/rotated.jpg")).unwrap();
    assert_eq!((img.width(), img.height()), (30, 40));
}

#[test]
fn codes_survive_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let photo = fixture("images/photo.jpg");
    let photo = photo.to_str().unwrap();
    ok(dir.path(), &["tokenize", photo, "-o", "codes.safetensors"]);
    let t = nn::checkpoint::load(&dir.path().join("codes.safetensors")).unwrap();
    assert_eq!(t["codes"].dims(), [1, 64]);
    ok(dir.path(), &["detokenize", "codes.safetensors", "-o", "a"]);
    ok(dir.path(), &["reconstruct", photo, "-o", "b"]);
    let read = |d: &str| std::fs::read(dir.path().join(d).join("photo.png")).unwrap();
    assert_eq!(read("a"), read("b"));
}

/// Parts that a scheduler spreads make the file that one run makes; more parts than pictures leave empty ones.
#[test]
fn shards_of_codes_merge() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for name in ["photo.jpg", "grey.png", "palette.png"] {
        std::fs::create_dir_all(d.join("p")).unwrap();
        std::fs::copy(fixture("images").join(name), d.join("p").join(name)).unwrap();
    }
    ok(d, &["tokenize", "p", "-o", "whole.safetensors"]);
    let mut merge = vec!["merge".to_owned()];
    for i in 0..4 {
        let (out, shard) = (format!("part{i}.safetensors"), format!("{i}/4"));
        ok(d, &["tokenize", "p", "-o", &out, "--shard", &shard]);
        merge.push(out);
    }
    merge.extend(["-o", "merged.safetensors"].map(str::to_owned));
    ok(d, &merge.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(
        std::fs::read(d.join("merged.safetensors")).unwrap(),
        std::fs::read(d.join("whole.safetensors")).unwrap()
    );
    let other = nano().join("qlip/model.safetensors").display().to_string();
    fails(d, &["merge", &other, "-o", "x"], &["neither `codes` nor `features`"]);
    let refused = super::unified(d, &["tokenize", "p", "-o", "x", "--shard", "4/4"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(super::text(&refused.stderr).contains("i below n"));
}

#[test]
fn bad_pictures_give_one_line_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let photo = std::fs::read(fixture("images/photo.jpg")).unwrap();
    std::fs::write(d.join("cut.jpg"), &photo[..photo.len() / 2]).unwrap();
    std::fs::write(d.join("empty.jpg"), b"").unwrap();
    std::fs::write(d.join("words.png"), b"these are words").unwrap();
    std::fs::copy(fixture("images/bomb.png"), d.join("bomb.png")).unwrap();
    for (file, word) in [
        ("cut.jpg", "read"),
        ("empty.jpg", "not a picture"),
        ("words.png", "not a picture"),
        ("bomb.png", "40000x40000"),
        ("none.png", "No such file"),
    ] {
        for command in ["reconstruct", "tokenize"] {
            fails(d, &[command, file, "-o", "out"], &[file, word]);
        }
        fails(d, &["describe", file], &[file, word]);
        fails(d, &["classify", file, "--labels", "a,b"], &[file, word]);
    }
    assert!(!d.join("out").exists(), "no partial output");
}

#[test]
fn bad_models_configs_and_folders_give_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let photo = fixture("images/photo.jpg");
    let photo = photo.to_str().unwrap();
    let weights = nn::checkpoint::load_dir(&nano().join("qlip")).unwrap();
    let broken = |name: &str, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let to = d.join(name);
        std::fs::create_dir(&to).unwrap();
        for f in ["config.json", "preprocessor_config.json", "tokenizer.json"] {
            std::fs::copy(nano().join("qlip").join(f), to.join(f)).unwrap();
        }
        let mut t: BTreeMap<String, Tensor> = weights.clone().into_iter().collect();
        change(&mut t);
        nn::checkpoint::save(&to.join("model.safetensors"), &t, &[]).unwrap();
    };
    let tensor = "vision_model.post_layernorm.weight";
    broken("missing", &|t| drop(t.remove(tensor)));
    fails(d, &["reconstruct", photo, "-o", "out", "--model", "missing"], &["missing", tensor]);
    broken("shape", &|t| {
        drop(t.insert(tensor.into(), Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap()))
    });
    fails(d, &["reconstruct", photo, "-o", "out", "--model", "shape"], &["shape", tensor, "[3]"]);
    broken("key", &|_| ());
    let config = d.join("key/config.json");
    let json = std::fs::read_to_string(&config).unwrap().replacen('{', "{\"no_such_key\": 1,", 1);
    std::fs::write(&config, json).unwrap();
    fails(d, &["reconstruct", photo, "-o", "out", "--model", "key"], &["config.json", "no_such_key"]);
    broken("torn", &|_| ());
    let file = d.join("torn/model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    fails(d, &["reconstruct", photo, "-o", "out", "--model", "torn"], &["model.safetensors", "complete"]);
    assert!(!d.join("out").exists(), "no partial output");

    fails(d, &["chat", "--prompt", " "], &["--prompt", "empty"]);
    fails(d, &["generate", ""], &["prompt", "empty"]);
    fails(d, &["info", "nosuch"], &["nosuch", "owner/name"]);
    std::fs::write(d.join("file"), b"").unwrap();
    fails(d, &["reconstruct", photo, "-o", "file/out"], &["file/out"]);
    fails(d, &["chat", "--prompt", "hello", "--out", "file/out"], &["file/out"]);
    fails(d, &["tokenize", photo, "-o", "nowhere/codes.safetensors"], &["nowhere/codes.safetensors"]);
    fails(d, &["detokenize", photo, "-o", "out"], &["photo.jpg", "safetensors"]);
    fails(d, &["describe", photo, "--device", "cuda"], &["--device cuda", "CUDA"]);
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/qlip-stage1.toml");
    let config = config.to_str().unwrap();
    fails(
        d,
        &["train", config, "--out", "t", "--set", "run.stepz=3"],
        &["qlip-stage1.toml", "stepz", "did you mean `steps`"],
    );
    let tokenizer = format!("tokenizer={}", nano().join("tokenizer.json").display());
    fails(
        d,
        &["train", config, "--out", "t", "--set", "data.pictures.path=nowhere", "--set", &tokenizer],
        &["nowhere"],
    );
    fails(d, &["train", "none.toml", "--out", "t"], &["none.toml"]);
}

#[test]
fn a_pipe_gets_plain_text_and_json_is_json() {
    let dir = tempfile::tempdir().unwrap();
    let out = ok(dir.path(), &["chat", "--prompt", "draw a red circle above a blue square"]);
    assert!(!out.contains('\u{1b}'), "no escape codes in a pipe");
    let json = ok(dir.path(), &["chat", "--prompt", "draw a red circle", "--json"]);
    let json: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
    for path in json["images"].as_array().unwrap() {
        assert!(qlip::Image::open(&dir.path().join(path.as_str().unwrap())).is_ok());
    }
    let again = ok(dir.path(), &["generate", "a red circle", "--seed", "5", "--json", "-o", "x"]);
    ok(dir.path(), &["generate", "a red circle", "--seed", "5", "--json", "-o", "y"]);
    assert!(again.contains("unified-0001.png"));
    let read = |d: &str| std::fs::read(dir.path().join(d).join("unified-0001.png")).unwrap();
    assert_eq!(read("x"), read("y"), "the same seed draws the same picture");
}

#[test]
fn a_drawn_png_can_be_drawn_again() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    ok(d, &["generate", "a red circle", "-n", "3", "--seed", "9", "--guidance", "3", "--top-k", "50", "-o", "x"]);
    ok(
        d,
        &[
            "generate",
            "a red circle",
            "-n",
            "3",
            "--seed",
            "9",
            "--guidance",
            "3",
            "--top-k",
            "50",
            "--grid",
            "-o",
            "g",
        ],
    );
    for (file, out) in [("x/unified-0002.png", "y"), ("g/unified-0001.png", "z")] {
        ok(d, &["generate", "--from-png", file, "-o", out]);
        let again = std::fs::read(d.join(out).join("unified-0001.png")).unwrap();
        assert_eq!(std::fs::read(d.join(file)).unwrap(), again, "{file}");
    }
    // three pictures of 64 pixels as two by two with two pixels between
    assert_eq!(qlip::Image::open(&d.join("g/unified-0001.png")).unwrap().width(), 130);
    std::fs::copy(fixture("images/palette.png"), d.join("p.png")).unwrap();
    fails(d, &["generate", "--from-png", "p.png"], &["p.png", "without a recipe"]);
    let both = unified(d, &["generate", "--from-png", "x/unified-0001.png", "--seed", "3"]);
    assert!(!both.status.success() && text(&both.stderr).contains("--seed"));
    fails(d, &["generate", "a star", "-n", "0"], &["-n 0"]);
}
