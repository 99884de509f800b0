//! Ten thousand changed model folders and files through the one door: no panic, no memory beyond a small multiple of the file.

use std::path::{Path, PathBuf};
use tests::fixture;
use unified::artifact::Artifact;
use unified::template::Template;

/// A few bytes changed, cut or doubled.
fn changed(bytes: &[u8], key: u64) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for j in 0..1 + key % 4 {
        let r = nn::rng::mix(key << 8 | j);
        if out.is_empty() {
            return out;
        }
        // headers are at the beginning: half of the changes are there
        let reach = if r >> 63 == 1 { out.len().min(400) } else { out.len() };
        let at = (r % reach as u64) as usize;
        match (r >> 40) % 8 {
            0 => out.truncate(at),
            1 => out[at] = 0xff,
            2 => out.insert(at, (r >> 16) as u8),
            3 => {
                let end = (at + 16).min(out.len());
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            _ => out[at] = (r >> 16) as u8,
        }
    }
    out
}

/// What every command does with a model before it computes.
fn open(path: &Path) {
    let Ok(artifact) = Artifact::at(path) else { return };
    let _ = artifact.tensors().map(|t| t.shapes().len());
    let _ = artifact.text_tokenizer().map(|w| w.encode("hello <s> ÿ"));
    let _ = artifact.image_tokenizer();
    let messages = serde_json::json!([{"role": "user", "content": "hi"}]);
    if let Ok(Some(template)) = Template::of_model(&artifact.files) {
        let _ = template.render(&unified::template::Conversation::to_answer(&messages, "<s>", "</s>"));
    }
}

#[test]
fn no_change_of_a_folder_panics() {
    let dir = tempfile::tempdir().unwrap();
    let folders: Vec<(PathBuf, Vec<&str>)> = vec![
        (fixture("llava"), vec!["config.json"]),
        (fixture("janus"), vec!["config.json"]),
        (fixture("chameleon/plain"), vec!["config.json"]),
        (fixture("emu3"), vec!["config.json"]),
        (fixture("llama/gqa"), vec!["config.json"]),
        (
            fixture("field/checkpoints/llava-control-tokens"),
            vec!["config.json", "tokenizer.json", "tokenizer_config.json"],
        ),
    ];
    let mut tried = 0;
    for (n, (folder, names)) in folders.iter().filter(|f| f.0.is_dir()).enumerate() {
        let at = dir.path().join(n.to_string());
        std::fs::create_dir(&at).unwrap();
        for entry in std::fs::read_dir(folder).unwrap().flatten().filter(|e| e.path().is_file()) {
            std::fs::copy(entry.path(), at.join(entry.file_name())).unwrap();
        }
        for name in names.iter().filter(|n| folder.join(n).is_file()) {
            let whole = std::fs::read(folder.join(name)).unwrap();
            for key in 0..600 {
                std::fs::write(at.join(name), changed(&whole, key ^ (n as u64) << 32)).unwrap();
                open(&at);
                tried += 1;
            }
            std::fs::write(at.join(name), &whole).unwrap();
        }
    }
    assert!(tried >= 3000, "{tried} tried");
}

#[test]
fn no_change_of_a_file_panics() {
    let dir = tempfile::tempdir().unwrap();
    let piece = |text: &str, score: f32, kind: u8| -> Vec<u8> {
        let mut p = vec![0x0a, text.len() as u8];
        p.extend(text.bytes());
        p.push(0x15);
        p.extend(score.to_le_bytes());
        p.extend([0x18, kind]);
        let mut out = vec![0x0a, p.len() as u8];
        out.extend(p);
        out
    };
    // a SentencePiece model of five pieces, kind BPE
    let mut model: Vec<u8> = [("<unk>", 2), ("<s>", 3), ("a", 1), ("b", 1), ("ab", 1)]
        .iter()
        .flat_map(|(t, k)| piece(t, -1.0, *k))
        .collect();
    model.extend([0x12, 2, 0x18, 2]);
    let config = br#"{"model_type": "llama", "vocab_size": 5}"#;
    for key in 0..3000u64 {
        let at = dir.path().join("sp");
        let _ = std::fs::create_dir(&at);
        std::fs::write(at.join("config.json"), config).unwrap();
        std::fs::write(at.join("tokenizer.model"), if key == 0 { model.clone() } else { changed(&model, key) })
            .unwrap();
        if key == 0 {
            let words = Artifact::at(&at).unwrap().text_tokenizer().unwrap();
            assert_eq!(words.decode(&words.encode("ab").unwrap()).unwrap(), "ab");
        }
        open(&at);
    }
    // the head of a GGUF, and its whole
    let whole = std::fs::read(fixture("gguf/tiny-q8_0.gguf")).unwrap();
    for key in 0..2000 {
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, changed(&whole, key)).unwrap();
        open(&path);
    }
    // a pickle of torch.save
    if let Some(pickle) = std::fs::read_dir(fixture("janus/original"))
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "bin"))
    {
        let whole = std::fs::read(pickle).unwrap();
        for key in 0..1500 {
            let path = dir.path().join("c2i_B_256.pt");
            std::fs::write(&path, changed(&whole[..whole.len().min(200_000)], key)).unwrap();
            open(&path);
        }
    }
}
