//! Trainings by several processes: the losses are those of one. Needs a program built with `--features mpi`, and mpirun.

use super::{fixture, llamagen_sets, losses, nano, text, tiny};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Whether the tests can run here; says why not.
fn can_run() -> bool {
    let why = if !cfg!(feature = "mpi") {
        "built without --features mpi"
    } else if !two_can_start() {
        "mpirun does not start two processes here"
    } else {
        return true;
    };
    println!("skipped: {why}");
    false
}

fn two_can_start() -> bool {
    let args = ["--oversubscribe", "--allow-run-as-root", "-n", "2", "true"];
    Command::new("mpirun").args(args).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn mpirun(dir: &Path, ranks: usize) -> Command {
    let mut c = Command::new("mpirun");
    // four processes on two cores take turns; a container's root is root
    c.args(["--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-n", &ranks.to_string()]);
    c.arg(env!("CARGO_BIN_EXE_unified")).current_dir(dir).env("RAYON_NUM_THREADS", "1");
    c
}

fn train(dir: &Path, ranks: usize, config: &str, out: &str, sets: &[String], more: &[&str]) -> Output {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(config);
    let mut c = mpirun(dir, ranks);
    c.args(["train", config.to_str().unwrap(), "--out", out]).args(more);
    sets.iter().for_each(|s| {
        c.args(["--set", s]);
    });
    c.output().unwrap()
}

fn close(a: &[String], b: &[String], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    // step, loss
    let number = |s: &String| s.split_once(' ').unwrap().1.parse::<f64>().unwrap();
    for (i, (x, y)) in a.iter().map(number).zip(b.iter().map(number)).enumerate() {
        assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{what}, update {}: {x} and {y}", i + 1);
    }
}

/// Sets of every kind of training that several processes share.
fn kinds(d: &Path) -> Vec<(&'static str, Vec<String>)> {
    let strings = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let exact = strings(&["run.steps=20", "run.checkpoint_every=10", "run.precision=f32"]);
    let small = ["vision_config", "decoder_config"];
    let small =
        small.iter().flat_map(|t| [format!("model.{t}.num_hidden_layers=1"), format!("model.{t}.image_size=16")]);
    let qlip = [tiny(), small.collect(), exact.clone()].concat();
    let unified = strings(&["model.num_hidden_layers=1", "model.hidden_size=64", "model.intermediate_size=64"]);
    let eyes = vec![format!("image_tokenizer={}", nano().join("qlip").display())];
    let unified = [tiny(), eyes, unified, exact.clone()].concat();
    let llamagen = [llamagen_sets(), exact.clone()].concat();
    let data = d.join("llava");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::copy(fixture("images/photo.jpg"), data.join("photo.jpg")).unwrap();
    let entry = |i: usize| {
        serde_json::json!({"id": i, "image": "photo.jpg", "conversations": [
            {"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "word ".repeat(1 + i % 3)}]})
    };
    std::fs::write(
        data.join("llava.json"),
        serde_json::Value::from((0..12).map(entry).collect::<Vec<_>>()).to_string(),
    )
    .unwrap();
    let mut llava: Vec<String> =
        tiny().into_iter().filter(|s| !s.starts_with("data.") && !s.starts_with("tok")).collect();
    llava.extend([
        format!("data.0.path={}", data.join("llava.json").display()),
        format!("data.0.images={}", data.display()),
        format!("tower={}", nano().join("qlip").display()),
        format!("language_model={}", nano().display()),
    ]);
    llava.extend(exact);
    vec![
        ("nano/qlip-stage1.toml", qlip),
        ("llamagen/cifar-qlip.toml", llamagen),
        ("nano/unified.toml", unified),
        ("llava/example-stage1.toml", llava),
    ]
}

#[test]
fn losses_do_not_depend_on_the_number_of_processes() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (config, sets) in kinds(d) {
        let mut first = Vec::new();
        for ranks in [1, 2, 4] {
            let out = format!("{}-{ranks}", config.replace('/', "-"));
            let run = train(d, ranks, config, &out, &sets, &[]);
            assert!(run.status.success(), "{config}, {ranks}: {}", text(&run.stderr));
            let found = losses(&d.join(&out));
            assert_eq!(found.len(), 20, "{config}");
            if ranks == 1 {
                first = found;
            } else {
                close(&first, &found, &format!("{config} by {ranks}"));
            }
        }
    }
}

/// A process that dies takes all with it, and the training goes on with another number of them.
#[test]
fn a_killed_process_ends_all_and_others_go_on() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let (config, sets) = kinds(d).swap_remove(1);
    let whole = train(d, 1, config, "whole", &sets, &[]);
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(config);
    let mut c = mpirun(d, 2);
    c.args(["train", path.to_str().unwrap(), "--out", "killed"]).stderr(Stdio::piped());
    sets.iter().for_each(|s| {
        c.args(["--set", s]);
    });
    let child = c.spawn().unwrap();
    while losses(&d.join("killed")).len() < 12 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // the second process alone
    let listed = Command::new("ps").args(["-eo", "pid,ppid,comm"]).output().unwrap();
    let listed = text(&listed.stdout);
    let mine = child.id().to_string();
    let victims: Vec<&str> = listed
        .lines()
        .filter_map(|l| {
            let mut parts = l.split_whitespace();
            let (pid, parent) = (parts.next()?, parts.next()?);
            (parent == mine).then_some(pid)
        })
        .collect();
    if let Some(pid) = victims.last() {
        Command::new("kill").args(["-9", pid]).status().unwrap();
    }
    assert!(!child.wait_with_output().unwrap().status.success(), "it goes on without one");
    let again = train(d, 4, config, "killed", &sets, &["--resume"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    close(&losses(&d.join("whole")), &losses(&d.join("killed")), "after the kill");
}

#[test]
fn an_error_in_one_process_ends_all() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (config, mut sets) = kinds(dir.path()).swap_remove(1);
    sets.push("data.pictures.path=nowhere".into());
    let run = train(dir.path(), 2, config, "x", &sets, &[]);
    let err = text(&run.stderr);
    assert!(!run.status.success() && err.contains("nowhere"), "{err}");
}

#[test]
fn several_processes_that_cannot_talk_are_refused() {
    if cfg!(feature = "mpi") {
        println!("skipped: built with --features mpi");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nano/tokenizer.toml");
    let run = Command::new(env!("CARGO_BIN_EXE_unified"))
        .args(["train", config.to_str().unwrap(), "--out", "t"])
        .current_dir(dir.path())
        .envs([("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")])
        .output()
        .unwrap();
    assert!(text(&run.stderr).contains("--features mpi"), "{}", text(&run.stderr));
}
