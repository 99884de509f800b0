//! Trainings as people run them: resumed with other settings, by mistake, twice at once, stopped by Ctrl-C, rehearsed.

use super::{files, losses, ok, text, tiny, unified};
use std::process::{Command, Stdio};

fn args(out: &str) -> Vec<String> {
    let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/qlip-stage1.toml");
    let mut all = vec!["train".to_owned(), config.display().to_string(), "--out".into(), out.into()];
    let small = ["vision_config", "decoder_config"]
        .into_iter()
        .flat_map(|tower| [format!("model.{tower}.num_hidden_layers=1"), format!("model.{tower}.image_size=16")]);
    for s in tiny().into_iter().chain(small) {
        all.extend(["--set".into(), s]);
    }
    all
}

fn run(dir: &std::path::Path, args: &[String], more: &[&str]) -> std::process::Output {
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    unified(dir, &args)
}

#[test]
fn a_resume_that_cannot_go_on_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (d, args) = (dir.path(), args("m"));
    let out = run(d, &args, &[]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let read = |name: &str| std::fs::read(d.join("m").join(name)).unwrap();
    let names = ["training.toml", "config.json", "model.safetensors", "metrics.jsonl"];
    let before: Vec<Vec<u8>> = names.iter().map(|n| read(n)).collect();
    for (set, says) in [
        ("model.vision_config.intermediate_size=64", "model.vision_config.intermediate_size"),
        ("data.pictures.path=nowhere", "nowhere"),
        ("optim.lr=-1.0", "optim.lr"),
        ("loss.reconstruction=-1.0", "loss.reconstruction"),
        ("optim.lr=high", "lr"),
    ] {
        let out = run(d, &args, &["--resume", "--set", set]);
        let err = text(&out.stderr);
        assert!(out.status.code() == Some(1) && err.contains(says), "{set}: {err}");
        for (name, bytes) in names.iter().zip(&before) {
            assert!(read(name) == *bytes, "{set}: {name} changed");
        }
    }
    // what is no other model is said, and goes on
    let out = run(d, &args, &["--resume", "--set", "run.steps=14", "--set", "optim.lr=1e-4"]);
    let err = text(&out.stderr);
    assert!(out.status.success() && err.contains("optim.lr: ") && err.contains("steps: 12 -> 14"), "{err}");
    assert_eq!(losses(&d.join("m")).len(), 14);
    let out = run(d, &args, &["--resume"]);
    assert!(text(&out.stderr).contains("steps: 14 -> 12"), "{}", text(&out.stderr));
    // a mistyped folder is said
    let out = run(d, &self::args("mm"), &["--resume"]);
    assert!(text(&out.stderr).contains("no training to go on with"), "{}", text(&out.stderr));
}

#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut long = args("m");
    long.extend(["--set".into(), "run.steps=100000".into(), "--set".into(), "run.checkpoint_every=100000".into()]);
    let child =
        Command::new(env!("CARGO_BIN_EXE_unified")).args(&long).current_dir(d).stderr(Stdio::piped()).spawn().unwrap();
    let begun = std::time::Instant::now();
    while losses(&d.join("m")).len() < 3 {
        assert!(begun.elapsed().as_secs() < 60, "it does not train");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // another one in the same folder is refused meanwhile
    let second = run(d, &args("m"), &[]);
    assert!(text(&second.stderr).contains("another training"), "{}", text(&second.stderr));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let out = child.wait_with_output().unwrap();
    let err = text(&out.stderr);
    assert!(out.status.success() && err.contains("--resume"), "{err}");
    let n = losses(&d.join("m")).len();
    let out = run(d, &args("m"), &["--resume", "--set", &format!("run.steps={}", n + 2)]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(losses(&d.join("m")).len(), n + 2);
    assert!(!files(&d.join("m")).contains(&"training.lock".to_owned()));
}

#[test]
fn a_rehearsal_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut dry = args("m");
    dry.truncate(2);
    dry.extend(args("m").into_iter().skip(4));
    dry.push("--dry-run".into());
    let all: Vec<&str> = dry.iter().map(String::as_str).collect();
    let said = ok(dir.path(), &all);
    assert!(said.contains("one of 12 updates") && said.contains("memory"), "{said}");
    assert!(files(dir.path()).is_empty());
}
