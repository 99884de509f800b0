//! Text that comes with a model: a chat template that is rendered, a tokenizer that encodes, tokens in tiktoken's and SentencePiece's files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use unified::template::{Conversation, Template};
use unified::words::Words;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 2 {
        0 => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let Ok(template) = Template::new(text) else { return };
            let messages = serde_json::json!([
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
            ]);
            let _ = template.render(&Conversation::to_answer(&messages, "<s>", "</s>"));
        }
        _ => {
            let Ok(words) = Words::from_bytes(Path::new("tokenizer.json"), data) else { return };
            if let Ok(ids) = words.encode("a red circle, 90*90 \u{e9}\u{4f60}") {
                let _ = words.decode(&ids);
            }
        }
    }
});
