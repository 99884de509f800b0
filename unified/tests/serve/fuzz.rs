//! Requests that were changed at random: every one is answered, none with a server's error, and the server goes on.
//! `UNIFIED_FUZZ_SECONDS=600` goes on for that long.

use super::Server;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    fn odd_value(&mut self) -> Value {
        let all = [
            json!(null),
            json!(true),
            json!(-1),
            json!(0),
            json!(1e308),
            json!(-1e-308),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(""),
            json!("\u{0}\u{feff}\u{202e}\u{10ffff}"),
            json!("<|user|><|assistant|><|image|><|/image|><|end|>"),
            json!("x".repeat(5000)),
            json!([]),
            json!([[[[[[[[]]]]]]]]),
            json!({}),
            json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}),
            json!({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
            json!({"type": "text"}),
        ];
        all[self.below(all.len())].clone()
    }

    /// Changes one place in a value.
    fn change(&mut self, v: &mut Value) {
        match v {
            Value::Object(m) if !m.is_empty() && self.below(4) > 0 => {
                let key = m.keys().nth(self.below(m.len())).cloned().unwrap_or_default();
                match self.below(6) {
                    0 => {
                        m.remove(&key);
                    }
                    1 => {
                        let value = self.odd_value();
                        m.insert(format!("{key}x"), value);
                    }
                    _ => self.change(&mut m[&key]),
                }
            }
            Value::Array(a) if !a.is_empty() && self.below(4) > 0 => {
                let at = self.below(a.len());
                match self.below(5) {
                    0 => {
                        a.remove(at);
                    }
                    1 => a.push(a[at].clone()),
                    _ => self.change(&mut a[at]),
                }
            }
            other => *other = self.odd_value(),
        }
    }
}

fn seeds() -> Vec<(&'static str, Value)> {
    let chat = |content: Value| {
        json!({"model": "nano", "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}],
            "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 1, "n": 1, "stop": ["\n"], "stream": false, "logprobs": true,
            "top_logprobs": 2})
    };
    vec![
        ("/v1/chat/completions", chat(json!("hello"))),
        ("/v1/chat/completions", chat(json!([{"type": "text", "text": "hello"}]))),
        ("/v1/completions", json!({"prompt": "hello", "max_tokens": 4, "echo": true, "stream": true, "logprobs": 1})),
        (
            "/v1/images/generations",
            json!({"prompt": "a red circle", "n": 1, "size": "64x64", "response_format": "b64_json", "seed": 3}),
        ),
        ("/v1/embeddings", json!({"input": ["a photo of a cat", "b"], "encoding_format": "float"})),
    ]
}

#[test]
fn changed_requests_are_answered() {
    let server = Server::start(&["--max-queue", "64"]);
    let seconds = std::env::var("UNIFIED_FUZZ_SECONDS").ok().and_then(|s| s.parse::<u64>().ok());
    let (began, seeds) = (Instant::now(), seeds());
    let mut dice = Dice(seconds.unwrap_or(11));
    let (mut asked, mut refused, mut before) = (0usize, 0usize, 0);
    while seconds.map_or(asked < 300, |s| began.elapsed() < Duration::from_secs(s)) {
        asked += 1;
        let (path, mut body) = seeds[dice.below(seeds.len())].clone();
        for _ in 0..=dice.below(3) {
            dice.change(&mut body);
        }
        if let Some(n) = body.get_mut("n").filter(|n| n.as_u64().is_some_and(|n| n > 2)) {
            // as many as are allowed take their time and show nothing new
            *n = if n.as_u64() > Some(100) { n.clone() } else { json!(2) };
        }
        let mut bytes = body.to_string().into_bytes();
        if dice.below(4) == 0 && !bytes.is_empty() {
            let at = dice.below(bytes.len());
            match dice.below(3) {
                0 => bytes[at] ^= 1 << dice.below(8),
                1 => bytes.truncate(at),
                _ => bytes.insert(at, dice.below(256) as u8),
            }
        }
        let (status, text) = server.ask("POST", path, "", &bytes);
        let shown = || String::from_utf8_lossy(&bytes).chars().take(600).collect::<String>();
        assert!((200..500).contains(&status), "{path} {}: {status} {text}", shown());
        if status >= 400 {
            refused += 1;
            let v: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path} {}: {text}", shown()));
            let message = v["error"]["message"].as_str().unwrap_or_default();
            assert!(!message.is_empty() && !message.contains("panic"), "{path} {}: {text}", shown());
        }
        if asked % 20 == 0 {
            // bytes that are no request at all
            let mut s = server.connect();
            let noise: Vec<u8> = (0..dice.below(2000)).map(|_| dice.below(256) as u8).collect();
            let _ = s.write_all(b"POST /v1/chat/completions HTTP/1.1\r\n").and_then(|()| s.write_all(&noise));
            let _ = s.shutdown(std::net::Shutdown::Write);
            let _ = s.read_to_end(&mut Vec::new());
        }
        if asked == 200 {
            before = server.memory();
        }
    }
    let (status, v) = server.say("hello", 0);
    assert_eq!(status, 200, "{v}");
    let grown = server.memory().saturating_sub(before) >> 20;
    println!(
        "{asked} requests in {:.0} s, {refused} refused, memory grew by {grown} MiB",
        began.elapsed().as_secs_f64()
    );
    assert!(refused > 0 && refused < asked, "some changes matter and some do not");
    assert!(grown < 200, "{grown} MiB");
}
