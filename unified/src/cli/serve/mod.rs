//! `unified serve`: an OpenAI-compatible server whose answers are words and pictures.

mod chat;
mod embeddings;
mod error;
mod images;
mod remote;
mod state;

use super::common::{OnDevice, Type};
use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use clap::Args;
use error::Failure;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use state::{Server, Shared};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use unified::Model;
use unified::artifact::Placement;

/// Serve models over HTTP as OpenAI's API does: chat with words and pictures, completions, images, embeddings.
#[derive(Args)]
pub struct Serve {
    /// Model folder, file or hub id; may be given several times; the embedded nano model if absent. NAME=MODEL gives it a name.
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
    /// Address to listen on. The default is this machine alone.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// File that holds the key that clients must send (Authorization: Bearer KEY).
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Requests that are answered at once; each step of the model goes through all of them together.
    #[arg(long, default_value_t = 32)]
    max_batch: usize,
    /// Requests that may wait besides; one more is answered 429.
    #[arg(long, default_value_t = 128)]
    max_queue: usize,
    /// Most tokens of an answer, whatever is asked.
    #[arg(long, default_value_t = 2048)]
    max_tokens: usize,
    /// Most megabytes of a request.
    #[arg(long, default_value_t = 32)]
    max_body: usize,
    /// Most seconds of an answer.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Host that pictures may be fetched from, where a request names them by a web address; may be given several times. None by default.
    #[arg(long, value_name = "HOST")]
    allow_remote_images: Vec<String>,
    /// Serve a page to talk with the model at /.
    #[arg(long)]
    ui: bool,
    /// How weights are kept.
    #[arg(long, value_enum, default_value_t = Type::Auto)]
    dtype: Type,
    #[command(flatten)]
    on: OnDevice,
}

impl Serve {
    pub fn run(&self) -> Result<()> {
        if self.max_batch == 0 {
            bail!("--max-batch 0: use 1 or more");
        }
        let key = match &self.api_key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                let key = text.trim().to_owned();
                if key.is_empty() {
                    bail!("{}: the key is empty", path.display());
                }
                Some(key)
            }
            None if !self.host.is_loopback() => {
                bail!("--host {}: others can reach it; give --api-key-file", self.host)
            }
            None => None,
        };
        let at = Placement { weights: self.dtype.weights(), ..Placement::cpu() };
        let at = Placement { device: self.on.device()?, ..at };
        let mut models: Vec<(String, Model)> = Vec::new();
        for spec in &self.model {
            let (name, spec) = match spec.split_once('=') {
                Some((name, spec)) => (name.to_owned(), spec),
                None => (spec.trim_end_matches('/').rsplit('/').next().unwrap_or(spec).to_owned(), spec.as_str()),
            };
            if models.iter().any(|m| m.0 == name) {
                bail!("--model {spec}: a second model of the name {name}; write OTHER=MODEL");
            }
            models.push((name, Model::open(spec)?.placed(at.clone())));
        }
        if models.is_empty() {
            models.push(("nano".into(), Model::nano()?.placed(at)));
        }
        // what cannot be loaded is said before anybody connects
        models[0].1.loaded()?;
        // a client that has gone must not end the server
        ignore_closed_pipes();
        let remote = remote::Remote::new(&self.allow_remote_images, self.max_body << 20)?;
        let server = Arc::new(Server::new(
            models,
            key,
            (remote, self.model.is_empty()),
            state::Limits {
                batch: self.max_batch,
                queue: self.max_queue,
                tokens: self.max_tokens,
                time: Duration::from_secs(self.timeout),
            },
        ));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(self.max_batch + 4)
            .thread_stack_size(16 << 20)
            .enable_all()
            .build()
            .context("no threads for the server")?;
        runtime.block_on(self.listen(server))
    }

    fn router(&self, server: Shared) -> Router {
        let page = include_str!("page.html");
        let mut routes = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(chat::chat))
            .route("/v1/completions", post(chat::complete))
            .route("/v1/images/generations", post(images::generations))
            .route("/v1/images/edits", post(images::edits))
            .route("/v1/embeddings", post(embeddings::embeddings))
            .route_layer(middleware::from_fn_with_state(server.clone(), guarded))
            .route("/health", get(health))
            .route("/metrics", get(metrics))
            .fallback(|| async { Failure::not_found("no such path; /v1/models lists the models") });
        if self.ui {
            routes = routes.route("/", get(move || async move { Html(page) }));
        }
        routes
            .layer(DefaultBodyLimit::max(self.max_body << 20))
            .layer(middleware::from_fn_with_state(server.clone(), logged))
            .with_state(server)
    }

    async fn listen(&self, server: Shared) -> Result<()> {
        let at = SocketAddr::new(self.host, self.port);
        let listener = tokio::net::TcpListener::bind(at).await.with_context(|| format!("{at}: cannot listen"))?;
        let at = listener.local_addr()?;
        eprintln!("listening on http://{at}{}", if self.ui { " (a page to talk with the model is there)" } else { "" });
        let service = TowerToHyperService::new(self.router(server.clone()));
        let graceful = GracefulShutdown::new();
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // a connection that says nothing does not stay for ever, nor a gigantic header
        let mut http = builder.http1();
        http.timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(10))
            .max_buf_size(64 << 10)
            .max_headers(100);
        let mut stop = std::pin::pin!(stopped());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                // no file handles left, or a client that went at once
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let connection = builder.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
            let connection = graceful.watch(connection);
            // a client's fault ends its connection and nothing else
            tokio::spawn(async move { drop(connection.await) });
        }
        server.close();
        eprintln!("finishing what is being answered; again to leave at once");
        tokio::select! {
            () = graceful.shutdown() => {}
            () = stopped() => {}
            () = tokio::time::sleep(server.limits.time) => {}
        }
        Ok(())
    }
}

/// Ctrl-C or SIGTERM.
async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut term) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

#[allow(unsafe_code, reason = "a signal's setting")]
fn ignore_closed_pipes() {
    #[cfg(unix)]
    // SAFETY: no handler of ours is replaced; writes to closed sockets become errors.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// The key, where one is wanted.
async fn guarded(State(server): State<Shared>, request: Request, next: Next) -> Response {
    if let Some(key) = &server.key {
        let given = request.headers().get("authorization").and_then(|h| h.to_str().ok());
        let given = given.and_then(|h| h.strip_prefix("Bearer ")).unwrap_or_default();
        if !bool::from(given.as_bytes().ct_eq(key.as_bytes())) {
            return Failure::unauthorized().into_response();
        }
    }
    next.run(request).await
}

/// A line a request, without what was said in it.
async fn logged(State(server): State<Shared>, request: Request, next: Next) -> Response {
    let (method, path, clock) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    server.metrics.count(&path, status);
    tracing::info!(%method, path, status, seconds = clock.elapsed().as_secs_f64(), "request");
    response
}

async fn models(State(server): State<Shared>) -> Json<serde_json::Value> {
    let one = |(id, model): &(String, Model)| {
        let can = model.artifact().architecture.can();
        serde_json::json!({
            "id": id, "object": "model", "created": server.started, "owned_by": "local",
            "architecture": model.artifact().architecture.name(),
            "can": {"talk": can.talk, "see": can.see, "draw": can.draw, "embed": can.classify || can.talk && can.draw},
        })
    };
    Json(serde_json::json!({"object": "list", "data": server.models.iter().map(one).collect::<Vec<_>>()}))
}

async fn health(State(server): State<Shared>) -> Response {
    if server.is_closed() {
        return Failure::unavailable("the server is going down").into_response();
    }
    Json(serde_json::json!({"status": "ok"})).into_response()
}

async fn metrics(State(server): State<Shared>) -> Response {
    ([("content-type", "text/plain; version=0.0.4")], server.metrics_text()).into_response()
}
