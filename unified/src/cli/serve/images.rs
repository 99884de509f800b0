//! `/v1/images/generations` and `/v1/images/edits`.

use super::super::common::Type;
use super::super::recipe::Recipe;
use super::chat::{base64_of, picture};
use super::error::Failure;
use super::state::Shared;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Multipart, State};
use axum::response::sse::{Event as Sse, Sse as Stream};
use axum::response::{IntoResponse, Json, Response};
use base64::Engine;
use lm::Token;
use lm::draw::DrawSettings;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::Path;
use std::time::Instant;
use tokio::sync::mpsc::channel;
use unified::conversation::Message;
use unified::{Image, Wanted, image, text, user};

/// Most pictures of one request.
const MOST: usize = 16;

#[derive(Deserialize, Default)]
pub struct Body {
    model: Option<String>,
    prompt: Option<String>,
    n: Option<usize>,
    size: Option<String>,
    response_format: Option<String>,
    #[serde(default)]
    stream: bool,
    partial_images: Option<usize>,
    /// Class of a class-conditional model, by number or name; not OpenAI's.
    class: Option<Value>,
    seed: Option<i64>,
    guidance_scale: Option<f32>,
    temperature: Option<f32>,
    /// Picture of an edit, as a data: URL.
    image: Option<String>,
}

enum News {
    Partial(usize, Image),
    Done(Result<Vec<Image>, unified::Error>),
}

/// What is drawn.
enum Subject {
    Wanted(Vec<Wanted>),
    Edits(Vec<Vec<Message>>),
}

pub async fn generations(
    State(server): State<Shared>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Response, Failure> {
    let Json(body) = body?;
    let n = body.count()?;
    let wanted = match (&body.class, &body.prompt) {
        (Some(Value::Number(c)), _) => match c.as_u64().and_then(|c| u32::try_from(c).ok()) {
            Some(c) => Wanted::Class(c),
            None => return Err(Failure::bad("class: a whole number or a name")),
        },
        (Some(Value::String(name)), _) => match name.parse() {
            Ok(c) => Wanted::Class(c),
            Err(_) => Wanted::ClassName(name.clone()),
        },
        (Some(_), _) => return Err(Failure::bad("class: a whole number or a name")),
        (None, Some(p)) if !p.trim().is_empty() => Wanted::Words(p.clone()),
        (None, _) => return Err(Failure::bad("prompt is empty: say what to draw")),
    };
    draw(server, body, Subject::Wanted(vec![wanted; n])).await
}

/// As OpenAI's clients send it (a form with files), or as JSON with the picture in a data: URL.
pub async fn edits(State(server): State<Shared>, request: axum::extract::Request) -> Result<Response, Failure> {
    let kind = request.headers().get("content-type").and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned();
    let (body, shown) = if kind.starts_with("multipart/form-data") {
        let bad = |e: String| Failure::bad(format!("the form cannot be read: {e}"));
        let mut form = Multipart::from_request(request, &()).await.map_err(|e| bad(e.body_text()))?;
        let (mut body, mut shown) = (Body::default(), None);
        while let Some(field) = form.next_field().await.map_err(|e| bad(e.body_text()))? {
            let name = field.name().unwrap_or_default().to_owned();
            let bytes = field.bytes().await.map_err(|e| bad(e.body_text()))?;
            let words = || String::from_utf8_lossy(&bytes).into_owned();
            let number = || words().trim().parse().map_err(|_| Failure::bad(format!("{name}: a number is wanted")));
            match name.as_str() {
                "image" | "image[]" if shown.is_none() => shown = Some(Image::from_bytes(Path::new("image"), &bytes)?),
                "image" | "image[]" => return Err(Failure::bad("image: one picture is changed at a time")),
                "mask" => return Err(Failure::bad("mask: not known here; say in words what is to change")),
                "prompt" => body.prompt = Some(words()),
                "model" => body.model = Some(words()),
                "size" => body.size = Some(words()),
                "response_format" => body.response_format = Some(words()),
                "n" => body.n = Some(number()?),
                "seed" => body.seed = Some(number()? as i64),
                // what only other models know changes nothing here
                _ => {}
            }
        }
        (body, shown)
    } else {
        let Json(body) = Json::<Body>::from_request(request, &()).await?;
        let shown = body.image.as_deref().map(picture).transpose()?;
        (body, shown)
    };
    let Some(shown) = shown else { return Err(Failure::bad("image is missing: the picture to change")) };
    let words = body.prompt.clone().filter(|p| !p.trim().is_empty());
    let words = words.ok_or_else(|| Failure::bad("prompt is empty: say what to change"))?;
    let n = body.count()?;
    draw(server, body, Subject::Edits(vec![vec![user([image(shown), text(words)])]; n])).await
}

impl Body {
    fn count(&self) -> Result<usize, Failure> {
        match self.n.unwrap_or(1) {
            0 => Err(Failure::bad("n 0: use 1 or more")),
            n if n > MOST => Err(Failure::bad(format!("n {n}: at most {MOST} pictures at once"))),
            n => Ok(n),
        }
    }
}

async fn draw(server: Shared, body: Body, subject: Subject) -> Result<Response, Failure> {
    let model = server.model(body.model.as_deref())?;
    model.artifact().must("draw", model.artifact().architecture.can().draw)?;
    if body.response_format.as_deref().is_some_and(|f| f != "b64_json") {
        return Err(Failure::bad("response_format: pictures come as b64_json; nothing is kept under a URL here"));
    }
    let place = server.place().await?;
    let clock = Instant::now();
    let loaded = server.loaded(model).await?;
    if let Some(size) = body.size.as_deref().filter(|s| *s != "auto") {
        let side = loaded.side();
        if size != format!("{side}x{side}") {
            return Err(Failure::bad(format!("size {size}: this model draws {side}x{side}")));
        }
    }
    let (settings, best_of) = loaded.drawing();
    let settings = settings.guided(body.guidance_scale).heated(body.temperature);
    settings.check()?;
    let seed = server.seed(body.seed);
    let recipe = match &subject {
        Subject::Wanted(wanted) => {
            recipe(wanted.first(), server.named(body.model.as_deref()), seed, (&settings, best_of))
        }
        Subject::Edits(_) => None,
    };
    let partials = if body.stream { body.partial_images.unwrap_or(2).min(8) } else { 0 };
    let (to, mut from) = channel(16);
    let work = server.clone();
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let until = clock + work.limits.time;
        let (mut first, mut shown) = (true, 0);
        let count = match &subject {
            Subject::Wanted(w) => w.len(),
            Subject::Edits(e) => e.len(),
        };
        let seeds: Vec<u64> = (0..count as u64).map(|i| seed.wrapping_add(i)).collect();
        let rows = loaded.rows().max(1);
        let mut on_row = |tokens: &[Vec<Token>]| {
            if std::mem::take(&mut first) {
                work.metrics.first(clock);
            }
            let per = loaded.tokens_per_picture().max(1);
            let done = tokens.iter().map(Vec::len).min().unwrap_or(0) * rows / per;
            if shown < partials && done * (partials + 1) >= (shown + 1) * rows && done < rows {
                for t in tokens {
                    if let Ok(image) = loaded.sketch_tokens(t) {
                        let _ = to.blocking_send(News::Partial(shown, image));
                    }
                }
                shown += 1;
            }
            Instant::now() < until && !to.is_closed()
        };
        let drawn = match &subject {
            Subject::Wanted(wanted) => loaded.draw(wanted, &seeds, (&settings, best_of), &mut on_row),
            Subject::Edits(all) => loaded.draw_after(all, &seeds, (&settings, best_of), &mut on_row),
        };
        let drawn = drawn.and_then(|d| if d.is_empty() { Err(unified::Error::Cancelled) } else { Ok(d) });
        if let Ok(d) = &drawn {
            work.metrics.drawn(d.len());
        }
        let _ = to.blocking_send(News::Done(drawn));
    });
    let created = server.now();
    if !body.stream {
        while let Some(news) = from.recv().await {
            if let News::Done(drawn) = news {
                return Ok(Json(json!({"created": created, "data": data(&drawn?, recipe.as_ref())?})).into_response());
            }
        }
        return Err(Failure::internal("the drawing ended without an end"));
    }
    let events =
        futures_util::stream::unfold(Some((from, Vec::<(String, String)>::new(), recipe)), |going| async move {
            let (mut from, mut queue, recipe) = going?;
            loop {
                if let Some((event, data)) = queue.pop() {
                    let last = event == "end";
                    if last {
                        return None;
                    }
                    return Some((
                        Ok::<_, Infallible>(Sse::default().event(event).data(data)),
                        Some((from, queue, recipe)),
                    ));
                }
                match from.recv().await {
                    Some(News::Partial(i, image)) => {
                        let Ok(b64) = base64_of(&image) else { continue };
                        let kind = "image_generation.partial_image";
                        let body = json!({"type": kind, "partial_image_index": i, "b64_json": b64});
                        queue.push((kind.into(), body.to_string()));
                    }
                    Some(News::Done(Ok(images))) => {
                        queue.push(("end".into(), String::new()));
                        for i in (0..images.len()).rev() {
                            let Ok(b64) = encoded(&images, i, recipe.as_ref()) else { continue };
                            let kind = "image_generation.completed";
                            queue.push((kind.into(), json!({"type": kind, "b64_json": b64}).to_string()));
                        }
                    }
                    Some(News::Done(Err(e))) => {
                        queue.push(("end".into(), String::new()));
                        queue.push(("error".into(), Failure::from(e).json().to_string()));
                    }
                    None => return None,
                }
            }
        });
    Ok(Stream::new(events).into_response())
}

/// How one picture of a thing is drawn again.
fn recipe(
    wanted: Option<&Wanted>,
    model: Option<String>,
    seed: u64,
    (settings, best_of): (&DrawSettings, usize),
) -> Option<Recipe> {
    let (prompt, class) = match wanted? {
        Wanted::Words(words) => (Some(words.clone()), Vec::new()),
        Wanted::Class(class) => (None, vec![*class]),
        _ => return None,
    };
    Some(Recipe {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model,
        tokenizer: None,
        text_encoder: None,
        features: None,
        dtype: Type::Auto,
        prompt,
        class,
        seed,
        n: 1,
        batch: 1,
        index: Some(0),
        best_of,
        settings: *settings,
    })
}

fn data(images: &[Image], recipe: Option<&Recipe>) -> Result<Vec<Value>, Failure> {
    (0..images.len()).map(|i| Ok(json!({"b64_json": encoded(images, i, recipe)?}))).collect()
}

/// A drawing as base64, with what `unified generate --from-png` needs to draw it again, where that is words or a class.
fn encoded(images: &[Image], i: usize, recipe: Option<&Recipe>) -> Result<String, Failure> {
    let Some(recipe) = recipe else { return base64_of(&images[i]) };
    let own = Recipe { seed: recipe.seed.wrapping_add(i as u64), ..recipe.clone() };
    let png = own.png(&images[i]).map_err(|e| Failure::internal(e.to_string()))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(png))
}
