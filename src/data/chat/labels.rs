//! Which tokens of a conversation are trained: what the assistant wrote, with the token that ends its
//! turn.
//!
//! A template with `{% generation %}` blocks says it itself. Of any other the conversation is rendered up
//! to each answer: the text that is longer by the answer tells where it stands.

use std::ops::Range;

use minijinja::{Value as Jinja, value::Serde};
use serde_json::Value;

use super::template::{ChatTemplate, MARKS};
use crate::error::Result;

/// A conversation as text, and where the assistant speaks, in bytes.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) text: String,
    pub(super) answers: Vec<Answer>,
}

/// An answer of the assistant.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) span: Range<usize>,
    /// Whether the span is exactly what is trained; else its turn's end is the last special token in it,
    /// or the one behind it.
    pub(super) end: End,
}

/// Where an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With the span.
    Exact,
    /// With the last special token in the span.
    LastSpecial,
    /// With a special token behind the span.
    NextSpecial,
}

fn is_answer(message: &Value) -> bool {
    message["role"] == "assistant"
}

/// The conversation as `template` writes it.
///
/// The inner error says why the answers cannot be found.
pub(super) fn written(
    template: &ChatTemplate,
    messages: &[Value],
    first_trained: usize,
    tools: Option<&Value>,
) -> Result<Result<Written, String>> {
    if template.has_marks() {
        let marked = template.render_marked(messages, tools)?;
        return Ok(Ok(between_marks(&marked)));
    }
    let text = template.render_values(messages, tools, false)?;
    let mut answers = Vec::new();
    for (i, message) in messages.iter().enumerate().skip(first_trained) {
        if !is_answer(message) {
            continue;
        }
        // A template may refuse a conversation that begins with an answer.
        let before = match template.render_values(&messages[..i], tools, true) {
            Ok(before) => before,
            Err(e) => return Ok(Err(format!("the text before message {i}: {}", e.message()))),
        };
        if !text.starts_with(&before) {
            return Ok(Err(format!(
                "the template writes what stands before message {i} otherwise when more follows"
            )));
        }
        let after = template.render_values(&messages[..=i], tools, false)?;
        let start = before.len();
        let (end, how) = match text.starts_with(&after) && after.len() >= start {
            true => (after.len(), End::LastSpecial),
            false => match end_of_content(&text, start, message) {
                Some(end) => (end, End::NextSpecial),
                None => {
                    return Ok(Err(format!("the template does not show the text of message {i}")));
                }
            },
        };
        answers.push(Answer { span: start..end, end: how });
    }
    Ok(Ok(Written { text, answers }))
}

/// The part of a conversation that its template passes over or writes as it stands: a row's tools, calls
/// of tools, the parts of a content.
pub(super) fn unwritten(
    template: &ChatTemplate,
    messages: &[Value],
    first_trained: usize,
    tools: Option<&Value>,
) -> Result<Option<String>> {
    let calls = |message: &Value| message["tool_calls"].as_array().is_some_and(|c| !c.is_empty());
    let parts = |message: &Value| message["content"].is_array();
    if tools.is_none() && !messages.iter().any(|message| calls(message) || parts(message)) {
        return Ok(None);
    }
    let text = template.render_values(messages, tools, false)?;
    if tools.is_some() && template.render_values(messages, None, false)? == text {
        return Ok(Some("the tools of the row".to_owned()));
    }
    for (i, message) in messages.iter().enumerate() {
        if i >= first_trained && is_answer(message) && calls(message) {
            let mut without = messages.to_vec();
            without[i]["tool_calls"] = Value::Null;
            // A template may refuse a message that has nothing left.
            if template.render_values(&without, tools, false).is_ok_and(|other| other == text) {
                return Ok(Some(format!("the tool_calls of message {i}")));
            }
        }
        if parts(message) && text.contains(&Jinja::from(Serde(&message["content"])).to_string()) {
            return Ok(Some(format!("the parts of message {i} as a text, but as they stand")));
        }
    }
    Ok(None)
}

/// Where the content of a message ends behind `start`.
fn end_of_content(text: &str, start: usize, message: &Value) -> Option<usize> {
    let content = message["content"].as_str()?.trim();
    let at = text.get(start..)?.find(content)?;
    Some(start + at + content.len())
}

fn between_marks(marked: &str) -> Written {
    let [open, close] = MARKS;
    let (mut text, mut answers, mut start) = (String::with_capacity(marked.len()), vec![], 0);
    for c in marked.chars() {
        if c == open {
            start = text.len();
        } else if c == close {
            answers.push(Answer { span: start..text.len(), end: End::Exact });
        } else {
            text.push(c);
        }
    }
    Written { text, answers }
}

/// A token: its id, its bytes in the text, and whether it is a special one.
#[derive(Debug, Clone)]
pub(in crate::data) struct PlacedToken {
    pub(in crate::data) id: u32,
    pub(in crate::data) bytes: Range<usize>,
    pub(in crate::data) is_special: bool,
}

/// Whether each token is trained.
pub(super) fn trained(tokens: &[PlacedToken], answers: &[Answer]) -> Vec<bool> {
    let mut trained = vec![false; tokens.len()];
    for Answer { span, end } in answers {
        let is_in =
            |token: &PlacedToken| token.bytes.start < span.end && token.bytes.end > span.start;
        let Some(first) = tokens.iter().position(is_in) else { continue };
        let mut behind = first + tokens[first..].iter().take_while(|token| is_in(token)).count();
        match end {
            End::Exact => {}
            End::LastSpecial => {
                let special = tokens[first..behind].iter().rposition(|token| token.is_special);
                behind = special.map_or(behind, |at| first + at + 1);
            }
            End::NextSpecial => {
                behind += usize::from(tokens.get(behind).is_some_and(|token| token.is_special));
            }
        }
        trained[first..behind].fill(true);
    }
    trained
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::data::Tokenizer;

    /// Token ids and masks of transformers, exactly: `tests/golden/chat/chat.json`.
    #[test]
    fn masks_are_those_of_transformers() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat");
        let file = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let golden: Value = serde_json::from_str(&file("chat.json")).unwrap();
        let lines: Vec<Value> =
            file("chat.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for (name, golden) in golden["tokenizers"].as_object().unwrap() {
            let tokenizer = Tokenizer::from_path(dir.join(name)).unwrap();
            let template = tokenizer.chat_template().unwrap();
            for (case, line) in golden["cases"].as_array().unwrap().iter().zip(&lines) {
                let messages = line["messages"].as_array().unwrap();
                let written = written(template, messages, 0, None).unwrap().unwrap();
                let tokens = tokenizer.encode_placed(&written.text).unwrap();
                let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
                assert_eq!(json!(ids), case["input_ids"], "{name}");
                let mask = trained(&tokens, &written.answers).into_iter().map(u8::from);
                let key = match template.has_marks() {
                    true => "assistant_mask",
                    false => "mask_through_end_token",
                };
                assert_eq!(json!(mask.collect::<Vec<_>>()), case[key], "{name}: {line}");
            }
        }
    }

    /// Qwen 3's template shows the thoughts of the last answer alone: the text before an answer is that of
    /// a shorter conversation, the text after it is not.
    #[test]
    fn a_template_that_writes_last_turns_otherwise_is_understood_or_refused() {
        let source = "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' \
                      %}(thinks){% endif %}{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}\
                      <assistant>{% endif %}";
        let template = ChatTemplate::of_source(source);
        let message = |role, content| json!({ "role": role, "content": content });
        let messages = [
            message("user", "a"),
            message("assistant", "b"),
            message("user", "c"),
            message("assistant", "d"),
        ];
        let found = written(&template, &messages, 0, None).unwrap().unwrap();
        let spans: Vec<_> =
            found.answers.iter().map(|answer| &found.text[answer.span.clone()]).collect();
        assert_eq!(spans, ["b", "(thinks)d</>"]);
        let source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
        let refused = written(&ChatTemplate::of_source(source), &messages, 0, None).unwrap();
        let why = refused.unwrap_err();
        assert!(why.starts_with("the template writes what stands before message 1"), "{why}");
    }
}
