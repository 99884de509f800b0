//! README's library example is the compiled one.

#[test]
fn readme_shows_the_example() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("../README.md")).unwrap();
    let example = std::fs::read_to_string(root.join("examples/interleave.rs")).unwrap();
    let code = example.split_once("\n\n").map_or(example.as_str(), |(_, code)| code);
    assert!(readme.contains(code.trim()), "copy unified/examples/interleave.rs into README.md");
}
