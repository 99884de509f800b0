//! `/v1/chat/completions` and `/v1/completions`: whole, or as server-sent events while the answer comes into being.

use super::error::Failure;
use super::state::{Place, Shared};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::sse::{Event as Sse, KeepAlive, Sse as Stream};
use axum::response::{IntoResponse, Json, Response};
use base64::Engine;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use unified::conversation::{Content, Event, Finish, Message, Reply, Request, Role, TokenLogProb, Window};
use unified::loaded::Loaded;
use unified::{Image, Model};

/// Most answers to one question.
const MOST: usize = 16;

#[derive(Deserialize)]
pub struct ChatBody {
    model: Option<String>,
    messages: Vec<MessageBody>,
    #[serde(flatten)]
    how: How,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
}

/// What chat and completions share.
#[derive(Deserialize)]
struct How {
    #[serde(default)]
    stream: bool,
    stream_options: Option<Value>,
    stop: Option<OneOrMany>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    n: Option<usize>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    /// Scale of guidance of drawn pictures; not OpenAI's.
    guidance_scale: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct MessageBody {
    role: String,
    content: Option<ContentBody>,
    /// Pictures of an earlier answer, as this server gives them.
    #[serde(default)]
    images: Vec<PartBody>,
}

impl MessageBody {
    /// Where its pictures are.
    fn urls(&mut self) -> impl Iterator<Item = &mut String> {
        let parts = match &mut self.content {
            Some(ContentBody::Parts(parts)) => parts.as_mut_slice(),
            Some(ContentBody::Text(_)) | None => &mut [],
        };
        parts.iter_mut().chain(&mut self.images).filter_map(|p| match &mut p.image_url {
            Some(Url::Bare(url) | Url::Object { url }) => Some(url),
            None => None,
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ContentBody {
    Text(String),
    Parts(Vec<PartBody>),
}

#[derive(Deserialize)]
struct PartBody {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    image_url: Option<Url>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Url {
    Bare(String),
    Object { url: String },
}

/// A picture of a data: URL.
pub fn picture(url: &str) -> Result<Image, Failure> {
    let Some((head, data)) = url.strip_prefix("data:").and_then(|u| u.split_once(',')) else {
        return Err(Failure::bad("image_url: only data: URLs are read here (data:image/png;base64,...)"));
    };
    if !head.ends_with(";base64") {
        return Err(Failure::bad("image_url: a data: URL of base64 is wanted"));
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(data.trim())
        .map_err(|e| Failure::bad(format!("image_url: not base64 ({e})")))?;
    Ok(Image::from_bytes(Path::new("image_url"), &bytes)?)
}

/// A picture as a data: URL.
pub fn url_of(image: &Image) -> Result<String, Failure> {
    Ok(format!("data:image/png;base64,{}", base64_of(image)?))
}

/// A picture as PNG in base64.
pub fn base64_of(image: &Image) -> Result<String, Failure> {
    Ok(base64::engine::general_purpose::STANDARD.encode(image.to_png_with(&[])?))
}

fn message(body: &MessageBody) -> Result<Message, Failure> {
    let role = match body.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => return Err(Failure::bad(format!("role `{other}`: use system, user or assistant"))),
    };
    let mut content = Vec::new();
    let part = |p: &PartBody| -> Result<Content, Failure> {
        match (p.kind.as_str(), &p.text, &p.image_url) {
            ("text", Some(text), _) => Ok(Content::Text(text.clone())),
            ("image_url", _, Some(Url::Bare(url) | Url::Object { url })) => Ok(Content::Image(picture(url)?)),
            (kind, ..) => {
                Err(Failure::bad(format!("a content part of type `{kind}`: use text or image_url, with its field")))
            }
        }
    };
    for p in &body.images {
        content.push(part(p)?);
    }
    match &body.content {
        Some(ContentBody::Text(text)) => content.push(Content::Text(text.clone())),
        Some(ContentBody::Parts(parts)) => {
            for p in parts {
                content.push(part(p)?);
            }
        }
        None => {}
    }
    if content.is_empty() {
        return Err(Failure::bad("a message without content"));
    }
    Ok(Message { role, content })
}

impl How {
    fn request(&self, loaded: &Loaded, server: &Shared) -> Result<Request, Failure> {
        let mut r = loaded.request(server.seed(self.seed));
        let wanted = self.max_completion_tokens.or(self.max_tokens).unwrap_or(server.limits.tokens);
        if wanted == 0 {
            return Err(Failure::bad("max_tokens 0: use 1 or more"));
        }
        r.max_tokens = wanted.min(server.limits.tokens);
        r.window = Window::Refuse;
        r.stop = match &self.stop {
            Some(OneOrMany::One(s)) => vec![s.clone()],
            Some(OneOrMany::Many(all)) => all.clone(),
            None => Vec::new(),
        };
        let text = &mut r.generation.text;
        text.temperature = self.temperature.unwrap_or(text.temperature);
        text.top_p = self.top_p.unwrap_or(text.top_p);
        if text.temperature == 0.0 {
            text.top_p = 1.0;
        }
        text.check()?;
        let g = r.generation;
        r.generation = g.drawn(&g.drawing().guided(self.guidance_scale));
        if !r.generation.guidance_scale.is_finite() {
            return Err(Failure::bad("guidance_scale: use a finite number"));
        }
        Ok(r)
    }

    fn count(&self) -> Result<usize, Failure> {
        match self.n.unwrap_or(1) {
            0 => Err(Failure::bad("n 0: use 1 or more")),
            n if n > MOST => Err(Failure::bad(format!("n {n}: at most {MOST} answers at once"))),
            n => Ok(n),
        }
    }

    fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|o| o["include_usage"] == true)
    }
}

/// What is answered.
enum Asked {
    Messages(Vec<Message>),
    Text(String),
}

/// An event of answer i.
enum News {
    Text(usize, String),
    Partial(usize, usize, usize, Image),
    Picture(usize, Image),
    Done(usize, Result<Reply, unified::Error>),
}

pub async fn chat(
    State(server): State<Shared>,
    body: Result<Json<ChatBody>, JsonRejection>,
) -> Result<Response, Failure> {
    let Json(mut body) = body?;
    let model = server.model(body.model.as_deref())?;
    if body.messages.is_empty() {
        return Err(Failure::bad("messages is empty: say something"));
    }
    let mut left = server.remote.budget();
    for url in body.messages.iter_mut().flat_map(MessageBody::urls) {
        *url = server.remote.inline(url, &mut left).await?;
    }
    let messages = body.messages.iter().map(message).collect::<Result<Vec<_>, _>>()?;
    let logprobs = body.logprobs.unwrap_or(false).then(|| body.top_logprobs.unwrap_or(0).min(20));
    answer(server, model, body.model.clone(), Asked::Messages(messages), &body.how, logprobs).await
}

#[derive(Deserialize)]
pub struct CompletionBody {
    model: Option<String>,
    prompt: OneOrMany,
    #[serde(flatten)]
    how: How,
    logprobs: Option<usize>,
}

pub async fn complete(
    State(server): State<Shared>,
    body: Result<Json<CompletionBody>, JsonRejection>,
) -> Result<Response, Failure> {
    let Json(body) = body?;
    let model = server.model(body.model.as_deref())?;
    let text = match &body.prompt {
        OneOrMany::One(text) => text.clone(),
        OneOrMany::Many(all) if all.len() == 1 => all[0].clone(),
        OneOrMany::Many(_) => {
            return Err(Failure::bad("prompt: one text a request; requests are batched by the server"));
        }
    };
    if text.is_empty() {
        return Err(Failure::bad("prompt is empty: say something"));
    }
    answer(server, model, body.model.clone(), Asked::Text(text), &body.how, body.logprobs).await
}

async fn answer(
    server: Shared,
    model: Model,
    name: Option<String>,
    asked: Asked,
    how: &How,
    logprobs: Option<usize>,
) -> Result<Response, Failure> {
    let place = server.place().await?;
    let count = how.count()?;
    let chat = matches!(asked, Asked::Messages(_));
    let loaded = server.loaded(model).await?;
    let mut request = how.request(&loaded, &server)?;
    request.logprobs = logprobs;
    let (to, from) = channel(32);
    let (asked, clock, work) = (Arc::new(asked), Instant::now(), server.clone());
    tokio::task::spawn_blocking(move || ask(&work, &loaded, &asked, &request, count, &to, clock, place));
    let about =
        About { id: server.id(if chat { "chatcmpl" } else { "cmpl" }), chat, created: server.now(), model: name };
    if how.stream {
        let (first, from) = peek(from).await?;
        return Ok(stream(about, first, from, count, how.wants_usage(), server));
    }
    whole(&about, from, count, &server).await
}

/// Waits for the first news, so that what cannot be answered at all has a status of its own.
async fn peek(mut from: Receiver<News>) -> Result<(Option<News>, Receiver<News>), Failure> {
    match from.recv().await {
        Some(News::Done(_, Err(e))) => Err(e.into()),
        first => Ok((first, from)),
    }
}

/// The answers, one thread each, so that they share the model's steps.
#[allow(clippy::too_many_arguments, reason = "all of it goes to the threads")]
fn ask(
    server: &Shared,
    loaded: &Arc<Loaded>,
    asked: &Arc<Asked>,
    request: &Request,
    count: usize,
    to: &Sender<News>,
    clock: Instant,
    place: Place,
) {
    let _place = place;
    let until = clock + server.limits.time;
    let one = |i: usize| {
        let request = Request { seed: request.seed.wrapping_add(i as u64), ..request.clone() };
        let mut first = true;
        let mut sketched = Instant::now();
        let mut on = |event: Event| {
            if std::mem::take(&mut first) {
                server.metrics.first(clock);
            }
            // a client that has gone, or time that is over, ends it
            let go_on = Instant::now() < until && !to.is_closed();
            let news = match event {
                Event::Text(t) => News::Text(i, t.to_owned()),
                Event::RowDone { done, rows, codes } if done < rows && sketched.elapsed().as_millis() >= 100 => {
                    sketched = Instant::now();
                    match loaded.sketch(codes) {
                        Some(Ok(image)) => News::Partial(i, done, rows, image),
                        _ => return go_on,
                    }
                }
                Event::ImageFinished(image) => News::Picture(i, image.clone()),
                Event::RowDone { .. } | Event::ImageStarted => return go_on,
            };
            go_on && to.blocking_send(news).is_ok()
        };
        let reply = match &**asked {
            Asked::Messages(messages) => loaded.answer(messages, &request, &mut on),
            Asked::Text(text) => loaded.complete(text, &request, &mut on),
        };
        if let Ok(r) = &reply {
            server.metrics.reply(r);
        }
        let _ = to.blocking_send(News::Done(i, reply));
    };
    std::thread::scope(|s| {
        for i in 1..count {
            s.spawn(move || one(i));
        }
        one(0);
    });
}

/// What every chunk of an answer repeats.
struct About {
    id: String,
    chat: bool,
    created: u64,
    model: Option<String>,
}

impl About {
    fn chunk(&self, choices: Value) -> Value {
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }
    fn delta(&self, index: usize, delta: Value, finish: Option<&str>) -> Value {
        if self.chat {
            return self.chunk(json!([{"index": index, "delta": delta, "finish_reason": finish}]));
        }
        self.chunk(
            json!([{"index": index, "text": delta["content"].as_str().unwrap_or_default(), "finish_reason": finish}]),
        )
    }
}

fn finish(reply: &Reply) -> &'static str {
    match reply.finish {
        Some(Finish::Length) => "length",
        Some(Finish::Stop) | None => "stop",
        // the only one who ends an answer whose client is there
        Some(Finish::Cancelled) => "length",
    }
}

fn usage(replies: &[Reply]) -> Value {
    let prompt = replies.first().map_or(0, |r| r.prompt_tokens);
    let completion: usize = replies.iter().map(|r| r.tokens.len()).sum();
    let cached = replies.iter().map(|r| r.reused_tokens).min().unwrap_or(0);
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached}})
}

fn logprobs(all: &[TokenLogProb]) -> Value {
    if all.is_empty() {
        return Value::Null;
    }
    let one = |p: &TokenLogProb| {
        let top: Vec<Value> =
            p.top.iter().map(|(t, l)| json!({"token": t, "logprob": l, "bytes": t.as_bytes()})).collect();
        json!({"token": p.token, "logprob": p.logprob, "bytes": p.token.as_bytes(), "top_logprobs": top})
    };
    json!({"content": all.iter().map(one).collect::<Vec<_>>(), "refusal": null})
}

/// The message of a whole answer: words, pictures, and both in their order.
fn message_of(reply: &Reply) -> Result<Value, Failure> {
    let (mut parts, mut images, mut pictures) = (Vec::new(), Vec::new(), reply.images.iter());
    for c in &reply.content {
        match c {
            Content::Text(t) => parts.push(json!({"type": "text", "text": t})),
            Content::Codes(_) | Content::Image(_) => {
                let Some(image) = pictures.next() else { continue };
                let part = json!({"type": "image_url", "image_url": {"url": url_of(image)?}});
                parts.push(part.clone());
                images.push(part);
            }
        }
    }
    let mut message = json!({"role": "assistant", "content": reply.text});
    if !images.is_empty() {
        message["images"] = images.into();
        message["content_parts"] = parts.into();
    }
    Ok(message)
}

async fn whole(about: &About, mut from: Receiver<News>, count: usize, server: &Shared) -> Result<Response, Failure> {
    let mut replies: Vec<Option<Reply>> = vec![None; count];
    while let Some(news) = from.recv().await {
        if let News::Done(i, reply) = news {
            replies[i] = Some(reply?);
        }
    }
    let replies: Option<Vec<Reply>> = replies.into_iter().collect();
    let replies = replies.ok_or_else(|| Failure::internal("the answer ended without an end"))?;
    let mut choices = Vec::new();
    for (i, r) in replies.iter().enumerate() {
        choices.push(if about.chat {
            json!({"index": i, "message": message_of(r)?, "finish_reason": finish(r), "logprobs": logprobs(&r.logprobs)})
        } else {
            json!({"index": i, "text": r.text, "finish_reason": finish(r), "logprobs": logprobs(&r.logprobs)})
        });
    }
    let object = if about.chat { "chat.completion" } else { "text_completion" };
    let model = about.model.clone().unwrap_or_else(|| server.models[0].0.clone());
    Ok(Json(json!({"id": about.id, "object": object, "created": about.created, "model": model, "choices": choices,
        "usage": usage(&replies)}))
    .into_response())
}

fn stream(
    about: About,
    first: Option<News>,
    from: Receiver<News>,
    count: usize,
    wants_usage: bool,
    server: Shared,
) -> Response {
    let about = About { model: about.model.or_else(|| Some(server.models[0].0.clone())), ..about };
    struct Going {
        about: About,
        first: Option<News>,
        from: Receiver<News>,
        queue: std::collections::VecDeque<String>,
        replies: Vec<Reply>,
        left: usize,
        over: bool,
        wants_usage: bool,
    }
    let mut queue = std::collections::VecDeque::new();
    for i in 0..count {
        queue.push_back(about.delta(i, json!({"role": "assistant", "content": ""}), None).to_string());
    }
    let going = Going { about, first, from, queue, replies: Vec::new(), left: count, over: false, wants_usage };
    let events = futures_util::stream::unfold(going, |mut g| async move {
        loop {
            if let Some(data) = g.queue.pop_front() {
                return Some((Ok::<_, Infallible>(Sse::default().data(data)), g));
            }
            if g.over {
                return None;
            }
            let news = match g.first.take() {
                Some(first) => Some(first),
                None => g.from.recv().await,
            };
            let about = &g.about;
            match news {
                Some(News::Text(i, t)) => g.queue.push_back(about.delta(i, json!({"content": t}), None).to_string()),
                Some(News::Partial(i, done, rows, image)) => {
                    if let Ok(data) = base64_of(&image) {
                        let partial = json!({"b64_json": data, "rows": done, "of": rows});
                        g.queue.push_back(about.delta(i, json!({"partial_image": partial}), None).to_string());
                    }
                }
                Some(News::Picture(i, image)) => {
                    if let Ok(url) = url_of(&image) {
                        let images = json!([{"type": "image_url", "image_url": {"url": url}}]);
                        g.queue.push_back(about.delta(i, json!({"images": images}), None).to_string());
                    }
                }
                Some(News::Done(i, Ok(reply))) => {
                    g.queue.push_back(about.delta(i, json!({}), Some(finish(&reply))).to_string());
                    g.replies.push(reply);
                    g.left -= 1;
                }
                Some(News::Done(_, Err(e))) => {
                    g.queue.push_back(Failure::from(e).json().to_string());
                    g.left = 0;
                }
                None => g.left = 0,
            }
            if g.left == 0 {
                if g.wants_usage {
                    let mut last = about.chunk(json!([]));
                    last["usage"] = usage(&g.replies);
                    g.queue.push_back(last.to_string());
                }
                g.queue.push_back("[DONE]".into());
                g.over = true;
            }
        }
    });
    Stream::new(events).keep_alive(KeepAlive::default()).into_response()
}
