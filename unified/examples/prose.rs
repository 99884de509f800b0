//! English prose that every machine with Rust has: the doc comments of downloaded crates, as documents for training.
//!
//!     cargo run --release -p unified-mm --example prose -- ~/.cargo/registry/src OUT [MEGABYTES]
//!
//! Writes OUT/train.jsonl and OUT/test.jsonl (`{"text": ..}` a line); a crate is in one of them only.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Letters of a document; longer comments become several.
const DOCUMENT: usize = 1200;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(from), Some(out)) = (args.next(), args.next()) else {
        eprintln!("error: give the folder of crate sources and the folder of the result");
        std::process::exit(2);
    };
    let most = args.next().and_then(|m| m.parse::<f64>().ok()).unwrap_or(4.0) * 1e6;
    let mut crates: Vec<PathBuf> = Vec::new();
    for registry in fs::read_dir(from)? {
        for entry in fs::read_dir(registry?.path())? {
            crates.push(entry?.path());
        }
    }
    // spread over the alphabet, the same on every machine with the same crates
    crates.sort_by_key(|c| hash(&name(c)));
    fs::create_dir_all(&out)?;
    let file = |name: &str| fs::File::create(Path::new(&out).join(name)).map(std::io::BufWriter::new);
    let (mut train, mut test) = (file("train.jsonl")?, file("test.jsonl")?);
    let (mut bytes, mut held_out) = (0.0, 0.0);
    for krate in crates {
        if bytes > most {
            break;
        }
        let mut sources = Vec::new();
        rust_files(&krate, &mut sources)?;
        sources.sort();
        for source in sources {
            let Ok(text) = fs::read_to_string(&source) else { continue };
            for document in documents(&text) {
                let line = serde_json::json!({ "text": document });
                let (to, count) = if hash(&name(&krate)).is_multiple_of(10) {
                    (&mut test, &mut held_out)
                } else {
                    (&mut train, &mut bytes)
                };
                *count += document.len() as f64;
                writeln!(to, "{line}")?;
            }
        }
    }
    println!("{:.1} MB to learn, {:.1} MB held out", bytes / 1e6, held_out / 1e6);
    Ok(())
}

fn name(p: &Path) -> String {
    p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// FNV-1a.
fn hash(s: &str) -> u64 {
    s.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, out)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    Ok(())
}

/// Prose of consecutive doc comments, without code blocks, links' addresses and non-ASCII letters.
fn documents(source: &str) -> Vec<String> {
    let (mut out, mut text, mut code) = (Vec::new(), String::new(), false);
    for line in source.lines().chain([""]) {
        let line = line.trim();
        let Some(words) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else {
            code = false;
            if text.len() >= 200 && text.is_ascii() {
                out.push(std::mem::take(&mut text).trim().to_owned());
            }
            text.clear();
            continue;
        };
        let words = words.trim();
        if words.starts_with("```") {
            code = !code;
        } else if !code && !words.contains("http") && !words.starts_with(['|', '[', '#']) {
            text.push_str(words);
            text.push(if words.is_empty() { '\n' } else { ' ' });
            if text.len() > DOCUMENT && text.is_ascii() {
                out.push(std::mem::take(&mut text).trim().to_owned());
            }
        }
    }
    out
}
