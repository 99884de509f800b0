//! Chat templates (minijinja, the transformers dialect) and the marks of a conversation.

use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use serde::{Deserialize, Serialize};

/// The chat's marks, as the tokenizer spells them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marks {
    /// Before the user's turn.
    pub user: String,
    /// Before the answer.
    pub assistant: String,
    /// After the answer.
    pub end: String,
    /// Before a picture.
    pub begin_image: String,
    /// After a picture.
    pub end_image: String,
}

impl Default for Marks {
    fn default() -> Self {
        let s = str::to_owned;
        Self {
            user: s("<|user|>"),
            assistant: s("<|assistant|>"),
            end: s("<|end|>"),
            begin_image: s("<|image|>"),
            end_image: s("<|/image|>"),
        }
    }
}

/// A chat template, compiled.
pub struct Template {
    env: Environment<'static>,
}

/// The template of models that carry none.
pub const DEFAULT_TEMPLATE: &str = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}\
{% for c in m.content %}{{ '<|image|><|/image|>' if c.type == 'image' else c.text }}{% endfor %}\
{{ '<|end|>' if m.role == 'assistant' else '' }}{% endfor %}\
{{ '<|assistant|>' if add_generation_prompt else '' }}";

impl Template {
    /// Compiles a template.
    pub fn new(source: &str) -> Result<Self> {
        let bad = |e: minijinja::Error| Error::invalid(format!("chat template: {e}"));
        let mut env = Environment::new();
        env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(bad)?);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |message: String| -> std::result::Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_template_owned("chat", source.to_owned()).map_err(bad)?;
        Ok(Self { env })
    }

    /// Renders messages, each {role, content: [{type, text}]}.
    pub fn render(&self, messages: &serde_json::Value, add_generation_prompt: bool) -> Result<String> {
        let bad = |e: minijinja::Error| Error::invalid(format!("chat template: {e}"));
        let context = serde_json::json!({ "messages": messages, "add_generation_prompt": add_generation_prompt });
        let value = Value::from(minijinja::value::Serde(&context));
        self.env.get_template("chat").map_err(bad)?.render(value).map_err(bad)
    }
}
