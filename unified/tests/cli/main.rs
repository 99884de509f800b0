//! The real program, run as a person runs it: odd pictures, bad input, pipes, kills. One file a subject.

mod captions;
mod commands;
mod data;
mod families;
mod field;
mod forward;
mod habits;
mod hub;
mod llamagen;
mod llava;
mod mpi;
mod runs;
mod terminal;
mod training;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/nano")
}

/// Bits of a cell in its image tokenizer.
fn nano_bits() -> usize {
    qlip::config::QlipConfig::from_file(&nano().join("qlip/config.json")).unwrap().vision_config.quantizer_cfg.embed_dim
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

/// Runs a command that must fail with one line on stderr that holds all of `words`; a training has said before what its data are.
fn fails(dir: &Path, args: &[&str], words: &[&str]) {
    let out = unified(dir, args);
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {err}");
    let about_data = |l: &&str| [" pictures, ", " conversations", " documents"].iter().any(|w| l.contains(w));
    let others = err.trim_end().lines().filter(|l| l.starts_with("error:") || !about_data(l)).count();
    assert_eq!(others, 1, "{args:?}: {err}");
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
    // UNIFIED_KILLS=20 for more of them, at moments that the machine chooses
    let kills: usize = std::env::var("UNIFIED_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    for kill_after in (0..kills).map(|i| 2 + i * 7 / kills.max(1)) {
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
    let photos = format!("data.pictures.path={}", fixture("photos").display());
    let tokenizer = format!("tokenizer={}", nano().join("tokenizer.json").display());
    let more = ["run.steps=12", "run.batch_size=4", "run.checkpoint_every=3", "optim.warmup=2"];
    [photos, tokenizer].into_iter().chain(more.map(str::to_owned)).collect()
}

/// Sets of a training on pictures alone that takes a second.
fn picture_sets(more: &[&str]) -> Vec<String> {
    let sets = tiny().into_iter().filter(|s| !s.starts_with("tokenizer="));
    sets.chain(more.iter().map(|s| (*s).to_owned())).collect()
}

const SMALL_VQ: [&str; 4] =
    ["image_size=16", "model.encoder_ch_mult=[1,1,1]", "model.decoder_ch_mult=[1,1,1]", "model.z_channels=16"];

/// Sets of a LlamaGen training that takes a second.
fn llamagen_sets() -> Vec<String> {
    let mut sets: Vec<String> = tiny().into_iter().filter(|s| !s.starts_with("tokenizer=")).collect();
    sets.push(format!("image_tokenizer={}", nano().join("qlip").display()));
    sets.extend(["model.n_layer=1", "model.dim=64", "model.n_head=2"].map(str::to_owned));
    sets
}
