//! Chat templates (minijinja, the transformers dialect) and the marks of a conversation.

use crate::artifact::ModelFiles;
use crate::conversation::{Message, Role};
use crate::{Error, Result};
use chrono::NaiveDateTime;
use chrono::format::{Item, StrftimeItems};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::Write;

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

impl Marks {
    /// All of them.
    pub fn all(&self) -> [&str; 5] {
        [&self.user, &self.assistant, &self.end, &self.begin_image, &self.end_image]
    }
}

/// A chat template, compiled.
pub struct Template {
    env: Environment<'static>,
    /// Whether it speaks of a system's messages.
    system: bool,
}

/// The template of models that carry none.
pub const DEFAULT_TEMPLATE: &str = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}\
{% for c in m.content %}{{ '<|image|><|/image|>' if c.type == 'image' else c.text }}{% endfor %}\
{{ '<|end|>' if m.role == 'assistant' else '' }}{% endfor %}\
{{ '<|assistant|>' if add_generation_prompt else '' }}";

/// What a template is rendered from.
pub struct Conversation<'a> {
    /// Messages, each {role, content}; content is text or a list of {type, text}.
    pub messages: &'a serde_json::Value,
    /// Descriptions of tools, where there are any.
    pub tools: Option<&'a serde_json::Value>,
    /// The tokenizer's marks.
    pub bos_token: &'a str,
    /// The tokenizer's marks.
    pub eos_token: &'a str,
    /// Whether the text ends where the answer begins.
    pub add_generation_prompt: bool,
    /// What `strftime_now` sees.
    pub now: NaiveDateTime,
}

impl<'a> Conversation<'a> {
    /// Messages up to where the answer begins, without tools, now.
    pub fn to_answer(messages: &'a serde_json::Value, bos_token: &'a str, eos_token: &'a str) -> Self {
        let now = chrono::Local::now().naive_local();
        Self { messages, tools: None, bos_token, eos_token, add_generation_prompt: true, now }
    }
}

impl Template {
    /// The template that a model's folder carries: chat_template.jinja, chat_template.json or tokenizer_config.json.
    pub fn of_model(files: &ModelFiles) -> Result<Option<Self>> {
        Self::source_of(files)?.map(|s| Self::new(&s)).transpose()
    }

    /// Its text.
    pub fn source_of(files: &ModelFiles) -> Result<Option<String>> {
        if files.has("chat_template.jinja") {
            return files.text("chat_template.jinja").map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"].into_iter().filter(|n| files.has(n)) {
            let json: serde_json::Value = serde_json::from_str(&files.text(name)?)
                .map_err(|e| Error::bad_file(files.path_of(name), e.to_string()))?;
            // one template, or several by name
            let named = json["chat_template"].as_array().and_then(|all| {
                all.iter().find(|t| t["name"] == "default").or(all.first()).and_then(|t| t["template"].as_str())
            });
            if let Some(source) = json["chat_template"].as_str().or(named) {
                return Ok(Some(source.to_owned()));
            }
        }
        Ok(None)
    }

    /// Compiles a template.
    pub fn new(source: &str) -> Result<Self> {
        let mut env = Environment::new();
        env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(bad)?);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |message: String| -> std::result::Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_filter("tojson", tojson);
        // transformers marks answers with this pair for masks of a loss; the text is the same without them
        let source = ["generation", "endgeneration"].iter().fold(source.to_owned(), |s, tag| without_tag(&s, tag));
        let system = source.contains("system") || !source.contains("user");
        env.add_template_owned("chat", source).map_err(bad)?;
        Ok(Self { env, system })
    }

    /// Whether it shows all of these messages: a system's words must not be taken for somebody else's.
    pub fn takes(&self, messages: &[Message]) -> Result<()> {
        if !self.system && messages.iter().any(|m| m.role == Role::System) {
            let why = "this model's chat template knows no system role: leave the system message out, or say it in the first question";
            return Err(Error::Unsupported(why.into()));
        }
        Ok(())
    }

    /// Renders a conversation.
    pub fn render(&self, c: &Conversation) -> Result<String> {
        let now = c.now;
        let mut env = self.env.clone();
        env.add_function("strftime_now", move |format: String| strftime(now, &format));
        let mut context = serde_json::json!({
            "messages": c.messages,
            "add_generation_prompt": c.add_generation_prompt,
            "bos_token": c.bos_token,
            "eos_token": c.eos_token,
        });
        if let Some(tools) = c.tools {
            context["tools"] = tools.clone();
        }
        let value = Value::from(minijinja::value::Serde(&context));
        env.get_template("chat").map_err(bad)?.render(value).map_err(bad)
    }
}

/// The marks that begin and end a text, where tokenizer_config.json names them.
pub fn marks_of(files: &ModelFiles) -> Result<(Option<String>, Option<String>)> {
    if !files.has("tokenizer_config.json") {
        return Ok((None, None));
    }
    let json: serde_json::Value = serde_json::from_str(&files.text("tokenizer_config.json")?)
        .map_err(|e| Error::bad_file(files.path_of("tokenizer_config.json"), e.to_string()))?;
    // a mark is its text, or an object that holds it
    let mark = |key: &str| json[key].as_str().or(json[key]["content"].as_str()).map(str::to_owned);
    Ok((mark("bos_token"), mark("eos_token")))
}

/// A template's own complaint is passed on as it is; other failures say where.
fn bad(e: minijinja::Error) -> Error {
    match (e.kind(), e.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => Error::invalid(format!("chat template: {detail}")),
        _ => Error::invalid(format!("chat template: {e}")),
    }
}

/// Leaves out `{% tag %}` with any of the white-space marks.
fn without_tag(source: &str, tag: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        // behind the opening: "{%}" closes nothing
        let Some(end) = rest[at + 2..].find("%}").map(|n| at + n + 4) else { break };
        let inside = rest[at + 2..end - 2].trim_matches(['-', '+']).trim();
        out.push_str(&rest[..if inside == tag { at } else { end }]);
        rest = &rest[end..];
    }
    out + rest
}

fn strftime(now: NaiveDateTime, format: &str) -> std::result::Result<String, minijinja::Error> {
    let items: Vec<Item> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: `{format}`")));
    }
    Ok(now.format_with_items(items.into_iter()).to_string())
}

/// json.dumps(value, ensure_ascii=False): spaces after commas and colons, or lines where `indent` is given.
fn tojson(value: Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, "tojson").with_source(e);
    let mut out = Vec::new();
    match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(64));
            let mut s = Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(spaces.as_bytes()));
            value.serialize(&mut s).map_err(failed)?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)).map_err(failed)?,
    }
    let text = String::from_utf8(out)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, "tojson").with_source(e))?;
    Ok(Value::from_safe_string(text))
}

struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_closes_nothing_is_left_to_the_compiler() {
        assert_eq!(without_tag("a{%- generation -%}b{% endgeneration %}c", "generation"), "ab{% endgeneration %}c");
        // found by fuzz/fuzz_targets/text.rs
        assert_eq!(without_tag("{{ x } {%}for c", "generation"), "{{ x } {%}for c");
        assert!(Template::new("{{ m.role } {%}for c in m.conte en % endfor %}").is_err());
    }
}
