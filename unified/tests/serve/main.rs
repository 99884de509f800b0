//! The server as people meet it: the official clients, load, faults, a page in a real browser. What is not installed is said:
//! "skipped: why".

mod faults;
mod fuzz;
mod load;
mod page;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running server; it ends with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    pub(crate) dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_unified"))
            .args(["serve", "--port", "0"])
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let port = line.split("127.0.0.1:").nth(1).and_then(|p| p.split([' ', '\n']).next()?.parse().ok());
        let port = port.unwrap_or_else(|| panic!("no address: {line}"));
        // what it says later must not fill the pipe
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, port, dir }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn base(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// A request on a connection of its own: status and body.
    pub(crate) fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let mut s = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        s.write_all(head.as_bytes()).unwrap();
        let _ = s.write_all(body);
        let mut all = Vec::new();
        let _ = s.read_to_end(&mut all);
        let all = String::from_utf8_lossy(&all).into_owned();
        let status = all.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, all.split_once("\r\n\r\n").map_or(String::new(), |p| p.1.to_owned()))
    }

    pub(crate) fn post(&self, path: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let (status, body) = self.ask("POST", path, "", body.to_string().as_bytes());
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    pub(crate) fn say(&self, words: &str, seed: u64) -> (u16, serde_json::Value) {
        let message = serde_json::json!({"role": "user", "content": words});
        self.post("/v1/chat/completions", &serde_json::json!({"messages": [message], "seed": seed}))
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
}

/// A drawing to show.
pub(crate) fn red_circle(dir: &Path) -> PathBuf {
    let path = dir.join("unified-0001.png");
    let made = Command::new(env!("CARGO_BIN_EXE_unified")).args(["generate", "a red circle"]).current_dir(dir).output();
    assert!(made.unwrap().status.success());
    path
}

fn runs(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
}

/// `UNIFIED_TEST_PYTHON` names a Python that has the client.
#[test]
fn the_official_python_client() {
    let python = std::env::var("UNIFIED_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    if !runs(&python, &["-c", "import openai"]) {
        eprintln!("skipped: {python} has no package openai (pip install openai)");
        return;
    }
    let server = Server::start(&[]);
    let picture = red_circle(server.dir.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/client.py");
    let out = Command::new(python).arg(script).arg(server.base()).arg(picture).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}

/// The folder whose node_modules the scripts use.
pub(crate) fn node_modules(package: &str) -> Option<String> {
    let folder = std::env::var("UNIFIED_TEST_NODE").unwrap_or_default();
    let there = !folder.is_empty() && Path::new(&folder).join("node_modules").join(package).is_dir();
    there.then_some(folder)
}

#[test]
fn the_official_javascript_client() {
    let Some(folder) = node_modules("openai") else {
        eprintln!("skipped: no package openai (npm install openai in a folder, and UNIFIED_TEST_NODE=FOLDER)");
        return;
    };
    let server = Server::start(&[]);
    let picture = red_circle(server.dir.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/client.mjs");
    let out = Command::new("node").arg(script).arg(server.base()).arg(picture).arg(folder).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}
