//! The real program, run as a person runs it: odd pictures, bad input, pipes, kills.

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/nano")
}

fn unified(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unified")).args(args).current_dir(dir).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed and returns its stdout.
fn ok(dir: &Path, args: &[&str]) -> String {
    let out = unified(dir, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

/// Runs a command that must fail with one line on stderr that holds all of `words`.
fn fails(dir: &Path, args: &[&str], words: &[&str]) {
    let out = unified(dir, args);
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{args:?}: {err}");
    assert!(!err.contains("panicked"), "{args:?}: {err}");
    for w in words {
        assert!(err.contains(w), "{args:?}: no `{w}` in {err}");
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

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
    fails(d, &["train", config, "--out", "t", "--set", "stepz=3"], &["qlip-stage1.toml", "stepz", "`steps`"]);
    let tokenizer = format!("tokenizer={}", nano().join("tokenizer.json").display());
    fails(d, &["train", config, "--out", "t", "--set", "photos=nowhere", "--set", &tokenizer], &["nowhere"]);
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

#[test]
fn forward_gives_the_golden_outputs() {
    let dir = tempfile::tempdir().unwrap();
    for (case, names) in [
        (
            "qlip/eva",
            &[
                "hidden_2",
                "h",
                "indices",
                "group_indices",
                "zhat",
                "recon",
                "text_embeds",
                "logits_per_text",
                "clip_loss",
            ][..],
        ),
        (
            "llama/gqa",
            &["logits", "loss", "padded_logits", "greedy_tokens", "padded_greedy_tokens", "inverse_frequencies"],
        ),
        ("clipvision", &["hidden_0", "hidden_1", "hidden_2", "hidden_3", "last_hidden_state", "pooler_output"]),
        (
            "llamagen/c2i",
            &[
                "rope_table",
                "condition_embedding",
                "condition_drop_embedding",
                "eval_logits",
                "train_logits",
                "train_loss",
                "greedy_scale1_interval-1",
                "greedy_scale4_interval-1",
                "greedy_scale4_interval2",
            ],
        ),
        (
            "llamagen/t2i",
            &[
                "rope_table",
                "condition_embedding",
                "condition_drop_embedding",
                "eval_logits",
                "train_logits",
                "train_loss",
                "padded_eval_logits",
                "padded_train_logits",
                "padded_train_loss",
                "greedy_scale4_interval2",
                "greedy_padded_scale1_interval-1",
                "greedy_padded_scale4_interval-1",
                "greedy_padded_scale4_interval2",
            ],
        ),
        (
            "vq",
            &[
                "encoder_out",
                "pre_quant",
                "indices",
                "quantized",
                "codebook_entries",
                "decoded",
                "decoded_from_code",
                "vq_loss",
                "commit_loss",
            ],
        ),
        ("llava", &["image_features", "logits", "loss", "two_images_logits", "greedy_tokens"]),
    ] {
        let folder = fixture(case);
        let io = folder.join("io.safetensors");
        ok(dir.path(), &["forward", folder.to_str().unwrap(), io.to_str().unwrap(), "-o", "out.safetensors"]);
        let got = nn::checkpoint::load(&dir.path().join("out.safetensors")).unwrap();
        let want = nn::checkpoint::load(&io).unwrap();
        for name in names {
            let v = |t: &Tensor| {
                t.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            let (a, b) = (v(&got[*name]), v(&want[*name]));
            let scale = b.iter().fold(1f64, |m, x| m.max(x.abs()));
            let worst = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            let tolerance = if case == "vq" { 5e-5 } else { 1e-5 };
            assert!(a.len() == b.len() && worst <= tolerance * scale, "{case} {name}: off by {worst}");
        }
    }
}

/// Losses of metrics.jsonl by step, as written.
fn losses(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .map(|v| format!("{} {}", v["step"], v["loss"]))
        .collect()
}

/// Trains without a stop; then again with kills, resumed each time; the logs must be equal.
fn resumes(config: &str, sets: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(config);
    let mut args = vec!["train", config.to_str().unwrap()];
    for s in sets {
        args.extend(["--set", s]);
    }
    ok(d, &[&args[..], &["--out", "whole"]].concat());
    let whole = losses(&d.join("whole"));
    assert_eq!(whole.len(), 12);
    for kill_after in [2, 5, 8] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_unified"))
            .args([&args[..], &["--out", "killed", "--resume"]].concat())
            .current_dir(d)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while losses(&d.join("killed")).len() < kill_after && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let _ = child.kill();
        child.wait().unwrap();
    }
    ok(d, &[&args[..], &["--out", "killed", "--resume"]].concat());
    assert_eq!(losses(&d.join("killed")), whole);
    let model = |n: &str| std::fs::read(d.join(n).join("model.safetensors")).unwrap();
    assert_eq!(model("killed"), model("whole"), "the same weights");
}

fn tiny() -> Vec<String> {
    let photos = format!("photos={}", fixture("photos").display());
    let tokenizer = format!("tokenizer={}", nano().join("tokenizer.json").display());
    let more = ["steps=12", "batch_size=4", "checkpoint_every=3", "optim.warmup=2"];
    [photos, tokenizer].into_iter().chain(more.map(str::to_owned)).collect()
}

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

/// Sets of a training on pictures alone that takes a second.
fn picture_sets(more: &[&str]) -> Vec<String> {
    let sets = tiny().into_iter().filter(|s| !s.starts_with("tokenizer="));
    sets.chain(more.iter().map(|s| (*s).to_owned())).collect()
}

const SMALL_VQ: [&str; 4] =
    ["image_size=16", "model.encoder_ch_mult=[1,1,1]", "model.decoder_ch_mult=[1,1,1]", "model.z_channels=16"];

#[test]
fn vq_training_resumes_exactly() {
    let more = [
        "loss.adversarial=0.1",
        "adversary={net={kind=\"patch\",width=4,layers=2},start=3}",
        "scene_share=0.5",
        "model.entropy_loss_ratio=0.1",
    ];
    resumes("llamagen/compare/vq.toml", &picture_sets(&[&SMALL_VQ[..], &more].concat()));
}

#[test]
fn lookup_free_training_resumes_exactly() {
    let more = ["model.quantizer=lfq", "model.codebook_embed_dim=10"];
    resumes("llamagen/compare/vq.toml", &picture_sets(&[&SMALL_VQ[..], &more].concat()));
}

#[test]
fn classifier_training_resumes_exactly() {
    resumes("llamagen/compare/classifier.toml", &picture_sets(&["image_size=16", "widths=[8,16]"]));
}

/// From nothing to drawings: a tokenizer is trained, a decoder on it, and the decoder draws.
#[test]
fn llamagen_draws_with_a_trained_vq() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/llamagen");
    let train = |config: &str, out: &str, sets: &[String]| {
        let path = configs.join(config);
        let mut args = vec!["train", path.to_str().unwrap(), "--out", out];
        sets.iter().for_each(|s| args.extend(["--set", s]));
        ok(d, &args);
    };
    for (name, more) in [("nearest", &[][..]), ("signs", &["model.quantizer=lfq", "model.codebook_embed_dim=10"])] {
        train("compare/vq.toml", name, &picture_sets(&[&SMALL_VQ[..], more].concat()));
        let mut sets = llamagen_sets();
        sets.retain(|s| !s.starts_with("tokenizer="));
        sets.extend([format!("tokenizer={}", d.join(name).display()), "grid=4".to_owned()]);
        let (out, drawn) = (format!("{name}-decoder"), format!("{name}-drawn"));
        train("cifar-qlip.toml", &out, &sets);
        ok(d, &["generate", "--model", &out, "--class", "3", "-o", &drawn]);
        assert_eq!(qlip::Image::open(&d.join(drawn).join("unified-0001.png")).unwrap().width(), 16);
    }
    let config = configs.join("compare/vq.toml");
    let config = config.to_str().unwrap();
    let photos = format!("photos={}", fixture("photos").display());
    let refused = |set: &str, words: &[&str]| {
        fails(d, &["train", config, "--out", "x", "--set", &photos, "--set", set], words);
    };
    refused("image_size=60", &["image_size = 60", "multiple"]);
    refused("loss.lpips=1.0", &["[lpips]"]);
    refused("model.quantizer=lfq", &["codebook_embed_dim"]);
    refused("start=nowhere", &["either `start`"]);
}

/// Sets of a LlamaGen training that takes a second.
fn llamagen_sets() -> Vec<String> {
    let mut sets: Vec<String> = tiny().into_iter().filter(|s| !s.starts_with("tokenizer=")).collect();
    sets.push(format!("tokenizer={}", nano().join("qlip").display()));
    sets.extend(["model.n_layer=1", "model.dim=64", "model.n_head=2"].map(str::to_owned));
    sets
}

#[test]
fn llamagen_training_resumes_exactly() {
    resumes("llamagen/cifar-qlip.toml", &llamagen_sets());
}

#[test]
fn llamagen_trains_on_either_tokenizer_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/llamagen/cifar-qlip.toml");
    let train = |out: &str, more: &[String]| {
        let mut args = vec!["train", config.to_str().unwrap(), "--out", out];
        let sets = llamagen_sets();
        sets.iter().chain(more).for_each(|s| args.extend(["--set", s]));
        unified(d, &args)
    };
    let vq = [format!("tokenizer={}", fixture("vq").display()), "grid=4".to_owned()];
    for (out, more, side) in [("q", &[][..], 64), ("v", &vq, 8)] {
        let done = train(out, more);
        assert!(done.status.success(), "{}", text(&done.stderr));
        ok(d, &["generate", "--model", out, "--class", "0,9", "-o", &format!("{out}/drawn")]);
        for i in 1..=2 {
            let picture = d.join(out).join(format!("drawn/unified-000{i}.png"));
            assert_eq!(qlip::Image::open(&picture).unwrap().width(), side, "{out}");
        }
    }
    // the same codes are not made twice, another tokenizer's are not taken
    std::fs::create_dir(d.join("c")).unwrap();
    std::fs::copy(d.join("q/codes.safetensors"), d.join("c/codes.safetensors")).unwrap();
    let again = train("q", &[]);
    assert!(text(&again.stderr).contains("--resume"), "{}", text(&again.stderr));
    let other = train("c", &vq);
    assert!(!other.status.success() && text(&other.stderr).contains("codes.safetensors"), "{}", text(&other.stderr));
    let wrong = train("w", &["crops=3".to_owned()]);
    assert!(!wrong.status.success() && text(&wrong.stderr).contains("1, 2 or 10"), "{}", text(&wrong.stderr));
}

/// A T5 encoder of the published names with random weights, and nano's words.
fn tiny_t5(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let config = serde_json::json!({
        "model_type": "t5", "vocab_size": 700, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "relative_attention_num_buckets": 8, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0,
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": true, "use_cache": true, "pad_token_id": 0,
        "eos_token_id": 1, "tie_word_embeddings": false,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(nano().join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    let mut all = BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let key = all.len();
        let v: Vec<f32> = (0..n).map(|i| ((i * 37 + key * 11) as f32 * 0.61).sin() * 0.3).collect();
        all.insert(name.to_owned(), Tensor::from_vec(v, shape, &Device::Cpu).unwrap());
    };
    add("shared.weight", &[700, 16]);
    add("encoder.final_layer_norm.weight", &[16]);
    add("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[8, 2]);
    for i in 0..2 {
        for p in ["q", "k", "v", "o"] {
            add(&format!("encoder.block.{i}.layer.0.SelfAttention.{p}.weight"), &[16, 16]);
        }
        for (p, shape) in [("wi_0", [24, 16]), ("wi_1", [24, 16]), ("wo", [16, 24])] {
            add(&format!("encoder.block.{i}.layer.1.DenseReluDense.{p}.weight"), &shape);
        }
        add(&format!("encoder.block.{i}.layer.0.layer_norm.weight"), &[16]);
        add(&format!("encoder.block.{i}.layer.1.layer_norm.weight"), &[16]);
    }
    add("decoder.not.read", &[3]);
    nn::checkpoint::save(&dir.join("model.safetensors"), &all, &[]).unwrap();
}

#[test]
fn captions_are_learned_and_drawn_through_a_text_encoder() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    tiny_t5(&d.join("t5"));
    std::fs::create_dir(d.join("pictures")).unwrap();
    for (name, words) in [("photo", "a photo of a ship"), ("grey", "a grey thing")] {
        let from = if name == "photo" { fixture("images/photo.jpg") } else { fixture("preprocess/3.png") };
        let ending = from.extension().unwrap().to_str().unwrap().to_owned();
        std::fs::copy(&from, d.join("pictures").join(format!("{name}.{ending}"))).unwrap();
        std::fs::write(d.join("pictures").join(format!("{name}.txt")), words).unwrap();
    }
    std::fs::write(d.join("pictures/broken.png"), b"no picture").unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/llamagen/cifar-qlip.toml");
    let mut args = vec!["train", config.to_str().unwrap(), "--out", "m"];
    let mut sets: Vec<String> = llamagen_sets().into_iter().filter(|s| !s.starts_with("photos=")).collect();
    let more = [
        "photos=pictures",
        "text_encoder=t5",
        "model.cls_token_num=9",
        "head=bits",
        "bit_flip=0.2",
        "dropout.token=0.1",
    ];
    sets.extend(more.iter().chain(&["dropout.path=0.2"]).map(|s| (*s).to_owned()));
    sets.iter().for_each(|s| args.extend(["--set", s]));
    ok(d, &args);
    let draw = ["generate", "--model", "m", "a photo of a ship", "-n", "2", "-o"];
    ok(d, &[&draw[..], &["a", "--text-encoder", "t5"]].concat());
    // features made beforehand are the same condition
    std::fs::write(d.join("captions.txt"), "a photo of a ship\n").unwrap();
    ok(d, &["features", "captions.txt", "--text-encoder", "t5", "--positions", "9", "-o", "f.safetensors"]);
    ok(d, &["generate", "--model", "m", "--features", "f.safetensors", "-n", "2", "-o", "b"]);
    for i in 1..=2 {
        let picture = |f: &str| qlip::Image::open(&d.join(f).join(format!("unified-000{i}.png"))).unwrap();
        assert_eq!(picture("a"), picture("b"));
    }
    ok(d, &["generate", "--from-png", "a/unified-0002.png", "-o", "c"]);
    assert_eq!(
        qlip::Image::open(&d.join("c/unified-0001.png")).unwrap(),
        qlip::Image::open(&d.join("a/unified-0002.png")).unwrap()
    );
    fails(d, &[&draw[..], &["x"]].concat(), &["--text-encoder", "--features"]);
    fails(d, &["generate", "--model", "m", "--class", "1", "-o", "x"], &["captions, not classes"]);
    fails(d, &["generate", "--model", "m", "--features", "no.safetensors", "-o", "x"], &["no.safetensors"]);
    let bits =
        ["generate", "--model", "m", "a ship", "--text-encoder", "t5", "--greedy", "--guidance", "2", "--codes-only"];
    ok(d, &[&bits[..], &["-o", "codes.safetensors"]].concat());
    let tokens = nn::checkpoint::load(&d.join("codes.safetensors")).unwrap()["tokens"].to_vec2::<i64>().unwrap();
    assert!(tokens[0].len() == 64 && tokens[0].iter().all(|t| (0..1 << 20).contains(t)));
}

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
    sets.retain(|s| !s.starts_with("photos=") && !s.starts_with("tokenizer="));
    sets.push("batch_size=2".into());
    sets.push(format!("data={}", data.join("llava.json").display()));
    sets.push(format!("images={}", data.display()));
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
    let (data, images) = (format!("data={}", d.join("llava.json").display()), format!("images={}", d.display()));
    fails(
        d,
        &[&long[..], &["--set", &data, "--set", &images]].concat(),
        &["llava.json", "entry", "sequence_length is 20"],
    );
    assert!(!d.join("x/model.safetensors").exists());
}

#[test]
fn classes_are_drawn_to_codes_and_wrong_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let model = fixture("llamagen/c2i");
    let model = model.to_str().unwrap();
    let io = nn::checkpoint::load(&fixture("llamagen/c2i/io.safetensors")).unwrap();
    let classes: Vec<String> =
        io["condition"].to_vec1::<i64>().unwrap().iter().map(std::string::ToString::to_string).collect();
    let list = classes.join(",");
    let base = ["generate", "--model", model, "--class", &list, "--greedy", "--guidance", "4", "--codes-only"];
    for (interval, key) in [("2", "greedy_scale4_interval2"), ("-1", "greedy_scale4_interval-1")] {
        ok(d, &[&base[..], &["--guidance-interval", interval, "-o", "codes.safetensors"]].concat());
        let got = nn::checkpoint::load(&d.join("codes.safetensors")).unwrap();
        assert_eq!(got["tokens"].to_vec2::<i64>().unwrap(), io[key].to_vec2::<i64>().unwrap(), "{key}");
    }
    let draw = |class: &str, more: &[&str], words: &[&str]| {
        fails(d, &[&["generate", "--model", model, "--class", class], more].concat(), words);
    };
    draw("7", &["--codes-only", "-o", "x.safetensors"], &["class 7", "7 classes"]);
    draw("1", &["-o", "x"], &["--tokenizer", "--codes-only"]);
    let vq = fixture("vq");
    draw("1", &["-o", "x", "--tokenizer", vq.to_str().unwrap()], &["codebook of 64", "100 codes"]);
    assert!(!d.join("x").exists() && !d.join("x.safetensors").exists());
    fails(d, &["generate", "--class", "1"], &["--model"]);
    std::fs::write(d.join("c2i_B_256.pt"), b"not a torch file").unwrap();
    fails(d, &["generate", "--class", "1", "--model", "c2i_B_256.pt", "--codes-only", "-o", "y"], &["c2i_B_256.pt"]);
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
