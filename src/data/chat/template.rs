//! Conversations as text, by the model's own chat template.
//!
//! Templates are Jinja, as `apply_chat_template` of transformers renders them: blocks trim the line that
//! they stand on, strings have Python's methods, `tojson` writes as Python does, `raise_exception`
//! refuses a conversation. A template reads nothing, and its work is limited.

use minijinja::{
    Environment, ErrorKind, Value as Jinja,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde::Serialize;
use serde_json::{Map, Value, ser::Formatter};

use super::bounds;
use crate::{
    error::{Code, Error, Result},
    fs::Place,
};

const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
/// The function of templates that tells the time.
const CLOCK: &str = "strftime_now";
/// Bytes of a format of times.
const MAX_TIME: usize = 256;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`, or another role that the template knows.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// The template of a model's directory, and the special tokens that it may write.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    /// The template that writes marks around what an assistant wrote, if it says what that is.
    marked: Option<String>,
    /// `bos_token`, `eos_token` and others, by their names.
    tokens: Map<String, Value>,
}

impl Message {
    /// A turn.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

impl ChatTemplate {
    /// The template of a directory: `chat_template.jinja`, or that of `tokenizer_config.json`.
    pub fn read(dir: impl Into<Place>) -> Result<Self> {
        let dir = dir.into();
        if let Some(template) = Self::find(&dir)? {
            return Ok(template);
        }
        let message = format!("the model in {} has no chat template", dir.display());
        Err(Error::new(Code::Missing, message).hint(format!(
            "chat with a model that was trained on conversations, or put its template into \
             {TEMPLATE}; `dsr generate` goes on with any text"
        )))
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The template of a directory, if it has one.
    pub fn find(dir: &Place) -> Result<Option<Self>> {
        let (config, file) = (dir.join(CONFIG), dir.join(TEMPLATE));
        let config: Map<String, Value> = match config.is_file() {
            true => serde_json::from_slice(&config.read()?).map_err(|e| {
                Error::new(Code::Tokenizer, format!("{} is no JSON object", config.display()))
                    .caused_by(e)
            })?,
            false => Map::new(),
        };
        let source = match file.is_file() {
            true => Some(file.read_to_string()?),
            false => named(config.get("chat_template")),
        };
        let Some(source) = source else { return Ok(None) };
        let tokens = config.into_iter().filter_map(|(name, token)| {
            // Older files have a map with the token's settings.
            let text = token.get("content").unwrap_or(&token).as_str()?.to_owned();
            name.ends_with("_token").then_some((name, text.into()))
        });
        Ok(Some(Self::new(&source, tokens.collect())))
    }

    /// Whether it may write another text tomorrow.
    pub(in crate::data) fn tells_the_time(&self) -> bool {
        self.source.contains(CLOCK)
    }

    fn new(source: &str, tokens: Map<String, Value>) -> Self {
        let (plain, marked) = (without_generation_blocks(source, false), has_blocks(source));
        let marked = marked.then(|| without_generation_blocks(source, true));
        Self { source: plain, marked, tokens }
    }

    /// The same with the text of another template.
    pub fn with_source(&self, source: &str) -> Self {
        Self::new(source, self.tokens.clone())
    }

    /// A template without special tokens.
    pub fn of_source(source: &str) -> Self {
        Self::new(source, Map::new())
    }

    /// Whether the template says what an assistant wrote.
    pub(super) fn has_marks(&self) -> bool {
        self.marked.is_some()
    }

    /// The text of a conversation with [`MARKS`] around what an assistant wrote.
    pub(super) fn render_marked(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
    ) -> Result<String> {
        let source = self.marked.as_deref().unwrap_or(&self.source);
        self.render_source(source, messages, tools, false)
    }

    /// The text of messages that may have more than a role and a content.
    pub(super) fn render_values(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_source(&self.source, messages, tools, add_generation_prompt)
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where an answer begins.
    /// Special tokens are written out in it, so that a tokenizer must add none.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_source(&self.source, messages, None, add_generation_prompt)
    }

    fn render_source(
        &self,
        source: &str,
        messages: &(impl Serialize + ?Sized),
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let mut given = self.tokens.clone();
        given.extend(tools.map(|tools| ("tools".to_owned(), tools.clone())));
        given.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        let values = given.into_iter().map(|(name, value)| (name, Jinja::from(Serde(&value))));
        let messages = ("messages".to_owned(), Jinja::from(Serde(messages)));
        let context = Jinja::from_pairs(values.chain([messages]));
        let rendered =
            syntax().and_then(|syntax| bounds::render(environment(), &syntax, source, context));
        rendered.map_err(|e| {
            let words = match e.kind() {
                ErrorKind::OutOfFuel => {
                    "it makes more, or takes longer, than any conversation needs"
                }
                // The words of a template that refuses the conversation are for the user.
                _ => e.detail().unwrap_or("failed"),
            };
            let message = format!("the chat template: {words}");
            Error::new(Code::Tokenizer, message).caused_by(e)
        })
    }
}

/// Stand around what an assistant wrote: characters that are none, so that no text has them.
pub(super) const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// Whether a template has `{% generation %}` blocks.
fn has_blocks(source: &str) -> bool {
    let tags = source.split("{%").skip(1).filter_map(|tag| tag.split_once("%}"));
    tags.into_iter().any(|(tag, _)| tag.trim_matches(['-', '+']).trim() == "generation")
}

/// The template itself, or the one called `default` of several.
fn named(template: Option<&Value>) -> Option<String> {
    let is_default = |entry: &&Value| entry["name"] == "default";
    match template? {
        Value::String(source) => Some(source.clone()),
        Value::Array(several) => {
            Some(several.iter().find(is_default)?["template"].as_str()?.to_owned())
        }
        _ => None,
    }
}

/// The template with `{% generation %}` blocks, which tell trainers what an assistant wrote, as blocks
/// that are always shown, with marks around them or without.
fn without_generation_blocks(source: &str, marks: bool) -> String {
    let mut rest = source;
    let mut text = String::with_capacity(source.len());
    while let Some((before, after)) = rest.split_once("{%") {
        let Some((tag, behind)) = after.split_once("%}") else { break };
        let word = tag.trim_matches(['-', '+']).trim();
        let stands_for = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        let tag = match stands_for {
            // The whitespace around stays as the tag's signs say.
            Some(block) if marks => {
                let (left, right) = tag.split_once(word).unwrap_or_default();
                let [start, end] = MARKS;
                match word {
                    "generation" => {
                        format!(
                            "{left}{block}%}}{{{{ '{start}' }}}}{{% endif %}}{{% if true{right}"
                        )
                    }
                    _ => {
                        format!("{left}{block}%}}{{% if true %}}{{{{ '{end}' }}}}{{% endif{right}")
                    }
                }
            }
            Some(block) => tag.replacen(word, block, 1),
            None => tag.to_owned(),
        };
        text.extend([before, "{%", &tag, "%}"]);
        rest = behind;
    }
    text + rest
}

/// Delimiters are the usual ones.
fn syntax() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<String, _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function(CLOCK, |format: String| -> Result<String, _> {
        use std::fmt::Write;
        let refused =
            |words: &'static str| minijinja::Error::new(ErrorKind::InvalidOperation, words);
        if format.len() > MAX_TIME {
            return Err(refused("the format of a time is too long"));
        }
        let mut text = String::new();
        // An unknown directive is an error here, and a panic in `to_string`.
        write!(text, "{}", chrono::Local::now().format(&format))
            .map_err(|_| refused("an unknown format of a time"))?;
        Ok(text)
    });
    environment
}

/// `json.dumps(value, ensure_ascii=False)` of Python.
fn to_json(value: &Jinja, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let failed = |e: serde_json::Error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, "tojson of a value that is no data")
            .with_source(e)
    };
    let indent: Option<usize> = kwargs.get("indent")?;
    // Others, such as ensure_ascii, have one meaning here.
    let mut bytes = Vec::new();
    match indent {
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Python);
            value.serialize(&mut serializer).map_err(failed)?;
        }
        Some(indent) => {
            let spaces = vec![b' '; indent.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
            value.serialize(&mut serializer).map_err(failed)?;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A space behind `,` and `:`, as Python writes JSON on one line.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::Tokenizer;

    /// Texts and token ids of transformers, exactly: `tests/golden/chat/chat.json`.
    #[test]
    fn conversations_are_those_of_transformers() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat");
        let json = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let golden: Value = serde_json::from_str(&json("chat.json")).unwrap();
        let conversations: Vec<Vec<Message>> = json("chat.jsonl").lines().map(messages).collect();
        for (name, golden) in golden["tokenizers"].as_object().unwrap() {
            let template = ChatTemplate::read(dir.join(name)).unwrap();
            let tokenizer = Tokenizer::from_path(dir.join(name)).unwrap();
            let cases = golden["cases"].as_array().unwrap();
            assert_eq!(cases.len(), conversations.len());
            for (case, messages) in cases.iter().zip(&conversations) {
                let text = template.render(messages, false).unwrap();
                assert_eq!(text, case["text"].as_str().unwrap(), "{name}");
                let ids = tokenizer.encode_as_it_stands(&text).unwrap();
                assert_eq!(serde_json::json!(ids), case["input_ids"], "{name}");
                if let Some(prompt) = case["prompt_input_ids"].as_array() {
                    let asked = match messages.last().unwrap().role.as_str() {
                        "assistant" => &messages[..messages.len() - 1],
                        _ => messages,
                    };
                    let text = template.render(asked, true).unwrap();
                    let ids = tokenizer.encode_as_it_stands(&text).unwrap();
                    assert_eq!(serde_json::json!(ids), serde_json::json!(prompt), "{name}");
                }
            }
        }
    }

    fn messages(line: &str) -> Vec<Message> {
        let line: Value = serde_json::from_str(line).unwrap();
        let message =
            |m: &Value| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap());
        line["messages"].as_array().unwrap().iter().map(message).collect()
    }

    fn rendered(source: &str) -> Result<String> {
        let template = ChatTemplate::of_source(source);
        template.render(&[Message::new("user", "a \"b\" <c>")], true)
    }

    #[test]
    fn published_templates_use_more_than_jinja() {
        let cases = [
            ("{{ messages[0].content.split(' ')[0].upper() }}", "A"),
            ("{{ messages | tojson }}", r#"[{"role": "user", "content": "a \"b\" <c>"}]"#),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}",
                "",
            ),
            ("{%- if tools is defined %}tools{% else %}none{% endif %}\n", "none"),
            ("{{ strftime_now('%Y') | length }}", "4"),
            ("{%- set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ];
        for (source, expected) in cases {
            assert_eq!(
                rendered(source).map_err(|e| e.to_string()),
                Ok(expected.to_owned()),
                "{source}"
            );
        }
    }

    #[test]
    fn a_template_that_refuses_or_does_not_end_is_an_error() {
        let refused = rendered("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert_eq!(refused.code(), Code::Tokenizer);
        assert!(refused.to_string().contains("roles must alternate"), "{refused}");
        let endless =
            "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}";
        for source in ["{% if %}", "{% include 'x' %}", "{{ strftime_now('%Q') }}", endless] {
            assert_eq!(rendered(source).unwrap_err().code(), Code::Tokenizer, "{source}");
        }
    }
}
