//! Clients that go, lie, dawdle or fill the line: the others are answered.

use super::Server;
use serde_json::json;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// PNG's checksum.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut c, b| {
        c ^= u32::from(*b);
        for _ in 0..8 {
            c = c >> 1 ^ if c & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
        c
    })
}

fn still_answers(server: &Server) {
    let (status, v) = server.say("hello", 0);
    assert_eq!(status, 200, "{v}");
}

#[test]
fn bad_requests_get_one_clear_line() {
    let server = Server::start(&[]);
    let big = json!({"messages": [{"role": "user", "content": "x".repeat(40 << 20)}]}).to_string();
    let bomb = {
        // a PNG whose head promises 60,000 x 60,000 pixels
        let mut b = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        b.extend([60_000u32.to_be_bytes(), 60_000u32.to_be_bytes()].concat());
        b.extend([8, 2, 0, 0, 0]);
        let sum = crc(&b[12..]);
        b.extend(sum.to_be_bytes());
        b.extend(b"\0\0\0\0IDAT");
        b.extend(crc(b"IDAT").to_be_bytes());
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(b)
    };
    let shown = |url: String| json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]});
    for (path, body, status, words) in [
        ("/v1/chat/completions", "{".to_owned(), 400, "EOF"),
        ("/v1/chat/completions", json!({"messages": []}).to_string(), 400, "empty"),
        ("/v1/chat/completions", json!({"messages": [{"role": "cat", "content": "x"}]}).to_string(), 400, "cat"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}], "n": 99}).to_string(),
            400,
            "n 99",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}], "temperature": 1e39}).to_string(),
            400,
            "",
        ),
        ("/v1/chat/completions", shown(format!("data:image/png;base64,{bomb}")).to_string(), 400, "60000"),
        ("/v1/chat/completions", shown("data:image/png;base64,!!".into()).to_string(), 400, "base64"),
        ("/v1/images/generations", json!({"prompt": "x", "size": "1024x1024"}).to_string(), 400, "64x64"),
        ("/v1/images/generations", json!({"prompt": " "}).to_string(), 400, "empty"),
        ("/v1/images/edits", json!({"prompt": "x"}).to_string(), 400, "image"),
        ("/v1/embeddings", json!({"input": []}).to_string(), 400, "input"),
        ("/v1/nothing", "{}".into(), 404, "no such path"),
        ("/v1/chat/completions", big, 413, ""),
    ] {
        let (got, text) = server.ask("POST", path, "", body.as_bytes());
        // a body that is refused half way may end the connection before its answer is read
        if status == 413 && got == 0 {
            continue;
        }
        assert_eq!(got, status, "{path}: {text}");
        if status != 413 {
            let v: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"));
            let message = v["error"]["message"].as_str().unwrap();
            assert!(message.contains(words) && !message.contains('\n'), "{path}: {message}");
        }
    }
    still_answers(&server);
}

#[test]
fn clients_that_go_in_the_middle_free_their_place() {
    let server = Server::start(&["--max-batch", "1", "--max-queue", "1"]);
    let body =
        json!({"messages": [{"role": "user", "content": "draw a red circle"}], "stream": true, "n": 8}).to_string();
    for _ in 0..10 {
        let mut s = server.connect();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        s.write_all(head.as_bytes()).unwrap();
        s.write_all(body.as_bytes()).unwrap();
        let mut first = [0u8; 64];
        let _ = s.read(&mut first);
        drop(s);
        let begun = Instant::now();
        while server.say("hello", 0).0 != 200 {
            assert!(begun.elapsed() < Duration::from_secs(20), "its place was not given back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let server = Server::start(&["--max-batch", "1", "--max-queue", "1"]);
    let results: Vec<u16> = std::thread::scope(|s| {
        let all: Vec<_> = (0..8)
            .map(|i| {
                s.spawn({
                    let server = &server;
                    move || server.say("draw a red circle", i).0
                })
            })
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(results.contains(&429) && results.contains(&200), "{results:?}");
    assert!(results.iter().all(|r| [200, 429].contains(r)), "{results:?}");
}

#[test]
fn slow_and_gigantic_heads_do_not_keep_others_out() {
    let server = Server::start(&[]);
    let before = server.memory();
    let mut slow = Vec::new();
    for _ in 0..1000 {
        let mut s = server.connect();
        s.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: ").unwrap();
        slow.push(s);
    }
    still_answers(&server);
    let mut s = server.connect();
    let _ = s.write_all(format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).as_bytes());
    let mut answer = Vec::new();
    let _ = s.read_to_end(&mut answer);
    let mut half = server.connect();
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"mess").unwrap();
    drop(half);
    still_answers(&server);
    drop(slow);
    std::thread::sleep(Duration::from_millis(300));
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 128 << 20, "{} MiB more than before", grown >> 20);
}

#[test]
fn the_key_is_wanted_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "secret\n").unwrap();
    let server = Server::start(&["--api-key-file", &dir.path().join("key").display().to_string()]);
    assert_eq!(server.ask("GET", "/v1/models", "", b"").0, 401);
    assert_eq!(server.ask("GET", "/v1/models", "authorization: Bearer wrong\r\n", b"").0, 401);
    assert_eq!(server.ask("GET", "/v1/models", "authorization: Bearer secret\r\n", b"").0, 200);
    assert_eq!(server.ask("GET", "/health", "", b"").0, 200);
}

#[test]
fn a_stop_waits_for_what_is_being_answered() {
    let mut server = Server::start(&[]);
    let port = server.port;
    let asked = std::thread::spawn(move || {
        let body = json!({"messages": [{"role": "user", "content": "draw a red circle"}], "n": 8}).to_string();
        let mut s = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        s.write_all(head.as_bytes()).unwrap();
        s.write_all(body.as_bytes()).unwrap();
        let mut all = String::new();
        s.read_to_string(&mut all).unwrap();
        all
    });
    std::thread::sleep(Duration::from_millis(60));
    assert!(std::process::Command::new("kill").args(["-TERM", &server.pid().to_string()]).status().unwrap().success());
    let answer = asked.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.matches("finish_reason").count() == 8, "{answer:.200}");
    assert!(server.child.wait().unwrap().success());
}

/// Random and changed bytes at the parser of requests.
#[test]
fn changed_requests_do_not_stop_it() {
    let server = Server::start(&[]);
    let body = json!({"model": "nano", "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "temperature": 0.5, "stop": ["x"], "max_tokens": 4, "stream": false})
    .to_string();
    let whole = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let seconds: u64 = std::env::var("UNIFIED_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3);
    let begun = Instant::now();
    let mut i = 0u64;
    while begun.elapsed() < Duration::from_secs(seconds) {
        i += 1;
        let mut bytes = whole.clone().into_bytes();
        for j in 0..1 + i % 4 {
            let r = nn::rng::mix(i << 8 | j);
            let at = (r % bytes.len() as u64) as usize;
            match r >> 60 {
                0..6 => bytes[at] = (r >> 16) as u8,
                6..10 => {
                    bytes.truncate(at);
                    bytes.push(b'}');
                }
                _ => bytes.insert(at, (r >> 24) as u8),
            }
        }
        let mut s = server.connect();
        s.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
        let _ = s.write_all(&bytes);
        let _ = s.read(&mut [0u8; 256]);
    }
    still_answers(&server);
    eprintln!("{i} changed requests");
}

#[test]
fn a_broken_model_harms_no_other_and_a_kill_harms_nothing() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/field/checkpoints/llava-nan");
    let broken = format!("broken={}", folder.display());
    let nano = format!("nano={}", std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/nano").display());
    for _ in 0..2 {
        let server = Server::start(&["--model", &nano, "--model", &broken]);
        let body = |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "seed": 0});
        let (status, v) = server.post("/v1/chat/completions", &body("broken"));
        let message = v["error"]["message"].as_str().unwrap_or_default();
        assert!(status >= 400 && message.contains("NaN"), "{status} {v}");
        let (status, v) = server.post("/v1/chat/completions", &body("nano"));
        assert_eq!(status, 200, "{v}");
        // dropped: kill -9, and the next one starts from nothing
    }
}

/// A host with a picture, a redirect to another, and nothing else.
fn host(picture: Vec<u8>) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut s in listener.incoming().flatten() {
            let mut head = [0u8; 2048];
            let n = s.read(&mut head).unwrap_or(0);
            let asked = String::from_utf8_lossy(&head[..n]).into_owned();
            let (status, more, body): (_, _, &[u8]) = match asked.split(' ').nth(1) {
                Some("/circle.png") => ("200 OK", "", &picture),
                Some("/elsewhere.png") => ("302 Found", "location: http://127.0.0.1:1/x.png\r\n", b""),
                _ => ("404 Not Found", "", b""),
            };
            let head =
                format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = s.write_all(head.as_bytes()).and_then(|()| s.write_all(body));
        }
    });
    port
}

#[test]
fn pictures_come_from_allowed_hosts_alone() {
    let dir = tempfile::tempdir().unwrap();
    let port = host(std::fs::read(super::red_circle(dir.path())).unwrap());
    let ask = |server: &Server, host: &str, path: &str| {
        let url = format!("http://{host}:{port}{path}");
        let content = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what colour is the circle?"}]);
        server.post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": content}]}))
    };
    let server = Server::start(&["--allow-remote-images", &format!("127.0.0.1:{port}")]);
    let (status, v) = ask(&server, "127.0.0.1", "/circle.png");
    assert_eq!((status, v["choices"][0]["message"]["content"].as_str()), (200, Some("red")), "{v}");
    let said = |v: serde_json::Value| v["error"]["message"].as_str().unwrap_or_default().to_owned();
    for (host, path, words) in [
        ("localhost", "/circle.png", "--allow-remote-images localhost"),
        ("127.0.0.1", "/nothing.png", "404"),
        ("127.0.0.1", "/elsewhere.png", "302"),
    ] {
        let (status, v) = ask(&server, host, path);
        assert!(status == 400 && said(v.clone()).contains(words), "{host}{path}: {status} {v}");
    }
    still_answers(&server);
    let closed = Server::start(&[]);
    let (status, v) = ask(&closed, "127.0.0.1", "/circle.png");
    assert!(status == 400 && said(v.clone()).contains("data: URLs"), "{status} {v}");
}

/// A served drawing carries what draws it again.
#[test]
fn a_served_drawing_can_be_drawn_again() {
    let server = Server::start(&[]);
    let (status, v) = server.post("/v1/images/generations", &json!({"prompt": "a red circle", "n": 2, "seed": 7}));
    assert_eq!(status, 200, "{v}");
    use base64::Engine;
    let png = v["data"][1]["b64_json"].as_str().unwrap();
    let png = base64::engine::general_purpose::STANDARD.decode(png).unwrap();
    let dir = server.dir.path();
    std::fs::write(dir.join("served.png"), png).unwrap();
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_unified"))
        .args(["generate", "--from-png", "served.png", "-o", "again"])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let again = std::fs::read_dir(dir.join("again")).unwrap().flatten().next().unwrap().path();
    let open = |p: &std::path::Path| qlip::Image::open(p).unwrap();
    assert_eq!(open(&dir.join("served.png")), open(&again));
}
