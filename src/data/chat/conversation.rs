//! A row of a dataset as a conversation, in each of the forms that datasets have.

use arrow::datatypes::{Schema, SchemaRef};
use serde_json::{Map, Value, json};

use crate::{
    data::{stage::no_column, values::Row},
    error::{Code, Error, Result},
};

/// The form of the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// A column with a list of messages: `role` and `content`, or ShareGPT's `from` and `value`.
    Messages(String),
    /// `prompt` and the answer: texts, or lists of messages.
    Prompt(String, String),
    /// `instruction`, `input` where there is one, and the answer.
    Instruction(String),
}

/// A conversation, or a text and how it goes on.
#[derive(Debug, PartialEq)]
pub(super) enum Conversation {
    Turns {
        messages: Vec<Value>,
        /// The first message whose answers are trained.
        first_trained: usize,
        tools: Option<Value>,
    },
    Plain {
        prompt: String,
        completion: String,
    },
}

const SYSTEM: &str = "system";

impl Form {
    /// The form that the columns tell, or that of `field`.
    pub(super) fn of(schema: &SchemaRef, field: Option<&str>) -> Result<Self> {
        let has = |name: &str| schema.field_with_name(name).is_ok();
        if let Some(field) = field {
            return match has(field) {
                true => Ok(Self::Messages(field.to_owned())),
                false => Err(no_column(field, schema).option("field")),
            };
        }
        let first = |names: &[&str]| names.iter().find(|name| has(name)).map(|&n| n.to_owned());
        if let Some(name) = first(&["messages", "conversations", "conversation"]) {
            return Ok(Self::Messages(name));
        }
        if let Some(answer) = first(&["completion", "response"]).filter(|_| has("prompt")) {
            return Ok(Self::Prompt("prompt".to_owned(), answer));
        }
        if let Some(answer) = first(&["output", "response"]).filter(|_| has("instruction")) {
            return Ok(Self::Instruction(answer));
        }
        Err(no_form(schema))
    }

    /// The conversation of a row; `templated` says whether texts become messages.
    pub(super) fn read(&self, row: &Row, templated: bool) -> Result<Conversation, String> {
        let tools = tools(row)?;
        let turns = |messages: Vec<Value>, first_trained| {
            Ok(Conversation::Turns { messages, first_trained, tools: tools.clone() })
        };
        match self {
            Self::Messages(name) => turns(with_system(messages(row, name)?, row), 0),
            Self::Prompt(prompt, answer) => match (&row[prompt], &row[answer]) {
                (Value::Array(_), Value::Array(_)) => {
                    let mut all = with_system(messages(row, prompt)?, row);
                    let first_trained = all.len();
                    all.extend(messages(row, answer)?);
                    turns(all, first_trained)
                }
                (Value::String(_), Value::String(_)) => {
                    let (prompt, completion) = (text(row, prompt)?, text(row, answer)?);
                    match templated {
                        true => turns(with_system(exchange(prompt, completion), row), 0),
                        false => Ok(Conversation::Plain { prompt, completion }),
                    }
                }
                _ => Err(format!("\"{prompt}\" and \"{answer}\" must both be texts, or messages")),
            },
            Self::Instruction(answer) => {
                let mut asked = text(row, "instruction")?;
                let input = row.get("input").and_then(Value::as_str).unwrap_or_default();
                if !input.is_empty() {
                    asked = format!("{asked}\n\n{input}");
                }
                let answer = text(row, answer)?;
                match templated {
                    true => turns(with_system(exchange(asked, answer), row), 0),
                    false => Ok(Conversation::Plain {
                        prompt: format!("{asked}\n\n"),
                        completion: answer,
                    }),
                }
            }
        }
    }
}

fn no_form(schema: &Schema) -> Error {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let message = format!("the columns {} are no conversations", names.join(", "));
    Error::new(Code::Data, message)
        .hint("expected messages, conversations, prompt and completion, or instruction and output")
        .hint("name the column of messages with `field`")
}

fn exchange(asked: String, answer: String) -> Vec<Value> {
    vec![
        json!({ "role": "user", "content": asked }),
        json!({ "role": "assistant", "content": answer }),
    ]
}

/// The messages with the row's own system prompt before them.
fn with_system(mut messages: Vec<Value>, row: &Row) -> Vec<Value> {
    let system = row.get(SYSTEM).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(system) = system.filter(|_| !begins_with_system(&messages)) {
        messages.insert(0, json!({ "role": SYSTEM, "content": system }));
    }
    messages
}

/// Whether the first message is a system prompt.
pub(super) fn begins_with_system(messages: &[Value]) -> bool {
    messages.first().is_some_and(|message| message["role"] == SYSTEM)
}

fn text(row: &Row, name: &str) -> Result<String, String> {
    let found = row.get(name).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| format!("\"{name}\" must be a text"))
}

fn messages(row: &Row, name: &str) -> Result<Vec<Value>, String> {
    let Some(Value::Array(list)) = row.get(name) else {
        return Err(format!("\"{name}\" must be a list of messages"));
    };
    if list.is_empty() {
        return Err(format!("\"{name}\" has no message"));
    }
    let message = |(i, message): (usize, &Value)| {
        one(message).map_err(|why| format!("\"{name}\"[{i}] {why}"))
    };
    list.iter().enumerate().map(message).collect()
}

/// One message, under the names of chat templates.
fn one(message: &Value) -> Result<Value, String> {
    let Value::Object(given) = without_nulls(message) else {
        return Err("must be a map with role and content".to_owned());
    };
    if let Some(role) = given.get("role") {
        if !role.is_string() {
            return Err("has a role that is no text".to_owned());
        }
        return Ok(given.into());
    }
    let (Some(from), Some(value)) = (given.get("from").and_then(Value::as_str), given.get("value"))
    else {
        return Err("must have role and content, or from and value".to_owned());
    };
    let role = match from {
        "human" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "function_call" => "assistant",
        "observation" | "function" => "tool",
        other => other,
    };
    Ok(json!({ "role": role, "content": value }))
}

/// A value without the keys that a table adds where some of its rows have them.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let there = map.iter().filter(|(_, value)| !value.is_null());
            let there: Map<_, _> =
                there.map(|(key, value)| (key.clone(), without_nulls(value))).collect();
            there.into()
        }
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// The tools that the assistant may call: a list, or its JSON.
fn tools(row: &Row) -> Result<Option<Value>, String> {
    match row.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => {
            let wrong = |e| format!("\"tools\" is not JSON: {e}");
            serde_json::from_str(text).map(Some).map_err(wrong)
        }
        Some(list) => Ok(Some(without_nulls(list))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn form(names: &[&str]) -> Result<Form> {
        let fields: Vec<_> = names.iter().map(|n| Field::new(*n, DataType::Utf8, true)).collect();
        Form::of(&Arc::new(Schema::new(fields)), None)
    }

    fn turns(form: &Form, row: Value) -> Vec<Value> {
        let Value::Object(row) = row else { panic!("a row") };
        match form.read(&row, true) {
            Ok(Conversation::Turns { messages, .. }) => messages,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_form_is_the_same_conversation() {
        let expected = vec![
            json!({ "role": "user", "content": "2 + 3?" }),
            json!({ "role": "assistant", "content": "5" }),
        ];
        let rows = [
            (
                vec!["messages"],
                json!({ "messages": [
                { "role": "user", "content": "2 + 3?", "tool_calls": null },
                { "role": "assistant", "content": "5" },
            ] }),
            ),
            (
                vec!["conversations"],
                json!({ "conversations": [
                { "from": "human", "value": "2 + 3?" }, { "from": "gpt", "value": "5" },
            ] }),
            ),
            (vec!["prompt", "completion"], json!({ "prompt": "2 + 3?", "completion": "5" })),
            (
                vec!["prompt", "completion"],
                json!({
                    "prompt": [{ "role": "user", "content": "2 + 3?" }],
                    "completion": [{ "role": "assistant", "content": "5" }],
                }),
            ),
            (
                vec!["instruction", "input", "output"],
                json!({
                    "instruction": "2 + 3?", "input": "", "output": "5",
                }),
            ),
        ];
        for (names, row) in rows {
            assert_eq!(turns(&form(&names).unwrap(), row), expected, "{names:?}");
        }
        let with_input = json!({ "instruction": "Sum", "input": "2 3", "output": "5" });
        let asked = &turns(&form(&["instruction", "input", "output"]).unwrap(), with_input)[0];
        assert_eq!(asked["content"], "Sum\n\n2 3");
    }

    #[test]
    fn what_is_no_conversation_is_refused() {
        let e = form(&["text", "label"]).unwrap_err();
        assert_eq!(e.message(), "the columns text, label are no conversations");
        let messages = form(&["messages"]).unwrap();
        let Value::Object(row) = json!({ "messages": [{ "content": "x" }] }) else { panic!() };
        let why = messages.read(&row, true).unwrap_err();
        assert_eq!(why, "\"messages\"[0] must have role and content, or from and value");
    }
}
