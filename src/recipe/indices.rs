//! `t[.., 0]`: several indices between brackets, as in Python.
//!
//! Rhai takes one. Before it reads a text, several indices become one value,
//! `t[several_indices([.., 0])]`; places that it reports are counted back to the text as it was written.

use std::ops::Range;

use super::lexer::{Class, Token, interpolations, tokens};

/// The text before and behind a list of indices.
const BEFORE: &str = "several_indices([";
const BEHIND: &str = "])";

/// A part that was added to a text: its place in the result, from 1, and its length.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Insertion {
    line: usize,
    column: usize,
    len: usize,
    /// The characters that were added before it in its line.
    before: usize,
}

/// All parts that were added to a text, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Added(Vec<Insertion>);

impl Added {
    /// The column in the text as it was written.
    pub(crate) fn written_column(&self, line: usize, column: usize) -> usize {
        let behind = self.0.partition_point(|part| (part.line, part.column) < (line, column));
        match self.0[..behind].last() {
            Some(part) if part.line == line => {
                column - part.before - part.len.min(column - part.column)
            }
            _ => column,
        }
    }
}

/// The text with its first line empty if that is a shebang, such as `#!/usr/bin/env -S dsr run`.
fn without_shebang(text: &str) -> &str {
    match text.starts_with("#!") {
        true => text.find('\n').map_or("", |end| &text[end..]),
        false => text,
    }
}

/// The text as Rhai can read it, with one value for each list of indices and without a shebang, and
/// the parts that were added to it.
pub(crate) fn as_values(text: &str) -> (String, Added) {
    let text = without_shebang(text);
    let mut lists = Vec::new();
    find(text, 0, &mut lists);
    let around = |list: &Range<usize>| [(list.start, BEFORE), (list.end, BEHIND)];
    let mut parts: Vec<_> = lists.iter().flat_map(around).collect();
    parts.sort_unstable();
    let mut whole = String::with_capacity(text.len() + parts.len() * BEFORE.len());
    let (mut added, mut at, mut line, mut column, mut before) = (Vec::new(), 0, 1, 1, 0);
    for (place, part) in parts {
        let written = &text[at..place];
        if let Some((lines, last)) = written.rsplit_once('\n') {
            line += lines.matches('\n').count() + 1;
            (column, before) = (1 + last.chars().count(), 0);
        } else {
            column += written.chars().count();
        }
        added.push(Insertion { line, column, len: part.len(), before });
        column += part.len();
        before += part.len();
        whole.push_str(written);
        whole.push_str(part);
        at = place;
    }
    whole.push_str(&text[at..]);
    (whole, Added(added))
}

/// The contents of the brackets of each index with a comma; `offset` is the start of the text.
fn find(text: &str, offset: usize, lists: &mut Vec<Range<usize>>) {
    let all = tokens(text);
    let mut open: Vec<(bool, usize, bool)> = Vec::new();
    let mut last: Option<&Token> = None;
    for token in &all {
        let word = token.of(text);
        match token.class {
            Class::Comment => continue,
            Class::Text => {
                for inner in interpolations(word) {
                    let start = token.range.start + inner.start;
                    find(&word[inner], offset + start, lists);
                }
            }
            Class::Open => {
                let is_index =
                    word == "?[" || (word == "[" && last.is_some_and(|l| ends_a_value(l, text)));
                open.push((is_index, token.range.end, false));
            }
            Class::Close => {
                if let Some((true, start, true)) = open.pop() {
                    lists.push(offset + start..offset + token.range.start);
                }
            }
            Class::Sign if word == "," => {
                if let Some(innermost) = open.last_mut() {
                    innermost.2 = true;
                }
            }
            _ => {}
        }
        last = Some(token);
    }
}

/// Whether a bracket behind this token begins an index.
fn ends_a_value(token: &Token, text: &str) -> bool {
    match token.class {
        Class::Name | Class::Text => true,
        Class::Close => token.of(text) != "}",
        Class::Sign => token.of(text) == "()",
        Class::Keyword => token.of(text) == "this",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_indices_becomes_one_value() {
        for (written, read) in [
            ("t[.., 0]", "t[[.., 0]]"),
            ("t[0, 1..3] = u[1, 2] + v[0]", "t[[0, 1..3]] = u[[1, 2]] + v[0]"),
            ("f()[0, g(1, 2)]?[1, 2].x", "f()[[0, g(1, 2)]]?[[1, 2]].x"),
            ("t[i[0, 1], 2]", "t[[i[[0, 1]], 2]]"),
            ("t[0, -1][2..]", "t[[0, -1]][2..]"),
            ("`a ${t[0, 1]} b`", "`a ${t[[0, 1]]} b`"),
            ("t /* a */ [\n0,\n1]", "t /* a */ [[\n0,\n1]]"),
        ] {
            let read = read.replace("[[", "[several_indices([").replace("]]", "])]");
            assert_eq!(as_values(written).0, read);
        }
    }

    #[test]
    fn arrays_and_single_indices_stay() {
        for text in [
            "let a = [1, 2];",
            "t[0]",
            "t[[0, 1]]",
            "f([1, 2])",
            "|a| [a, 1]",
            "return [1, 2]",
            "for x in [1, 2] { }",
            "if a { } [1, 2]",
            "t[f(1, 2)]",
            "\"t[0, 1]\" // t[0, 1]",
            "t[0, 1",
        ] {
            assert_eq!(as_values(text), (text.to_owned(), Added::default()));
        }
    }

    /// A text may come from anybody: what would take a square of its length does not end.
    #[test]
    fn a_long_line_and_a_deep_text_are_read_in_time() {
        let (text, added) = as_values(&"t[0, 1];".repeat(100_000));
        assert_eq!(added.written_column(1, text.len()), 800_000);
        let deep = format!("{}t[0, 1]{}", "`${".repeat(200_000), "}`".repeat(200_000));
        assert_eq!(as_values(&deep).0, deep);
    }

    #[test]
    fn places_are_those_of_the_text_as_it_was_written() {
        let (text, added) = as_values("let ä = 1;\nlet b = t[ä, 0] + u[1, 2] + x;\n");
        let line = text.lines().nth(1).unwrap();
        let column = |part: &str| line[..line.find(part).unwrap()].chars().count() + 1;
        assert_eq!(added.written_column(2, column("ä, 0")), 11);
        assert_eq!(added.written_column(2, column("+ u")), 17);
        assert_eq!(added.written_column(2, column("+ x")), 27);
        assert_eq!(added.written_column(1, 9), 9);
    }
}
