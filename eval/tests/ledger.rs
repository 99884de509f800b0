//! The parity ledger, docs/parity.md: every metric with the reference package it was compared with, the number of cases and the largest
//! difference. `UNIFIED_WRITE_LEDGER=1 cargo test --release -p unified-eval --test ledger` writes it; without, the test says where it is stale.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn eval(args: &[&str]) -> Vec<u8> {
    let run = Command::new(env!("CARGO_BIN_EXE_eval")).args(args).output().unwrap();
    assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
    run.stdout
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Largest relative difference and number of values of each metric.
type Rows = BTreeMap<(String, &'static str), (usize, f64)>;

fn add(rows: &mut Rows, metric: &str, reference: &'static str, got: f64, want: f64) {
    let off =
        if got == want || (got.is_nan() && want.is_nan()) { 0.0 } else { (got - want).abs() / want.abs().max(1e-12) };
    let row = rows.entry((metric.to_owned(), reference)).or_default();
    *row = (row.0 + 1, row.1.max(off));
}

fn walk(rows: &mut Rows, metric: &str, reference: &'static str, want: &Value, got: &Value) {
    match want {
        Value::Object(o) => o.iter().for_each(|(k, v)| walk(rows, metric, reference, v, &got[k])),
        Value::Array(a) => a.iter().enumerate().for_each(|(i, v)| walk(rows, metric, reference, v, &got[i])),
        Value::Number(n) => add(rows, metric, reference, got.as_f64().unwrap_or(f64::NAN), n.as_f64().unwrap()),
        other => add(rows, metric, reference, f64::from(u8::from(other == got)), 1.0),
    }
}

/// A row for each name in an object, or in the objects of a list.
fn named(rows: &mut Rows, kind: &str, reference: &'static str, want: &Value, got: &Value) {
    match want {
        Value::Array(a) => a.iter().enumerate().for_each(|(i, v)| named(rows, kind, reference, v, &got[i])),
        Value::Object(o) => {
            for (key, value) in o {
                walk(rows, &format!("{kind}: {key}"), reference, value, &got[key]);
            }
        }
        other => walk(rows, kind, reference, other, got),
    }
}

/// The program whose rule a key's variant is.
fn program(variant: &str) -> &'static str {
    match variant {
        v if v.starts_with("llava") => "LLaVA c121f04",
        v if v.starts_with("lmms") => "lmms-eval 75571cf (v0.7.2)",
        v if v.starts_with("vlmevalkit") => "VLMEvalKit e8e78f0",
        v if v.starts_with("official") => "the benchmark's own (VQA a013f00, MMMU bb0b95a, GQA, MME)",
        v if v.starts_with("lupantech") => "lupantech/ScienceQA 2cbf831",
        v if v.starts_with("m4c") => "m4c (TextVQA)",
        v if v.starts_with("pycocoevalcap") => "pycocoevalcap 1.2",
        v if v.starts_with("lm_eval") => "lm_eval 0.4.13",
        v if v.starts_with("clip_benchmark") => "CLIP_benchmark 48de38c",
        _ => "tests/fixtures/evaldata (definition in its README)",
    }
}

fn ledger() -> String {
    let mut rows = Rows::new();
    for (kind, input, reference) in [
        ("images", "images.safetensors", "reference values, tests/fixtures/metrics/images.json"),
        ("features", "features.safetensors", "reference values, tests/fixtures/metrics/features.json"),
        ("retrieval", "retrieval.safetensors", "reference values, tests/fixtures/metrics/retrieval.json"),
        ("captions", "captions.json", "reference values, tests/fixtures/metrics/captions.json"),
        ("vqa", "vqa.json", "reference values, tests/fixtures/metrics/vqa.json"),
        ("pope", "pope.json", "reference values, tests/fixtures/metrics/pope.json"),
    ] {
        let path = fixture("metrics").join(input).display().to_string();
        let got: Value = serde_json::from_slice(&eval(&["score", kind, &path, "--json"])).unwrap();
        let want = json(&fixture("metrics").join(format!("{kind}.json")));
        let (want, got) = if kind == "captions" { (&want["expected"], &got["expected"]) } else { (&want, &got) };
        named(&mut rows, kind, reference, want, got);
    }
    let dir = tempfile::tempdir().unwrap();
    for (task, layout) in [
        ("pope", "hf"),
        ("mme", "hf"),
        ("mmbench", "tsv"),
        ("mmmu", "hf"),
        ("scienceqa", "original"),
        ("seed", "original"),
        ("ai2d", "hf"),
        ("vqav2", "original"),
        ("textvqa", "original"),
        ("gqa", "original"),
        ("coco_caption", "original"),
        ("nocaps", "original"),
        ("hellaswag", "hf"),
        ("arc", "hf"),
        ("cifar", "hf"),
        ("flickr30k", "original"),
    ] {
        let data = fixture("evaldata").join(task);
        let out = dir.path().join(task);
        let model = format!("replay:{}", data.join("answers.jsonl").display());
        let (layout, out_text) = (data.join(layout).display().to_string(), out.display().to_string());
        eval(&["run", "--tasks", task, "--data", &layout, "--model", &model, "--out", &out_text]);
        let results = &json(&out.join("summary.json"))["results"][task];
        for (key, want) in json(&data.join("expected.json")).as_object().unwrap() {
            let Some(want) = want.as_f64().filter(|_| !key.starts_with("meteor")) else { continue };
            let key = key.strip_prefix(&format!("{task}.")).unwrap_or(key);
            let (name, variant) = key.split_once('@').unwrap_or((key, ""));
            let metric = name.split('/').next().unwrap_or(name);
            add(
                &mut rows,
                &format!("{task}: {metric}@{variant}"),
                program(variant),
                results[key]["value"].as_f64().unwrap_or(f64::NAN),
                want,
            );
        }
    }
    for (task, reference) in [
        ("geneval", "djghosh13/geneval 16f1681"),
        ("dpg", "TencentQQGYLab/ELLA 025f650"),
        ("winoground", "the dataset card's rules (tests/fixtures/rules/make.py)"),
        ("t2i_compbench", "the product of BLIP_vqa.py (tests/fixtures/rules/make.py)"),
        ("perplexity", "lm_eval 0.4.9's formulas (tests/fixtures/rules/make.py)"),
        ("words", "definitions in Python (tests/fixtures/rules/make.py)"),
    ] {
        let data = fixture("rules").join(task);
        let declared = fixture("rules").join(format!("{task}.toml"));
        let given = if declared.is_file() { declared.display().to_string() } else { task.to_owned() };
        let (out, model) = (dir.path().join(task), format!("replay:{}", data.join("answers.jsonl").display()));
        let data = Some(data.join("data")).filter(|d| d.is_dir()).unwrap_or(data);
        let (data, out_text) = (data.display().to_string(), out.display().to_string());
        eval(&["run", "--tasks", &given, "--data", &data, "--model", &model, "--out", &out_text]);
        let results = &json(&out.join("summary.json"))["results"][task];
        for (key, want) in json(&fixture("rules/expected.json"))[task].as_object().unwrap() {
            let metric = key.split(['/', '@']).next().unwrap();
            let variant = key.split_once('@').unwrap().1;
            let got = results[key]["value"].as_f64().unwrap_or(f64::NAN);
            add(&mut rows, &format!("{task}: {metric}@{variant}"), reference, got, want.as_f64().unwrap());
        }
    }
    let rules = fixture("rules");
    let expected = json(&rules.join("expected.json"));
    let score = |args: &[&str]| -> Value { serde_json::from_slice(&eval(&[&["score"], args].concat())).unwrap() };
    let path = |p: &Path| p.display().to_string();
    let got = score(&["calibration", &path(&rules.join("calibration.json")), "--json"]);
    named(
        &mut rows,
        "calibration",
        "definition in numpy (tests/fixtures/rules/make.py)",
        &expected["calibration"],
        &got,
    );
    let (a, b) = (path(&rules.join("frechet_a.npz")), path(&rules.join("frechet_b.npz")));
    let got = score(&["frechet", &a, &b, "--json"]);
    named(&mut rows, "frechet", "eigenvalues in numpy (tests/fixtures/rules/make.py)", &expected["frechet"], &got);
    let got = score(&["clipscore", &path(&rules.join("clipscore.safetensors")), "--json"]);
    named(&mut rows, "clipscore", "definitions in numpy (tests/fixtures/rules/make.py)", &expected["clipscore"], &got);
    let trunk = dir.path().join("alex.safetensors");
    nn::checkpoint::save(&trunk, &tests::made_weights("lpips/alex").into_iter().collect(), &[]).unwrap();
    let input = fixture("lpips/alex.safetensors");
    let got = score(&["lpips", &path(&input), "--trunk", &path(&trunk), "--net", "alex", "--json"]);
    let want = nn::checkpoint::load(&input).unwrap();
    for (name, t) in want.iter().filter(|(n, _)| n.starts_with("layer") || *n == "distance") {
        let want: Vec<f64> = t.flatten_all().unwrap().to_dtype(candle_core::DType::F64).unwrap().to_vec1().unwrap();
        let name_of = if name == "distance" { "lpips: distance" } else { "lpips: layers" };
        for (n, w) in want.iter().enumerate() {
            let got = got[name.as_str()][n].as_f64().unwrap_or(f64::NAN);
            add(&mut rows, name_of, "lpips 0.1.4 (tests/fixtures/README.md)", got, *w);
        }
    }
    let mut all = tests::made_weights("inception/inception");
    let pixels = all.remove("pixels").unwrap();
    let params = nn::Params::from_tensors("made", all, candle_core::DType::F32, &candle_core::Device::Cpu);
    let net = eval::metrics::inception::Inception::new(&params).unwrap();
    let (pooled, spatial, logits) = net.look(&pixels).unwrap();
    let want = nn::checkpoint::load(&fixture("inception/inception.safetensors")).unwrap();
    for (name, got) in [("pooled", pooled), ("spatial", spatial), ("logits", logits)] {
        let of = |t: &candle_core::Tensor| -> Vec<f64> { tests::values(t) };
        let (got, want) = (of(&got), of(&want[name]));
        let size = want.iter().fold(0f64, |m, v| m.max(v.abs()));
        let off = got.iter().zip(&want).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / size;
        let row =
            rows.entry((format!("inception: {name}"), "float64 numpy (tests/fixtures/inception/make.py)")).or_default();
        *row = (want.len(), off);
    }
    let mut text = String::from(
        "# Parity ledger\n\nWritten by `UNIFIED_WRITE_LEDGER=1 cargo test --release -p unified-eval --test ledger`: each metric, what it was compared with, how \
         many values, and the largest relative difference (rounded up to a power of ten). Versions are those of the reference values' READMEs. \
         METEOR needs Java and is left out.\n\n| metric | reference | values | largest difference |\n|---|---|---|---|\n",
    );
    for ((metric, reference), (n, off)) in rows {
        let off = match off {
            0.0 => "0".to_owned(),
            // machines differ in the last digits
            o => format!("1e{}", o.log10().ceil().max(-12.0)),
        };
        text.push_str(&format!("| {metric} | {reference} | {n} | {off} |\n"));
    }
    text
}

#[test]
fn the_ledger_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/parity.md");
    let now = ledger();
    if std::env::var("UNIFIED_WRITE_LEDGER").is_ok() {
        std::fs::write(&path, &now).unwrap();
    }
    let then = std::fs::read_to_string(&path).unwrap_or_default();
    let rows = |t: &str| -> Vec<String> {
        t.lines().filter(|l| l.starts_with("| ")).map(|l| l.rsplitn(3, " | ").nth(2).unwrap_or(l).to_owned()).collect()
    };
    assert_eq!(rows(&now), rows(&then), "docs/parity.md is stale: UNIFIED_WRITE_LEDGER=1 writes it");
    // the differences themselves may move by machine, below what the tolerances allow
    for line in now.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| metric")) {
        let off = line.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let off: f64 = if off == "0" { 0.0 } else { off.parse().unwrap() };
        // networks are float32
        let near = if ["| lpips", "| inception"].iter().any(|s| line.starts_with(s)) { 1e-4 } else { 1e-6 };
        assert!(off <= near, "{line}");
    }
}
