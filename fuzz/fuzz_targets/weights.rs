//! Files of tensors: safetensors, torch.save's (zip and older pickles), GGUF. Every tensor that a head promises is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nn::stored::Stored;

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("fuzz-weights-{}", std::process::id()));
    std::fs::write(&path, data).expect("a temporary file");
    let Ok(stored) = Stored::map_files(vec![path]) else { return };
    let shapes: Vec<(String, usize)> =
        stored.shapes().into_iter().map(|(name, dims)| (name.to_owned(), dims.iter().product())).collect();
    for (name, numbers) in shapes.into_iter().filter(|s| s.1 < 1 << 20) {
        let held = stored.get(&name);
        assert!(held.is_err() || held.is_ok_and(|t| t.is_none_or(|t| t.elem_count() == numbers)));
    }
});
