//! Logs of other harnesses become answers, and two runs are compared: differences, sameness within a margin, and a page.

use std::path::{Path, PathBuf};
use std::process::Command;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn eval(args: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_eval")).args(args).output().unwrap();
    let text = if out.status.success() { out.stdout } else { out.stderr };
    (out.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn an_lmms_eval_log_is_scored_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let answers = fixture("evaldata/pope/answers.jsonl");
    let data = fixture("evaldata/pope/hf").to_str().unwrap().to_owned();
    let lines: Vec<serde_json::Value> =
        std::fs::read_to_string(&answers).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    // the same answers as lmms-eval logs them; and others, of which some differ
    let log = |name: &str, change: &dyn Fn(usize, &str) -> String| {
        let line = |(i, a): (usize, &serde_json::Value)| {
            let said = change(i, a["answer"].as_str().unwrap_or_default());
            let line = serde_json::json!({"doc_id": i, "doc": {"id": a["id"], "question_id": (i % 7).to_string()}, "resps": [[said]], "filtered_resps": [said]});
            format!("{line}\n")
        };
        std::fs::write(at(name), lines.iter().enumerate().map(line).collect::<String>()).unwrap();
    };
    log("samples_pope.jsonl", &|_, a| a.to_owned());
    log("samples_other.jsonl", &|i, a| if i % 3 == 0 { "no".into() } else { a.to_owned() });
    for (log, out, run) in [("samples_pope.jsonl", "a.jsonl", "a"), ("samples_other.jsonl", "b.jsonl", "b")] {
        let (ok, said) = eval(&["import", &at(log), "-o", &at(out)]);
        assert!(ok && said.contains(&format!("{} answers, 0 samples left out", lines.len())), "{said}");
        let model = format!("replay:{}", at(out));
        let (ok, said) =
            eval(&["run", "--tasks", "pope", "--data", &data, "--model", &model, "--out", &at(run), "--partial"]);
        assert!(ok, "{said}");
    }
    let given = format!("replay:{}", answers.display());
    let (ok, said) =
        eval(&["run", "--tasks", "pope", "--data", &data, "--model", &given, "--out", &at("c"), "--partial"]);
    assert!(ok, "{said}");
    let results = |run: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(dir.path().join(run).join("summary.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["results"].clone()
    };
    assert_eq!(results("a"), results("c"), "imported answers are scored as the given ones");
    let (ok, said) = eval(&["compare", &at("a"), &at("c"), "--equiv", "60", "--draws", "500", "--json"]);
    assert!(ok, "{said}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    assert!(rows.iter().all(|r| r["equivalent"] == true && r["delta"] == 0.0), "{said}");
    let (ok, said) =
        eval(&["compare", &at("a"), &at("b"), "--equiv", "1", "--draws", "500", "--html", &at("page.html")]);
    assert!(ok && said.contains("not shown to be the same"), "{said}");
    let page = std::fs::read_to_string(at("page.html")).unwrap();
    assert!(page.contains("items changed") && page.contains("<svg") && !page.contains("http"), "{page}");
    let (ok, said) = eval(&["compare", &at("a"), &at("b"), "--equiv", "0"]);
    assert!(!ok && said.contains("--equiv"), "{said}");
}
