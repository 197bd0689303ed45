//! Plain data as a Rhai literal.

use std::fmt::Write;

use serde_json::{Map, Value};

/// A map up to this many characters stands on one line.
const LINE: usize = 96;
const INDENT: usize = 4;

/// The literal of a map of options, whose own keys stand on a line each.
pub fn options(map: &Map<String, Value>) -> String {
    spread(map, 0)
}

/// The literal of a value that begins at `column` of a line with this indentation. A map that is too
/// long for the line is spread out.
fn literal(value: &Value, column: usize, indent: usize) -> String {
    let line = on_one_line(value);
    match value {
        Value::Object(map) if column + line.chars().count() > LINE => spread(map, indent),
        _ => line,
    }
}

fn spread(map: &Map<String, Value>, indent: usize) -> String {
    if map.is_empty() {
        return "#{}".to_owned();
    }
    let inner = indent + INDENT;
    let mut text = "#{\n".to_owned();
    for (name, value) in map {
        let name = self::name(name);
        let value = literal(value, inner + name.chars().count() + ": ,".len(), inner);
        let _ = writeln!(text, "{:inner$}{name}: {value},", "");
    }
    let _ = write!(text, "{:indent$}}}", "");
    text
}

fn on_one_line(value: &Value) -> String {
    match value {
        Value::Null => "()".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.to_string(),
            None => format!("{:?}", number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(on_one_line).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) if map.is_empty() => "#{}".to_owned(),
        Value::Object(map) => {
            let entry =
                |(key, value): (&String, &Value)| format!("{}: {}", name(key), on_one_line(value));
            let entries: Vec<_> = map.iter().map(entry).collect();
            format!("#{{ {} }}", entries.join(", "))
        }
    }
}

/// A key, in quotes unless it is a name.
fn name(key: &str) -> String {
    let is_word = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match is_word && rhai::is_valid_function_name(key) {
        true => key.to_owned(),
        false => quoted(key),
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::recipe::value;

    #[test]
    fn it_is_written_as_people_write_it() {
        let Value::Object(map) = json!({
            "micro_batch_size": 2,
            "optimizer": { "type": "AdamW", "lr": 1e-5, "betas": [0.9, 0.95], "eps": 1.0 },
            "if": {}, "a b": null,
        }) else {
            panic!("an object")
        };
        assert_eq!(
            options(&map),
            "#{\n    micro_batch_size: 2,\n    \
             optimizer: #{ type: \"AdamW\", lr: 1e-5, betas: [0.9, 0.95], eps: 1.0 },\n    \
             \"if\": #{},\n    \"a b\": (),\n}"
        );
    }

    #[test]
    fn a_long_map_is_spread_out() {
        let inner: Map<_, _> = (0..12).map(|i| (format!("option_{i}"), json!(i))).collect();
        let text = options(&Map::from_iter([("map".to_owned(), Value::Object(inner))]));
        assert!(text.starts_with("#{\n    map: #{\n        option_0: 0,\n"), "{text}");
        assert!(text.ends_with("\n        option_11: 11,\n    },\n}"), "{text}");
        assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
    }

    fn data() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>()
                .prop_filter("rhai has no literal of it", |i| *i > i64::MIN)
                .prop_map(Value::from),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn rhai_reads_back_what_was_written(data in data()) {
            let map = Map::from_iter([("data".to_owned(), data)]);
            let text = options(&map);
            let read = rhai::Engine::new().eval::<rhai::Dynamic>(&text);
            let read = read.map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
            // Rhai's maps are ordered by their keys.
            let ordered = |value: &Value| value::from_json(value.clone()).to_string();
            prop_assert_eq!(ordered(&value::to_json(&read).unwrap()), ordered(&Value::Object(map)));
        }
    }
}
