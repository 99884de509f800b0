//! Pictures, and the files that hold many: parquet, tables, JSONL, shards. The first byte says which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qlip::Image;
use std::path::Path;

const ENDS: [&str; 8] = ["png", "parquet", "csv", "tsv", "jsonl", "tar", "tar.gz", "json"];

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let end = ENDS[*kind as usize % ENDS.len()];
    if end == "png" {
        let _ = Image::from_bytes(Path::new("x"), data);
        return;
    }
    let dir = std::env::temp_dir().join(format!("fuzz-pictures-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a temporary folder");
    let path = dir.join(format!("x.{end}"));
    std::fs::write(&path, data).expect("a temporary file");
    let Ok(pictures) = qlip::data::Pictures::open(&path, "train") else { return };
    for i in 0..pictures.len().min(4) {
        let _ = pictures.image(i);
        let _ = pictures.words_at(i, 0);
    }
});
