//! A model's folder: config.json, then, each behind a byte of zero, the other files that lie beside weights.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unified::artifact::{Artifact, BESIDE_WEIGHTS};

fuzz_target!(|data: &[u8]| {
    let dir = std::env::temp_dir().join(format!("fuzz-artifact-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary folder");
    let mut parts = data.split(|b| *b == 0);
    for name in BESIDE_WEIGHTS {
        let path = dir.join(name);
        match parts.next() {
            Some(bytes) => std::fs::write(&path, bytes).expect("a temporary file"),
            None => {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    let Ok(artifact) = Artifact::at(&dir) else { return };
    let _ = artifact.text_tokenizer();
    let _ = artifact.fingerprint();
    let _ = artifact.files.preprocess(64);
    let _ = artifact.config::<serde_json::Value>();
});
