//! `eval score` prints every key of the reference files of tests/fixtures/metrics.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Every number of `want` is there, within a relative `near`.
fn holds(path: &str, want: &Value, got: &Value, near: f64, checked: &mut usize) {
    match want {
        Value::Object(o) => o.iter().for_each(|(k, v)| holds(&format!("{path}/{k}"), v, &got[k], near, checked)),
        Value::Array(a) => {
            for (i, v) in a.iter().enumerate() {
                holds(&format!("{path}[{i}]"), v, &got[i], near, checked);
            }
        }
        Value::Number(n) => {
            let (want, got) = (n.as_f64().unwrap(), got.as_f64().unwrap_or(f64::NAN));
            let loose = if path.contains("torchmetrics") || path.contains("ms_ssim") { 1e-6 } else { near };
            let loose = if path.contains("fid") { 1e-7 } else { loose };
            assert!((got - want).abs() <= loose * want.abs().max(1e-12), "{path}: {got} for {want}");
            *checked += 1;
        }
        other => {
            assert_eq!(got, other, "{path}");
            *checked += 1;
        }
    }
}

#[test]
fn every_key_of_the_reference_files() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/metrics");
    for (kind, input) in [
        ("images", "images.safetensors"),
        ("features", "features.safetensors"),
        ("retrieval", "retrieval.safetensors"),
        ("captions", "captions.json"),
        ("vqa", "vqa.json"),
        ("pope", "pope.json"),
    ] {
        let path = dir.join(input).display().to_string();
        let run = Command::new(env!("CARGO_BIN_EXE_eval")).args(["score", kind, &path, "--json"]).output().unwrap();
        assert!(run.status.success(), "{kind}: {}", String::from_utf8_lossy(&run.stderr));
        let got: Value = serde_json::from_slice(&run.stdout).unwrap();
        let want = std::fs::read_to_string(dir.join(format!("{kind}.json"))).unwrap();
        let mut want: Value = serde_json::from_str(&want).unwrap();
        if kind == "captions" {
            want = serde_json::json!({"expected": want["expected"]});
        }
        let mut checked = 0;
        holds(kind, &want, &got, 1e-9, &mut checked);
        assert!(checked > 5, "{kind}: {checked} values");
    }
}
