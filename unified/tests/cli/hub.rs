//! A stand-in for the hub on the loopback: models by their id, what is missing, what is busy, what is cut, and a cache that serves
//! when nobody answers.

use super::{fixture, nano, text};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// What the stand-in does with a file.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Gives it.
    Kind,
    /// 429 the first time, then gives it.
    Busy,
    /// The connection ends in the middle, every time.
    Cut,
    /// 401.
    Gated,
}

struct Hub {
    port: u16,
    moods: Arc<Mutex<HashMap<String, Mood>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serves owner/NAME from folders.
    fn start(folders: Vec<(&'static str, std::path::PathBuf)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let moods: Arc<Mutex<HashMap<String, Mood>>> = Arc::default();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (m, s) = (moods.clone(), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folders, m, s) = (folders.clone(), m.clone(), s.clone());
                std::thread::spawn(move || answer(stream, &folders, &m, &s));
            }
        });
        Self { port, moods, seen }
    }

    fn mood(&self, file: &str, mood: Mood) {
        self.moods.lock().unwrap().insert(file.to_owned(), mood);
    }

    fn unified(&self, home: &Path, args: &[&str]) -> Output {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        Command::new(env!("CARGO_BIN_EXE_unified"))
            .args(args)
            .current_dir(home)
            .env("HF_ENDPOINT", endpoint)
            .env("HF_HOME", home.join("hf"))
            .env_remove("HF_TOKEN")
            .output()
            .unwrap()
    }
}

const COMMIT: &str = "0123456789012345678901234567890123456789";

/// The files of a folder and of the folders in it.
fn tree(dir: &Path) -> serde_json::Value {
    let mut all = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let size = entry.metadata().unwrap().len();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            all.push(serde_json::json!({"type": "file", "oid": format!("{size:x}"), "size": size, "path": name}));
        }
    }
    all.into()
}

fn answer(
    mut stream: TcpStream,
    folders: &[(&'static str, std::path::PathBuf)],
    moods: &Mutex<HashMap<String, Mood>>,
    seen: &Mutex<Vec<String>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut line, mut head) = (String::new(), Vec::new());
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut h = String::new();
            if reader.read_line(&mut h).unwrap_or(0) == 0 || h.trim().is_empty() {
                break;
            }
            head.push(h.to_lowercase());
        }
        let mut parts = line.split(' ');
        let (method, path) = (parts.next().unwrap_or_default().to_owned(), parts.next().unwrap_or_default().to_owned());
        seen.lock().unwrap().push(format!("{method} {path}"));
        let reply = |stream: &mut TcpStream, status: &str, more: &str, body: &[u8]| {
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}\r\n", body.len());
            let _ = stream.write_all(text.as_bytes());
            if method != "HEAD" {
                let _ = stream.write_all(body);
            }
        };
        // what a data set's repository is, and its files
        let api = folders.iter().find_map(|(name, dir)| {
            let rest = path.strip_prefix(&format!("/api/datasets/owner/{name}"))?;
            Some(if rest.contains("/tree/") { tree(dir) } else { serde_json::json!({"sha": COMMIT}) })
        });
        if let Some(json) = api {
            reply(&mut stream, "200 OK", "content-type: application/json\r\n", json.to_string().as_bytes());
            continue;
        }
        let found = folders.iter().find_map(|(name, dir)| {
            let path = path.strip_prefix("/datasets").unwrap_or(&path);
            let rest = path.strip_prefix(&format!("/owner/{name}/resolve/"))?;
            let file = rest.split_once('/')?.1;
            Some((file.to_owned(), dir.join(file)))
        });
        let Some((file, place)) = found.filter(|f| f.1.is_file()) else {
            reply(&mut stream, "404 Not Found", "x-error-code: EntryNotFound\r\n", b"Entry not found");
            continue;
        };
        let mood = moods.lock().unwrap().get(&file).copied().unwrap_or(Mood::Kind);
        match mood {
            Mood::Busy => {
                moods.lock().unwrap().insert(file.clone(), Mood::Kind);
                reply(&mut stream, "429 Too Many Requests", "retry-after: 1\r\n", b"slow down");
                continue;
            }
            Mood::Gated => {
                reply(&mut stream, "401 Unauthorized", "x-error-code: GatedRepo\r\n", b"gated");
                continue;
            }
            Mood::Kind | Mood::Cut => {}
        }
        let mut bytes = Vec::new();
        std::fs::File::open(&place).unwrap().read_to_end(&mut bytes).unwrap();
        let tag = format!("{:x}", nn::rng::name_key(&format!("{file}{}", bytes.len())));
        let from = head.iter().find_map(|h| h.strip_prefix("range: bytes=")?.split('-').next()?.parse::<usize>().ok());
        let commit = format!("x-repo-commit: {COMMIT}\r\n");
        let range = from.map(|f| format!("content-range: bytes {f}-{}/{}\r\n", bytes.len() - 1, bytes.len()));
        let more = format!("etag: \"{tag}\"\r\n{commit}accept-ranges: bytes\r\n{}", range.unwrap_or_default());
        let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
        let body = &bytes[from.unwrap_or(0).min(bytes.len())..];
        if mood == Mood::Cut && method == "GET" {
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}\r\n", body.len());
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.write_all(&body[..body.len() / 2]);
            return;
        }
        reply(&mut stream, status, &more, body);
    }
}

fn one_line(out: &Output, words: &[&str]) {
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert_eq!(err.trim().lines().count(), 1, "{err}");
    for w in words {
        assert!(err.contains(w), "no `{w}` in {err}");
    }
}

#[test]
fn a_model_comes_by_its_id_and_stays() {
    let hub = Hub::start(vec![("nano", nano()), ("llama", fixture("gguf"))]);
    let dir = tempfile::tempdir().unwrap();
    hub.mood("tokenizer.json", Mood::Busy);
    let args = ["chat", "--prompt", "hello", "--model", "owner/nano"];
    let out = hub.unified(dir.path(), &args);
    assert!(out.status.success(), "{}\n{:?}", text(&out.stderr), hub.seen.lock().unwrap());
    assert!(text(&out.stdout).starts_with("hello"), "{}", text(&out.stdout));
    // the image tokenizer came with it
    assert!(hub.unified(dir.path(), &["generate", "a red circle", "--model", "owner/nano"]).status.success());
    // a single file of a repository
    let out = hub.unified(dir.path(), &["info", "owner/llama/tiny-q8_0.gguf"]);
    assert!(text(&out.stdout).contains("Llama decoder"), "{}", text(&out.stderr));
    // nobody answers: the cache does, asked for by name or not
    let dead = Hub { port: 1, moods: Arc::default(), seen: Arc::default() };
    let out = dead.unified(dir.path(), &args);
    assert!(text(&out.stdout).starts_with("hello"), "{}", text(&out.stderr));
    let offline = Command::new(env!("CARGO_BIN_EXE_unified"))
        .args(args)
        .env("HF_HUB_OFFLINE", "True")
        .env("HF_HOME", dir.path().join("hf"))
        .output()
        .unwrap();
    assert!(text(&offline.stdout).starts_with("hello"), "{}", text(&offline.stderr));
}

#[test]
fn what_the_hub_refuses_is_one_line() {
    let hub = Hub::start(vec![("nano", nano())]);
    let home = || tempfile::tempdir().unwrap();
    one_line(&hub.unified(home().path(), &["info", "owner/nothing"]), &["owner/nothing"]);
    one_line(&hub.unified(home().path(), &["info", "owner/nano/x.gguf"]), &["x.gguf"]);
    hub.mood("config.json", Mood::Gated);
    one_line(&hub.unified(home().path(), &["info", "owner/nano"]), &["HF_TOKEN"]);
    hub.mood("config.json", Mood::Kind);
    // a file that never comes whole is not used half
    hub.mood("model.safetensors", Mood::Cut);
    let dir = home();
    one_line(&hub.unified(dir.path(), &["chat", "--prompt", "hello", "--model", "owner/nano"]), &["model.safetensors"]);
    hub.mood("model.safetensors", Mood::Kind);
    let out = hub.unified(dir.path(), &["chat", "--prompt", "hello", "--model", "owner/nano"]);
    assert!(text(&out.stdout).starts_with("hello"), "{}", text(&out.stderr));
}

/// A data set by its id: reported, trained on, cached; a folder of it; what is not there.
#[test]
fn a_data_set_comes_by_its_id_and_stays() {
    let hub = Hub::start(vec![("photos", fixture("photos")), ("field", fixture("field"))]);
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let pictures = |out: &Output| {
        let json: serde_json::Value = serde_json::from_str(&text(&out.stdout)).unwrap_or_default();
        json["pictures"].as_u64()
    };
    let photos = ["data", "hf://datasets/owner/photos", "--json"];
    let out = hub.unified(d, &photos);
    assert_eq!(pictures(&out), Some(64), "{}\n{:?}", text(&out.stderr), hub.seen.lock().unwrap());
    let folder = ["data", "hf://datasets/owner/field@main/folders/metadata", "--json"];
    let out = hub.unified(d, &folder);
    assert_eq!(pictures(&out), Some(8), "{}", text(&out.stderr));
    assert!(
        !hub.seen.lock().unwrap().iter().any(|s| s.contains("shards/plain.tar")),
        "files beside the folder were fetched"
    );
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/llamagen/compare/classifier.toml");
    let mut args = vec!["train", config.to_str().unwrap(), "--out", "c"];
    let sets = [
        "data.pictures.path=hf://datasets/owner/photos",
        "run.steps=1",
        "run.batch_size=2",
        "image_size=16",
        "widths=[8,16]",
    ];
    sets.iter().for_each(|s| args.extend(["--set", s]));
    let out = hub.unified(d, &args);
    assert!(out.status.success(), "{}", text(&out.stderr));
    // nobody answers: the cache does
    let dead = Hub { port: 1, moods: Arc::default(), seen: Arc::default() };
    assert_eq!(pictures(&dead.unified(d, &photos)), Some(64));
    let empty = tempfile::tempdir().unwrap();
    one_line(&dead.unified(empty.path(), &photos), &["hf://datasets/owner/photos", "network"]);
    one_line(&hub.unified(d, &["data", "hf://datasets/owner/nothing"]), &["hf://datasets/owner/nothing"]);
    one_line(&hub.unified(d, &["data", "hf://owner/photos"]), &["hf://datasets/OWNER/NAME"]);
    // a file that never comes whole is not used half
    let fresh = tempfile::tempdir().unwrap();
    hub.mood("test-00000-of-00001.parquet", Mood::Cut);
    hub.mood("train-00000-of-00001.parquet", Mood::Cut);
    one_line(&hub.unified(fresh.path(), &photos), &["hf://datasets/owner/photos"]);
    hub.mood("test-00000-of-00001.parquet", Mood::Kind);
    hub.mood("train-00000-of-00001.parquet", Mood::Kind);
    assert_eq!(pictures(&hub.unified(fresh.path(), &photos)), Some(64));
}
