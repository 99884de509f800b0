//! Published benchmarks in their published layouts (tests/fixtures/evaldata): what `eval run` computes from fixed answers is what the reference
//! scorers computed, whichever layout is read; malformed data are said and left out; two runs are compared.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn evaldata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/evaldata").join(name)
}

fn eval(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_eval")).args(args).output().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn replay(task: &str, data: &Path, answers: &Path, out: &Path, more: &[&str]) -> Output {
    let model = format!("replay:{}", answers.display());
    let (data, out) = (data.display().to_string(), out.display().to_string());
    let args = ["run", "--tasks", task, "--data", &data, "--model", &model, "--out", &out];
    eval(&[&args[..], more].concat())
}

/// Every layout of every benchmark against the reference scorers; METEOR needs Java and is left out.
#[test]
fn every_value_of_the_reference_scorers() {
    const LAYOUTS: [(&str, &[&str]); 16] = [
        ("pope", &["hf", "json", "vlmevalkit"]),
        ("mme", &["hf", "MME_Benchmark_release_version"]),
        ("mmbench", &["tsv", "vlmevalkit", "hf"]),
        ("mmmu", &["hf", "hf_lmms_merged"]),
        ("scienceqa", &["original", "hf"]),
        ("seed", &["original", "hf"]),
        ("ai2d", &["hf", "vlmevalkit"]),
        ("vqav2", &["original", "hf"]),
        ("textvqa", &["original", "hf"]),
        ("gqa", &["original", "hf"]),
        ("coco_caption", &["original"]),
        ("nocaps", &["original", "hf"]),
        ("hellaswag", &["hf"]),
        ("arc", &["hf"]),
        ("cifar", &["hf"]),
        ("flickr30k", &["original", "hf"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for (task, layouts) in LAYOUTS {
        let expected = json(&evaldata(task).join("expected.json"));
        for layout in layouts {
            let out = dir.path().join(format!("{task}-{layout}"));
            let run = replay(task, &evaldata(task).join(layout), &evaldata(task).join("answers.jsonl"), &out, &[]);
            assert!(run.status.success(), "{task} {layout}: {}", String::from_utf8_lossy(&run.stderr));
            let results = &json(&out.join("summary.json"))["results"][task];
            for (key, want) in expected.as_object().unwrap() {
                let Some(want) = want.as_f64().filter(|_| !key.starts_with("meteor")) else { continue };
                let key = key.strip_prefix(&format!("{task}.")).unwrap_or(key);
                let got = results[key]["value"].as_f64().unwrap_or(f64::NAN);
                assert!((got - want).abs() <= 1e-9 * want.abs().max(1.0), "{task} {layout} {key}: {got} for {want}");
                compared += 1;
            }
        }
    }
    assert!(compared > 700, "{compared} values compared");
}

/// Each malformed case: how many rows are still read, and what is said.
#[test]
fn malformed_data_are_said_and_the_rest_is_scored() {
    let said = [
        ("pope_missing_column", "column `answer` missing in data/test-00000-of-00001.parquet"),
        ("pope_misspelt_column", "`anwser`"),
        ("pope_null_picture", "id 75: picture missing"),
        ("pope_duplicate_id", "duplicate id \"76\" (rows 4 and 7)"),
        ("pope_bad_label", "label \"maybe\" is neither yes nor no"),
        ("pope_broken_picture", "id 73: cannot decode the picture"),
        ("pope_torn_parquet", "not a complete parquet file (no PAR1 at the end; download again)"),
        ("pope_lfs_pointer", "this is a Git LFS pointer (size 85123456), not the file"),
        ("pope_empty_file", "empty file"),
        ("pope_missing_shard", "shard 1 of 3 missing"),
        ("pope_torn_jsonl", "coco_pope_random.json line 10: torn line left out"),
        ("pope_bad_line", "line 4, column"),
        ("legal_bom_crlf", ""),
        ("mme_odd_pairs", "MME needs exactly two rows per question_id"),
        ("mme_unknown_category", "unknown category \"existance\" (nearest: existence)"),
        ("mmbench_wrong_base64", "index 256: refers to the picture of row 999999"),
        ("mmbench_bad_answer", "answer \"AB\" outside the options"),
        ("mmbench_ragged", "line 4: 6 fields, header has 14"),
        ("mmbench_missing_rotation", "question 241: rotation 1 missing"),
        ("vqa_gaps", "question 262956000: no annotation"),
        ("vqa_torn_json", "JSON ends early at byte"),
        ("scienceqa_label_range", "answer 7 outside 0..4"),
        ("scienceqa_missing_problem", "pid 115 is in pid_splits.json but not in problems.json"),
        ("cifar_no_names", "no class names in the file"),
        ("hellaswag_label", "label \"9\" outside 0..3"),
        ("mmmu_options", "options are not a list of strings"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let cases = json(&evaldata("bad/cases.json"));
    for (name, words) in said {
        let case = cases.as_array().unwrap().iter().find(|c| c["case"] == name).unwrap();
        let task = case["benchmark"].as_str().unwrap();
        let out = dir.path().join(name);
        let run =
            replay(task, &evaldata("bad").join(name), &evaldata(task).join("answers.jsonl"), &out, &["--partial"]);
        let err = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(err.contains(words), "{name}: {err}");
        // the shards that are there hold 72 rows; rows_ok counts each file as a third of 90
        match case["rows_ok"].as_u64().filter(|n| *n > 0 && name != "pope_missing_shard") {
            Some(n) => {
                let t = &json(&out.join("summary.json"))["tasks"][task];
                let read = t["scored"].as_u64().unwrap() + t["unanswered"].as_u64().unwrap();
                assert_eq!(read, n, "{name}: {err}");
            }
            None if case["rows_ok"] == 0 => assert!(!run.status.success() && err.lines().count() == 1, "{name}: {err}"),
            None => assert!(run.status.success(), "{name}: {err}"),
        }
    }
    // answers: a torn line, unanswered items, an unknown id, a second answer
    let out = dir.path().join("answers");
    let torn = evaldata("bad/answers_torn/answers.jsonl");
    let run = replay("pope", &evaldata("pope/hf"), &torn, &out, &[]);
    let err = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        !run.status.success() && err.contains("line 21: torn line") && err.contains("no score without --partial"),
        "{err}"
    );
    let odd = evaldata("bad/answers_odd/answers.jsonl");
    let run = replay("pope", &evaldata("pope/hf"), &odd, &out, &[]);
    let err = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success() && err.contains("unknown ids") && err.contains("a second answer for id 0"), "{err}");
}

#[test]
fn a_folder_says_what_it_serves() {
    let run = eval(&["probe", &evaldata("seed/original").display().to_string()]);
    let out = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success() && out.starts_with("seed") && out.contains("66 items"), "{out}");
    let run = eval(&["probe", &evaldata("bad/zip_good").display().to_string()]);
    assert!(!run.status.success());
}

/// Answers made better are found better, and a gate lets them pass in one direction alone.
#[test]
fn two_runs_are_compared_item_by_item() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let plain = evaldata("vqav2/answers.jsonl");
    let gold = json(&evaldata("vqav2/original/v2_mscoco_val2014_annotations.json"));
    let mut better = String::new();
    for a in gold["annotations"].as_array().unwrap() {
        let line = serde_json::json!({"id": a["question_id"].to_string(), "answer": a["multiple_choice_answer"]});
        better.push_str(&format!("{line}\n"));
    }
    std::fs::write(d.join("better.jsonl"), better).unwrap();
    let data = evaldata("vqav2/original");
    assert!(replay("vqav2", &data, &plain, &d.join("a"), &[]).status.success());
    assert!(replay("vqav2", &data, &d.join("better.jsonl"), &d.join("b"), &[]).status.success());
    let (a, b) = (d.join("a").display().to_string(), d.join("b").display().to_string());
    let run = eval(&["compare", &a, &b, "--json", "--draws", "2000"]);
    let rows: Value = serde_json::from_slice(&run.stdout).unwrap();
    let row = rows.as_array().unwrap().iter().find(|r| r["metric"] == "vqa_acc@official").unwrap();
    assert!(row["delta"].as_f64().unwrap() > 0.05 && row["low"].as_f64().unwrap() > 0.0, "{row}");
    assert!(eval(&["gate", &a, &b, "--max-drop", "vqav2=0.5"]).status.success());
    assert!(!eval(&["gate", &b, &a, "--max-drop", "vqav2=0.5"]).status.success());
    let run = eval(&["gate", &a, &b, "--max-drop", "gqa=1"]);
    assert!(String::from_utf8_lossy(&run.stderr).contains("no task `gqa` in common"));
}
