//! Errors in OpenAI's shape, with the status that fits and a sentence that says what to do.

use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

/// What a client is told.
#[derive(Debug)]
pub struct Failure {
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
    retry_after: Option<u64>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, message: message.into(), retry_after: None }
    }
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("not_found"), message)
    }
    pub fn unauthorized() -> Self {
        let why = "the key is missing or wrong: send the header Authorization: Bearer KEY";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", Some("invalid_api_key"), why)
    }
    pub fn busy() -> Self {
        let why = "as many requests wait as may wait; try again in a moment";
        let this = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), why);
        Self { retry_after: Some(1), ..this }
    }
    pub fn unavailable(message: impl Into<String>) -> Self {
        let this = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable"), message);
        Self { retry_after: Some(5), ..this }
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }
    /// The body.
    pub fn json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": null, "code": self.code}})
    }
}

impl From<unified::Error> for Failure {
    fn from(e: unified::Error) -> Self {
        use unified::Error;
        let text = e.to_string().lines().next().unwrap_or_default().to_owned();
        match e {
            Error::TooLong(_) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("context_length_exceeded"), text)
            }
            Error::Unsupported(_) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("unsupported"), text)
            }
            Error::Cancelled => Self::new(StatusCode::REQUEST_TIMEOUT, "server_error", Some("cancelled"), text),
            Error::Invalid(_) | Error::BadFile { .. } => Self::bad(text),
            Error::Tensor(_) | Error::Io { .. } | Error::MissingTensor { .. } | Error::WrongShape { .. } => {
                Self::internal(text)
            }
        }
    }
}

impl From<JsonRejection> for Failure {
    fn from(e: JsonRejection) -> Self {
        let status = e.status();
        Self { status, ..Self::bad(e.body_text().lines().next().unwrap_or_default().to_owned()) }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
        }
        response
    }
}
