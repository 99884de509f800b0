//! `/v1/embeddings`: words, and pictures as data: URLs, as unit vectors of one space.

use super::chat::picture;
use super::error::Failure;
use super::state::Shared;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Json;
use base64::Engine;
use serde::Deserialize;
use serde_json::{Value, json};

/// Most texts or pictures of one request.
const MOST: usize = 256;

#[derive(Deserialize)]
pub struct Body {
    model: Option<String>,
    input: Input,
    encoding_format: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

pub async fn embeddings(
    State(server): State<Shared>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let Json(body) = body?;
    let model = server.model(body.model.as_deref())?;
    let inputs = match body.input {
        Input::One(text) => vec![text],
        Input::Many(all) => all,
    };
    if inputs.is_empty() || inputs.len() > MOST || inputs.iter().any(String::is_empty) {
        return Err(Failure::bad(format!("input: 1 to {MOST} texts or data: URLs, none of them empty")));
    }
    let base64 = match body.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => return Err(Failure::bad(format!("encoding_format {other}: use float or base64"))),
    };
    let place = server.place().await?;
    let work = tokio::task::spawn_blocking(move || -> Result<Vec<Vec<f32>>, Failure> {
        let _place = place;
        let mut out = vec![Vec::new(); inputs.len()];
        let (seen, said): (Vec<usize>, Vec<usize>) = (0..inputs.len()).partition(|&i| inputs[i].starts_with("data:"));
        let images = seen.iter().map(|&i| picture(&inputs[i])).collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<String> = said.iter().map(|&i| inputs[i].clone()).collect();
        if !images.is_empty() {
            seen.into_iter().zip(model.embed_images(&images)?).for_each(|(i, v)| out[i] = v);
        }
        if !texts.is_empty() {
            said.into_iter().zip(model.embed_text(&texts)?).for_each(|(i, v)| out[i] = v);
        }
        Ok(out)
    });
    let vectors = work.await.map_err(|_| Failure::internal("the vectors could not be made"))??;
    let one = |(i, v): (usize, &Vec<f32>)| {
        let embedding = match base64 {
            true => {
                let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            false => json!(v),
        };
        json!({"object": "embedding", "index": i, "embedding": embedding})
    };
    let data: Vec<Value> = vectors.iter().enumerate().map(one).collect();
    let name = body.model.unwrap_or_else(|| server.models[0].0.clone());
    Ok(Json(json!({"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": 0, "total_tokens": 0}})))
}
