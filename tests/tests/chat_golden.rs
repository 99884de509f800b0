//! Chat templates in transformers' dialect.

use serde_json::Value;
use tests::fixture;
use unified::template::{Conversation, Template};

#[test]
fn seventy_renderings() {
    let text = std::fs::read_to_string(fixture("chat/templates.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let now = golden["now"].as_str().unwrap().parse().unwrap();
    let expected = golden["expected"].as_array().unwrap();
    assert!(expected.len() >= 70);
    for case in expected {
        let name = |key: &str| case[key].as_str().unwrap();
        let template = Template::new(golden["templates"][name("template")].as_str().unwrap()).unwrap();
        let got = template.render(&Conversation {
            messages: &golden["conversations"][name("conversation")],
            tools: case["tools"].as_bool().unwrap().then_some(&golden["tools"]),
            bos_token: golden["bos_token"].as_str().unwrap(),
            eos_token: golden["eos_token"].as_str().unwrap(),
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            now,
        });
        let what = format!("{} {}", name("template"), name("conversation"));
        match (case.get("error").and_then(Value::as_str), got) {
            (None, got) => assert_eq!(got.unwrap(), name("text"), "{what}"),
            (Some("raised"), got) => {
                assert_eq!(got.unwrap_err().to_string(), format!("chat template: {}", name("message")), "{what}");
            }
            (Some(_), got) => assert!(got.is_err(), "{what} rendered as {got:?}"),
        }
    }
}

#[test]
fn generation_marks_are_left_out_and_loops_can_be_left() {
    let source = "{% for m in messages %}{%- if loop.index > 2 %}{% break %}{% endif %}\
                  {% generation %}{{ m.content }}{%- endgeneration -%}{% endfor %}";
    let messages = serde_json::json!([{"content": "a"}, {"content": "b"}, {"content": "c"}]);
    let text = Template::new(source).unwrap().render(&Conversation::to_answer(&messages, "", "")).unwrap();
    assert_eq!(text, "ab");
}
