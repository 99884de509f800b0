//! llama.cpp's files: the same tokens of a text, and the same likeliest tokens after it (tests/fixtures/gguf/make.py).

use std::path::Path;
use std::sync::Arc;
use unified::artifact::{Artifact, Placement};
use unified::conversation::Message;
use unified::llama::LlamaChat;

#[test]
fn tokens_and_greedy_answers_are_llama_cpp_s() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf");
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let list = |v: &serde_json::Value| -> Vec<lm::Token> {
        v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as lm::Token).collect()
    };
    for kind in ["bf16", "q8_0"] {
        let want = &expected[kind];
        let artifact = Artifact::at(&folder.join(format!("tiny-{kind}.gguf"))).unwrap();
        let words = artifact.text_tokenizer().unwrap();
        let prompt = [vec![1], words.encode(expected["text"].as_str().unwrap()).unwrap()].concat();
        assert_eq!(prompt, list(&want["prompt"]), "{kind}");
        let config: lm::LlamaConfig = artifact.config().unwrap();
        let model = Arc::new(lm::Llama::new(&artifact.params(&Placement::cpu()).unwrap(), &config).unwrap());
        for (from, to) in [("prompt", "greedy"), ("chat", "answer")] {
            let context = lm::Context::new(vec![lm::Part::tokens(list(&want[from]))]);
            let rows = lm::Source::rows(0..config.vocab_size);
            let got = lm::generate::likeliest(model.clone(), vec![context], rows, 12).unwrap();
            assert_eq!(got[0], list(&want[to]), "{kind} {to}");
        }
        let chat = LlamaChat::load(&artifact, &Placement::cpu()).unwrap();
        let asked = chat.context(&[Message::user(expected["asked"].as_str().unwrap())]).unwrap();
        assert_eq!(asked, list(&want["chat"]), "{kind}");
    }
}
