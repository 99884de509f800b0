//! Loss of text: how well a model predicts documents, in nats a token and bits a byte.

use crate::{Error, Result};
use lm::loss::{Totals, split_loss};
use serde::{Deserialize, Serialize};
use std::path::Path;
use unified::runner::Unified;
use unified::sequence::{Sequence, pack};

/// Rows that go through the model at once.
const ROWS: usize = 16;

/// What was measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TextReport {
    /// Documents.
    pub documents: usize,
    /// Predicted tokens: all but the first of each window.
    pub tokens: usize,
    /// Mean loss.
    pub nats_per_token: f64,
    /// The sum in bits over the bytes of the documents.
    pub bits_per_byte: f64,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

/// Texts of a file with `{"text": ..}` a line, the first `limit` (0: all).
pub fn read_texts(path: &Path, limit: usize) -> Result<Vec<String>> {
    let bad = |why: String| Error::bad_file(path, why);
    let file = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let lines = file.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let take = if limit == 0 { usize::MAX } else { limit };
    let texts: Vec<String> = lines
        .take(take)
        .map(|(i, l)| serde_json::from_str::<Line>(l).map(|l| l.text).map_err(|e| bad(format!("line {}: {e}", i + 1))))
        .collect::<Result<_>>()?;
    if texts.is_empty() {
        return Err(bad("no documents".into()));
    }
    Ok(texts)
}

/// The loss on texts, in windows of `length` tokens that do not see each other.
pub fn text_loss(model: &Unified, texts: &[String], length: usize) -> Result<TextReport> {
    let mut windows = Vec::new();
    for text in texts {
        let ids = model.words().encode(text)?;
        windows.extend(ids.chunks(length.max(2)).map(|chunk| {
            let mut s = Sequence::default();
            s.push_text(chunk, true);
            s
        }));
    }
    let (mut nats, mut tokens) = (0.0, 0);
    for chunk in windows.chunks(ROWS) {
        let batch = pack(chunk, length.max(2), 0, true)?;
        let lm = model.language_model();
        let hidden = lm.hidden(&lm.embed(&batch.ids, batch.rows)?, &batch.positions, &batch.mask)?;
        let mut totals = Totals::default();
        totals.add(&batch.targets);
        if let Some(mean) = split_loss(lm, &model.config.vocabulary, &hidden, &batch.targets, &totals, false)?.text {
            let n = batch.targets.text.len();
            nats += f64::from(mean.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?) * n as f64;
            tokens += n;
        }
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    Ok(TextReport {
        documents: texts.len(),
        tokens,
        nats_per_token: nats / tokens.max(1) as f64,
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes.max(1) as f64,
    })
}
