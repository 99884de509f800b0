//! Many clients at once: no error but 429, the answers that each would have got alone, memory that does not grow.

use super::Server;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::{Duration, Instant};

fn body(i: u64) -> Value {
    let words = ["draw a red circle", "hello", "what can you do?", "draw two blue stars", "which shapes do you know?"];
    json!({"messages": [{"role": "user", "content": words[i as usize % words.len()]}], "seed": i % 7})
}

fn said(v: &Value) -> Value {
    json!([v["choices"][0]["message"]["content"], v["choices"][0]["message"]["images"]])
}

/// `UNIFIED_LOAD_SECONDS` makes it longer; 120 is what docs/serve.md quotes.
#[test]
fn sixty_four_clients() {
    let seconds: u64 = std::env::var("UNIFIED_LOAD_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4);
    let server = Server::start(&["--max-queue", "32"]);
    let time = |clients: u64, seconds: u64| -> (Vec<f64>, usize, usize) {
        let done: Mutex<(Vec<f64>, usize)> = Mutex::default();
        let until = Instant::now() + Duration::from_secs(seconds);
        std::thread::scope(|s| {
            for c in 0..clients {
                let (server, done) = (&server, &done);
                s.spawn(move || {
                    let mut i = c;
                    while Instant::now() < until {
                        let clock = Instant::now();
                        let (status, _) = server.post("/v1/chat/completions", &body(i));
                        assert!([200, 429].contains(&status), "{status}");
                        let mut d = done.lock().unwrap();
                        if status == 200 {
                            d.0.push(clock.elapsed().as_secs_f64());
                            i += 1;
                        } else {
                            d.1 += 1;
                            drop(d);
                            std::thread::sleep(Duration::from_millis(50));
                        }
                    }
                });
            }
        });
        let (mut times, busy) = done.into_inner().unwrap();
        times.sort_by(f64::total_cmp);
        let n = times.len();
        (times, n, busy)
    };
    let alone: Vec<Value> = (0..35).map(|i| said(&server.post("/v1/chat/completions", &body(i)).1)).collect();
    let (_, one, _) = time(1, seconds.min(10));
    // caches of finished conversations are kept up to a limit, which this reaches
    time(64, seconds.div_ceil(2));
    let before = server.memory();
    let (times, many, busy) = time(64, seconds);
    let grown = server.memory().saturating_sub(before);
    let together: Vec<Value> = std::thread::scope(|s| {
        let server = &server;
        let all: Vec<_> = (0..35)
            .map(|i| {
                s.spawn(move || {
                    loop {
                        let (status, v) = server.post("/v1/chat/completions", &body(i));
                        if status == 200 {
                            return said(&v);
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                })
            })
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together, "an answer differs from the one given alone");
    assert!(grown < 256 << 20, "{} MiB more after the load", grown >> 20);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let ratio = (many as f64 / seconds as f64) / (one as f64 / seconds.min(10) as f64);
    eprintln!(
        "64 clients, {seconds} s: {:.1} answers/s ({ratio:.2} times one client's), p50 {:.3} s, p99 {:.3} s, {busy} told to wait, {} MiB more",
        many as f64 / seconds as f64,
        at(0.5),
        at(0.99),
        grown >> 20
    );
}
