//! What all requests share: the models, the places in the batch, the queue before it, and what is counted.

use super::error::Failure;
use super::remote::Remote;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use unified::Model;
use unified::loaded::Loaded;

pub type Shared = Arc<Server>;

/// Limits of every request.
pub struct Limits {
    pub batch: usize,
    pub queue: usize,
    pub tokens: usize,
    pub time: Duration,
}

/// The server.
pub struct Server {
    pub models: Vec<(String, Model)>,
    pub key: Option<String>,
    pub limits: Limits,
    pub remote: Remote,
    /// Whether the embedded model alone is served.
    pub embedded: bool,
    pub metrics: Metrics,
    pub started: u64,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    closed: AtomicBool,
    ids: AtomicU64,
}

/// A place in the batch; given back when it is dropped.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    server: Shared,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.metrics.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    pub fn new(
        models: Vec<(String, Model)>,
        key: Option<String>,
        (remote, embedded): (Remote, bool),
        limits: Limits,
    ) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let places = Arc::new(Semaphore::new(limits.batch));
        let (waiting, closed, ids) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicU64::new(started << 20));
        Self {
            models,
            key,
            limits,
            remote,
            embedded,
            metrics: Metrics::default(),
            started,
            places,
            waiting,
            closed,
            ids,
        }
    }

    /// The name of the asked model for a recipe; the embedded one has none.
    pub fn named(&self, name: Option<&str>) -> Option<String> {
        let name = name.filter(|n| !n.is_empty()).unwrap_or(&self.models[0].0);
        (!self.embedded).then(|| name.to_owned())
    }

    /// The asked model; the first where none is named.
    pub fn model(&self, name: Option<&str>) -> Result<Model, Failure> {
        let Some(name) = name.filter(|n| !n.is_empty()) else { return Ok(self.models[0].1.clone()) };
        match self.models.iter().find(|m| m.0 == name) {
            Some((_, model)) => Ok(model.clone()),
            None => {
                let names: Vec<&str> = self.models.iter().map(|m| m.0.as_str()).collect();
                Err(Failure::not_found(format!("no model `{name}` here; there are: {}", names.join(", "))))
            }
        }
    }

    /// The seed that a request asks for, or any.
    pub fn seed(&self, asked: Option<i64>) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        let any = || std::collections::hash_map::RandomState::new().build_hasher().finish();
        asked.map_or_else(|| nn::rng::mix(self.started ^ nn::rng::mix(any())), |s| s as u64)
    }

    /// A model in memory; loading it does not keep others waiting.
    pub async fn loaded(&self, model: Model) -> Result<Arc<Loaded>, Failure> {
        let load = tokio::task::spawn_blocking(move || model.loaded());
        Ok(load.await.map_err(|_| Failure::internal("the model could not be loaded"))??)
    }

    /// Seconds since 1970.
    pub fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(self.started, |t| t.as_secs())
    }

    /// A name for an answer.
    pub fn id(&self, kind: &str) -> String {
        format!("{kind}-{:x}", nn::rng::mix(self.ids.fetch_add(1, Ordering::Relaxed)))
    }

    /// Waits for a place in the batch, if the queue has room.
    pub async fn place(self: &Arc<Self>) -> Result<Place, Failure> {
        if self.is_closed() {
            return Err(Failure::unavailable("the server is going down"));
        }
        let permit = match self.places.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                // counted back also when the client goes while it waits
                struct Waiting<'a>(&'a AtomicUsize);
                impl Drop for Waiting<'_> {
                    fn drop(&mut self) {
                        self.0.fetch_sub(1, Ordering::Relaxed);
                    }
                }
                let before = self.waiting.fetch_add(1, Ordering::Relaxed);
                let _waiting = Waiting(&self.waiting);
                if before >= self.limits.queue {
                    return Err(Failure::busy());
                }
                self.places.clone().acquire_owned().await.map_err(|_| Failure::unavailable("going down"))?
            }
        };
        self.metrics.active.fetch_add(1, Ordering::Relaxed);
        Ok(Place { _permit: permit, server: self.clone() })
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Prometheus's text.
    pub fn metrics_text(&self) -> String {
        let m = &self.metrics;
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: String| {
            let _ = writeln!(out, "# HELP unified_{name} {help}\n# TYPE unified_{name} {kind}\nunified_{name} {value}");
        };
        let n = |a: &AtomicU64| a.load(Ordering::Relaxed).to_string();
        one("requests_active", "gauge", "Requests in the batch.", n(&m.active));
        one("requests_waiting", "gauge", "Requests in the queue.", self.waiting.load(Ordering::Relaxed).to_string());
        one("tokens_total", "counter", "Text tokens that were answered.", n(&m.tokens));
        one("prompt_tokens_total", "counter", "Tokens of what was asked.", n(&m.prompt_tokens));
        one(
            "reused_tokens_total",
            "counter",
            "Of those, tokens that an earlier request had read.",
            n(&m.reused_tokens),
        );
        one("pictures_total", "counter", "Pictures that were drawn.", n(&m.pictures));
        let firsts = m.first.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cumulative = 0;
        let _ = writeln!(
            out,
            "# HELP unified_first_token_seconds Time to the first token or row.\n# TYPE unified_first_token_seconds histogram"
        );
        for (bound, count) in BOUNDS.iter().zip(&firsts.counts) {
            cumulative += count;
            let _ = writeln!(out, "unified_first_token_seconds_bucket{{le=\"{bound}\"}} {cumulative}");
        }
        let _ = writeln!(out, "unified_first_token_seconds_bucket{{le=\"+Inf\"}} {}", firsts.n);
        let _ = writeln!(
            out,
            "unified_first_token_seconds_sum {}\nunified_first_token_seconds_count {}",
            firsts.sum, firsts.n
        );
        drop(firsts);
        let _ = writeln!(
            out,
            "# HELP unified_http_requests_total Requests by path and status.\n# TYPE unified_http_requests_total counter"
        );
        for ((path, status), n) in m.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "unified_http_requests_total{{path=\"{path}\",status=\"{status}\"}} {n}");
        }
        let _ = writeln!(
            out,
            "# HELP unified_cache_bytes Bytes of key-value caches, in use and kept.\n# TYPE unified_cache_bytes gauge"
        );
        for (name, model) in &self.models {
            if let Some((_, active, kept)) = model.loaded().ok().and_then(|l| l.engine().map(lm::Shared::load)) {
                let _ = writeln!(out, "unified_cache_bytes{{model=\"{name}\",of=\"requests\"}} {active}");
                let _ = writeln!(out, "unified_cache_bytes{{model=\"{name}\",of=\"kept\"}} {kept}");
            }
        }
        out
    }
}

const BOUNDS: [f64; 8] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

#[derive(Default)]
struct Histogram {
    counts: [u64; BOUNDS.len()],
    n: u64,
    sum: f64,
}

/// What is counted.
#[derive(Default)]
pub struct Metrics {
    active: AtomicU64,
    tokens: AtomicU64,
    prompt_tokens: AtomicU64,
    reused_tokens: AtomicU64,
    pictures: AtomicU64,
    first: Mutex<Histogram>,
    requests: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Metrics {
    pub fn count(&self, path: &str, status: u16) {
        // paths that do not exist are one row, so that nobody can fill the table
        let known = [
            "/v1/models",
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/images/generations",
            "/v1/images/edits",
            "/v1/embeddings",
            "/health",
            "/metrics",
            "/",
        ];
        let path = if known.contains(&path) { path } else { "other" };
        let mut all = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry((path.to_owned(), status)).or_default() += 1;
    }
    pub fn first(&self, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        let mut h = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = BOUNDS.iter().position(|b| seconds <= *b) {
            h.counts[i] += 1;
        }
        h.n += 1;
        h.sum += seconds;
    }
    pub fn reply(&self, r: &unified::conversation::Reply) {
        self.tokens.fetch_add(r.text_tokens as u64, Ordering::Relaxed);
        self.prompt_tokens.fetch_add(r.prompt_tokens as u64, Ordering::Relaxed);
        self.reused_tokens.fetch_add(r.reused_tokens as u64, Ordering::Relaxed);
        self.drawn(r.images.len());
    }
    pub fn drawn(&self, pictures: usize) {
        self.pictures.fetch_add(pictures as u64, Ordering::Relaxed);
    }
}
