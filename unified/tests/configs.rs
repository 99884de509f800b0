//! Every config in the repository is one that the program reads.

use std::path::{Path, PathBuf};
use unified::train::Training;

fn below(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(&path, out);
        } else if path.extension().is_some_and(|e| e == "toml") {
            out.push(path);
        }
    }
}

#[test]
fn every_config_is_read() {
    let mut all = Vec::new();
    below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs"), &mut all);
    assert!(all.len() > 10, "{all:?}");
    for path in &all {
        let training = Training::from_file(path, &[]).unwrap_or_else(|e| panic!("{e}"));
        if let Training::LlamaGen(t) = &training
            && let Some(size) = &t.preset
        {
            let kind = lm::llamagen::ModelType::C2i;
            lm::llamagen::LlamaGenConfig::preset(size, kind, 16).unwrap().check().unwrap();
        }
    }
}
