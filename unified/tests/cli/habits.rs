//! What people are used to from other programs: folders, tables, pipes that close, one bad file among many, streams for machines.

use super::{fixture, ok, text, unified};
use std::io::Write;
use std::process::{Command, Stdio};

fn some_pictures(dir: &std::path::Path) {
    std::fs::create_dir(dir.join("p")).unwrap();
    for (i, from) in super::files(&fixture("field/pictures")).iter().filter(|f| f.ends_with(".jpg")).enumerate() {
        std::fs::copy(fixture("field/pictures").join(from), dir.join(format!("p/{i}.jpg"))).unwrap();
    }
    std::fs::write(dir.join("p/a.png"), b"no picture").unwrap();
    ok(dir, &["generate", "a red circle", "-o", "p"]);
}

#[test]
fn one_bad_picture_among_many_is_said_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    some_pictures(dir.path());
    for command in [&["describe", "p"][..], &["classify", "p", "--labels", "red,blue"], &["tokenize", "p", "-o", "x"]] {
        let out = unified(dir.path(), command);
        let err = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{err}");
        assert!(err.contains("a.png") && err.contains("pictures could not be read"), "{err}");
        assert!(!out.stdout.is_empty());
    }
}

#[test]
fn tables_and_json_hold_any_name() {
    use std::os::unix::ffi::OsStringExt;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    ok(d, &["generate", "a red circle"]);
    let odd = std::ffi::OsString::from_vec(b"a\xff: b.png".to_vec());
    std::fs::rename(d.join("unified-0001.png"), d.join(&odd)).unwrap();
    for flag in ["--json", "--csv"] {
        let out = Command::new(env!("CARGO_BIN_EXE_unified"))
            .args(["describe", flag])
            .arg(&odd)
            .current_dir(d)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        let said = text(&out.stdout);
        assert!(said.contains("a red circle"), "{said}");
        if flag == "--json" {
            let v: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!(v["version"], 1);
        }
    }
}

#[test]
fn a_closed_pipe_ends_quietly_and_a_full_disk_with_a_line() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &["generate", "a red circle"]);
    let command = |args: &str| {
        let line = format!("{} {args}", env!("CARGO_BIN_EXE_unified"));
        Command::new("bash").args(["-c", &line]).current_dir(dir.path()).output().unwrap()
    };
    let images = "unified-0001.png ".repeat(40);
    let out = command(&format!("describe {images} --batch 1 | head -1; exit ${{PIPESTATUS[0]}}"));
    // 141: the signal of a pipe that nobody reads, as other programs end
    assert_eq!(text(&out.stderr), "");
    assert!([Some(0), Some(141)].contains(&out.status.code()));
    let out = command("info > /dev/full");
    let err = text(&out.stderr);
    assert_eq!((err.lines().count(), out.status.code()), (1, Some(1)), "{err}");
    let out = command("chat --prompt hello > /dev/full");
    assert_eq!((text(&out.stderr).lines().count(), out.status.code()), (1, Some(1)));
}

#[test]
fn a_stream_for_machines_ends_with_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["chat", "--prompt", "draw a red circle", "--json", "--stream", "--seed", "-1"];
    let out = ok(dir.path(), &args);
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let events: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
    assert_eq!(events[0], "image_started");
    assert_eq!(events[events.len() - 2..], ["image", "done"]);
    assert_eq!(lines[lines.len() - 1]["finish_reason"], "stop");
    assert!(lines[lines.len() - 1]["seed"].as_u64().is_some_and(|s| s > 0));
}

#[test]
fn a_picture_comes_through_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &["generate", "a red circle"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_unified"))
        .args(["chat", "--prompt", "what is in the picture?", "--image", "-"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = std::fs::read(dir.path().join("unified-0001.png")).unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout).trim(), "a red circle");
}

#[test]
fn shells_and_man_get_their_files() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ok(dir.path(), &["completions", "bash"]).contains("_unified"));
    ok(dir.path(), &["man", "-o", "man"]);
    assert!(super::files(&dir.path().join("man")).contains(&"unified-chat.1".to_owned()));
}

#[test]
fn a_template_without_a_place_for_a_system_says_so() {
    let dir = tempfile::tempdir().unwrap();
    super::fails(dir.path(), &["chat", "--prompt", "hi", "--system", "be brief"], &["system"]);
}

#[test]
fn a_drawing_that_is_asked_for_by_name_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_unified"))
        .args(["chat", "-o", "p"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all("/draw a red circle\n".repeat(12).as_bytes()).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(super::files(&dir.path().join("p")).len(), 12);
}
