//! CLIP's byte-pair tokenizer.

use qlip::tokenizer::TextTokenizer;
use tests::fixture;

#[test]
fn ids_of_sixty_strings() {
    let path = fixture("cliptok/tokenizer.json");
    let bytes = std::fs::read(&path).unwrap();
    let tok = TextTokenizer::from_bytes(&path, &bytes, 77, 49407).unwrap();
    let long = TextTokenizer::from_bytes(&path, &bytes, 100_000, 49407).unwrap();
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(fixture("cliptok/strings.json")).unwrap()).unwrap();
    assert!(cases.len() >= 60);
    let list =
        |v: &serde_json::Value| v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect::<Vec<_>>();
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(long.encode(text).unwrap(), list(&case["ids"]), "{text:?}");
        assert_eq!(long.decode(&list(&case["ids"])).unwrap(), case["decoded"].as_str().unwrap(), "{text:?} back");
        let mut ids = tok.encode(text).unwrap();
        ids.resize(77, 49407);
        assert_eq!(ids, list(&case["context77"]), "{text:?} in 77");
    }
}
