//! Readers of foreign bytes: whatever is damaged, the answer is a value or an error, never a panic.

use proptest::prelude::*;
use std::path::Path;
use tests::fixture;

fn damaged(files: &[&str]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let all: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(fixture(f)).expect("a fixture")).collect();
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(all), edits, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut bytes, edits, cut, whole)| {
            for (at, value) in edits {
                let i = at.index(bytes.len());
                bytes[i] = value;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn pictures(bytes in damaged(&["images/photo.jpg", "images/photo.webp", "images/palette.png", "images/photo.gif", "images/photo.bmp", "images/rotated.jpg"])) {
        let _ = qlip::Image::from_bytes(Path::new("x"), &bytes);
    }

    #[test]
    fn checkpoints(bytes in damaged(&["optim/optim.safetensors", "bsq/bits18_group9.safetensors"])) {
        let _ = nn::checkpoint::read(Path::new("x"), &bytes);
    }

    #[test]
    fn configs(bytes in damaged(&["qlip/eva/config.json"])) {
        if let Ok(text) = String::from_utf8(bytes) {
            let config = qlip::config::parse_json::<qlip::QlipConfig>(Path::new("x"), &text);
            let _ = config.map(|c| c.check());
        }
    }

    #[test]
    fn tokenizers(bytes in damaged(&["cliptok/tokenizer.json"])) {
        let _ = qlip::tokenizer::TextTokenizer::from_bytes(Path::new("x"), &bytes, 77, 49407);
    }

    #[test]
    fn parquet(bytes in damaged(&["photos/test-00000-of-00001.parquet"])) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train-0.parquet"), &bytes).unwrap();
        let _ = qlip::data::Pictures::open(dir.path(), "train").map(|p| p.image(0));
    }

    #[test]
    fn shards(bytes in damaged(&["photos/sample.tar"])) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.tar");
        std::fs::write(&path, &bytes).unwrap();
        let _ = qlip::data::Pictures::open(&path, "train").map(|p| (0..p.len()).filter(|&i| p.image(i).is_ok()).count());
    }
}
