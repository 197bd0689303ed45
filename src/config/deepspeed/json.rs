//! JSON with the position of every key and value.
//!
//! DeepSpeed reads its file as hjson: comments (`//`, `/* */`, `#`), trailing and missing commas and
//! unquoted keys are fine. A key that stands twice in an object is a fault, as it is there.

use std::{cell::Cell, collections::BTreeMap};

use jsonc_parser::{
    ParseOptions,
    ast::{self, ObjectPropName},
    common::Ranged,
};
use serde_json::Number;

use super::fault::{Fault, Position};
use crate::error::{Code, Error};

const PARSE: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: true,
    allow_trailing_commas: true,
    allow_missing_commas: true,
    allow_single_quoted_strings: true,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// Keys of a file, those of objects within it too; DeepSpeed knows some hundreds.
const MOST_KEYS: usize = 4096;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) data: Data,
}

/// What a node holds.
#[derive(Debug)]
pub(super) enum Data {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Object(Vec<Entry>),
}

/// A key of an object, where it stands, and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) node: Node,
}

impl Node {
    /// The plain value.
    pub(super) fn to_value(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.data {
            Data::Null => Value::Null,
            Data::Bool(b) => Value::Bool(*b),
            Data::Number(n) => Value::Number(n.clone()),
            Data::Text(text) => Value::String(text.clone()),
            Data::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Data::Object(entries) => {
                let value = |e: &Entry| (e.key.clone(), e.node.to_value());
                Value::Object(entries.iter().map(value).collect())
            }
        }
    }
}

/// Parses a file that holds one object. A syntax error is the only fault of its text; duplicate keys
/// and numbers out of range are added to `faults`, and their later value is left out.
pub(super) fn parse(text: &str, faults: &mut Vec<Fault>) -> Result<Vec<Entry>, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = Lines::of(text);
    let masked = without_hash_comments(text);
    let parsed = jsonc_parser::parse_to_ast(&masked, &Default::default(), &PARSE);
    let value = parsed.map_err(|e| syntax_fault(&lines, &e))?.value;
    let at = value.as_ref().map_or(Position { line: 1, column: 1 }, |v| lines.position(v.start()));
    let Some(ast::Value::Object(object)) = value else {
        let message = "a DeepSpeed config is an object: { \"train_batch_size\": 8, ... }";
        return Err(Fault { at: Some(at), error: Error::new(Code::WrongType, message) });
    };
    let keys = count_keys(&object.properties);
    if keys > MOST_KEYS {
        let message = format!("the file has {keys} keys; at most {MOST_KEYS} are read");
        return Err(Fault { at: Some(at), error: Error::new(Code::BadValue, message) });
    }
    Ok(Converter { lines: &lines, faults }.entries(object))
}

fn count_keys(properties: &[ast::ObjectProp<'_>]) -> usize {
    properties.iter().map(|property| 1 + count_keys_of(&property.value)).sum()
}

fn count_keys_of(value: &ast::Value<'_>) -> usize {
    match value {
        ast::Value::Object(object) => count_keys(&object.properties),
        ast::Value::Array(array) => array.elements.iter().map(count_keys_of).sum(),
        _ => 0,
    }
}

fn syntax_fault(lines: &Lines<'_>, e: &jsonc_parser::errors::ParseError) -> Fault {
    let reason = e.kind().to_string();
    let mut letters = reason.chars();
    let first = letters.next().map(|c| c.to_ascii_lowercase());
    let reason: String = first.into_iter().chain(letters).collect();
    let error = Error::new(Code::Syntax, format!("not valid JSON: {reason}"))
        .hint("comments and trailing commas are fine; strings need quotes");
    Fault { at: Some(lines.position(e.range().start)), error }
}

struct Converter<'a> {
    lines: &'a Lines<'a>,
    faults: &'a mut Vec<Fault>,
}

impl Converter<'_> {
    fn entries(&mut self, object: ast::Object<'_>) -> Vec<Entry> {
        let mut seen = BTreeMap::new();
        let mut entries = Vec::new();
        for property in object.properties {
            let at = self.lines.position(match &property.name {
                ObjectPropName::String(name) => name.start(),
                ObjectPropName::Word(name) => name.start(),
            });
            let key = property.name.into_string();
            let node = self.node(property.value);
            if let Some(&Position { line, .. }) = seen.get(&key) {
                let message = format!("the key `{key}` stands here twice: first on line {line}");
                self.fault(at, message);
                continue;
            }
            seen.insert(key.clone(), at);
            entries.push(Entry { key, at, node });
        }
        entries
    }

    fn node(&mut self, value: ast::Value<'_>) -> Node {
        let at = self.lines.position(value.start());
        let data = match value {
            ast::Value::NullKeyword(_) => Data::Null,
            ast::Value::BooleanLit(b) => Data::Bool(b.value),
            ast::Value::StringLit(text) => Data::Text(text.value.into_owned()),
            ast::Value::NumberLit(number) => self.number(at, number.value),
            ast::Value::Array(array) => {
                Data::List(array.elements.into_iter().map(|item| self.node(item)).collect())
            }
            ast::Value::Object(object) => Data::Object(self.entries(object)),
        };
        Node { at, data }
    }

    fn number(&mut self, at: Position, text: &str) -> Data {
        let whole = text.parse::<i64>().map(Number::from).ok();
        let number = whole.or_else(|| Number::from_f64(text.parse().ok()?));
        number.map_or_else(
            || {
                self.fault(at, format!("{text} is no number that a computer can hold"));
                Data::Null
            },
            Data::Number,
        )
    }

    fn fault(&mut self, at: Position, message: String) {
        self.faults.push(Fault { at: Some(at), error: Error::new(Code::BadValue, message) });
    }
}

/// The starts of the lines of a text.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
    /// The byte that was asked for last, and the characters before it in its line.
    last: Cell<(usize, usize)>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        let starts = std::iter::once(0).chain(ends).collect();
        Self { text, starts, last: Cell::default() }
    }

    fn position(&self, byte: usize) -> Position {
        let line = self.starts.partition_point(|&start| start <= byte);
        let start = self.starts[line - 1];
        // Values are asked for in the order of the text: a long line is gone through once.
        let (from, before) = match self.last.get() {
            (last, before) if (start..=byte).contains(&last) => (last, before),
            _ => (start, 0),
        };
        let before =
            before + self.text.get(from..byte).map_or(0, |between| between.chars().count());
        self.last.set((byte, before));
        Position { line, column: before + 1 }
    }
}

/// The text with blanks in place of comments that begin with `#`; every other byte stays where it is.
fn without_hash_comments(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' => string_length(rest, first),
            '#' => {
                let length = rest.find('\n').unwrap_or(rest.len());
                masked.extend(std::iter::repeat_n(' ', length));
                rest = &rest[length..];
                continue;
            }
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            _ => first.len_utf8(),
        };
        masked.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    masked
}

/// Bytes of the string that `text` begins with, quotes included.
fn string_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            // A string ends with its line.
            '\n' => return at,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (serde_json::Value, Vec<String>) {
        let mut faults = Vec::new();
        let entries = parse(text, &mut faults).unwrap_or_else(|f| panic!("{:?}", f.error));
        let node = Node { at: Position { line: 1, column: 1 }, data: Data::Object(entries) };
        (node.to_value(), faults.iter().map(shown).collect())
    }

    fn shown(fault: &Fault) -> String {
        let Position { line, column } = fault.at.unwrap();
        format!("{line}:{column} {}", fault.error.message())
    }

    #[test]
    fn hjson_comments_and_commas_are_fine() {
        let text = "\u{feff}# a \"file\"\n{ // first\n  \"a\": [1, 2e3,], # \u{e9}, \"b\"\n  b: 'x#y' /* # */\n  \"c\": \"\\\"#\", }\n# end";
        let (value, faults) = parsed(text);
        assert_eq!(value, serde_json::json!({ "a": [1, 2000.0], "b": "x#y", "c": "\"#" }));
        assert!(faults.is_empty(), "{faults:?}");
    }

    #[test]
    fn positions_are_lines_and_characters() {
        let text = "{\r\n  /* \u{e9}\u{e9} */ \"\u{e9}\": [null,\n\t7]\n}";
        let entries = parse(text, &mut Vec::new()).unwrap();
        assert_eq!(entries[0].at, Position { line: 2, column: 12 });
        let Data::List(items) = &entries[0].node.data else { panic!("a list") };
        assert_eq!(items[1].at, Position { line: 3, column: 2 });
    }

    #[test]
    fn positions_are_found_in_any_order() {
        let lines = Lines::of("\u{e9}\u{e9}ab\n\u{e9}c");
        for (byte, line, column) in
            [(4, 1, 3), (5, 1, 4), (0, 1, 1), (9, 2, 2), (2, 1, 2), (7, 2, 1)]
        {
            assert_eq!(lines.position(byte), Position { line, column }, "byte {byte}");
        }
    }

    #[test]
    fn a_file_has_a_bounded_number_of_keys() {
        let file = |keys: usize| {
            let keys: String = (0..keys).map(|i| format!("\"k{i}\": 1, ")).collect();
            format!("{{\"a\": [{{{keys}}}]}}")
        };
        assert!(parse(&file(MOST_KEYS - 1), &mut Vec::new()).is_ok());
        let fault = parse(&file(MOST_KEYS), &mut Vec::new()).unwrap_err();
        assert_eq!(shown(&fault), "1:1 the file has 4097 keys; at most 4096 are read");
    }

    #[test]
    fn a_key_that_stands_twice_and_a_number_out_of_range_are_faults() {
        let (value, faults) = parsed("{\"a\": 1,\n \"b\": {\"c\": 1, \"c\": 2},\n \"a\": 1e999}");
        assert_eq!(value["b"]["c"], 1);
        assert_eq!(
            faults,
            [
                "2:16 the key `c` stands here twice: first on line 2",
                "3:7 1e999 is no number that a computer can hold",
                "3:2 the key `a` stands here twice: first on line 1",
            ]
        );
    }

    #[test]
    fn what_cannot_be_parsed_has_its_place() {
        let fault = |text: &str| shown(&parse(text, &mut Vec::new()).unwrap_err());
        assert_eq!(
            fault("{\n \"a\" 1 }"),
            "2:6 not valid JSON: expected colon after the string or word in object property"
        );
        assert_eq!(fault("{\"a\": off}"), "1:7 not valid JSON: unexpected token");
        for text in ["", "[1]", "# nothing"] {
            assert!(fault(text).ends_with("\"train_batch_size\": 8, ... }"), "{text}");
        }
        // Deeper than anyone writes, and no overflow of the stack.
        let deep = "[".repeat(100_000);
        assert!(fault(&format!("{{\"a\": {deep}")).contains("not valid JSON"));
    }
}
