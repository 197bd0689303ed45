//! Text of others: of a recipe, a file, a host or a model. It is shown, not performed.
//!
//! A terminal takes control characters for orders: they move the cursor, set the title, write to the
//! clipboard. Others turn the direction of writing, end a line, or cannot be seen. Each is shown as its
//! escape: `\u{1b}`, `\n`.

use std::{fmt, path::Path};

/// A text of others in a place of one line: what ends a line is escaped too.
#[derive(Debug, Clone, Copy)]
pub struct Foreign<'a>(pub &'a str);

impl Foreign<'_> {
    /// Whether it is shown without an escape.
    pub fn is_as_it_is(self) -> bool {
        !self.0.chars().any(is_hidden)
    }
}

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.0, |_| false)
    }
}

/// A path, in a place of one line.
#[derive(Debug, Clone, Copy)]
pub struct ForeignPath<'a>(pub &'a Path);

impl fmt::Display for ForeignPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Foreign(&self.0.to_string_lossy()).fmt(f)
    }
}

/// A value of a file on one line, as JSON, cut where it gets long.
pub fn brief(value: &serde_json::Value) -> String {
    const MOST_CHARS: usize = 60;
    let json = value.to_string();
    match (json.char_indices().nth(MOST_CHARS), value) {
        (None, _) => json,
        (Some(_), serde_json::Value::Array(items)) => format!("a list of {}", items.len()),
        (Some((end, _)), _) => format!("{}...", &json[..end]),
    }
}

/// A text of several lines, whose line ends and tabs stay.
pub fn lines(text: &str) -> String {
    Lines(text).to_string()
}

/// JSON whose strings have each character that is not seen as itself as JSON's own escape.
pub fn json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Outside of strings there are line ends.
        if c == '\n' || !is_hidden(c) {
            shown.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            shown.push_str(&format!("\\u{unit:04x}"));
        }
    }
    shown
}

struct Lines<'a>(&'a str);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.0, |c| c == '\n' || c == '\t')
    }
}

/// As [`lines`], with colours and weights (`ESC [ numbers m`) left in: text of dsr with its own style.
pub fn styled(text: &str) -> String {
    with_styles(text, |style| style)
}

/// As [`lines`], with colours and weights left out: for a file.
pub fn unstyled(text: &str) -> String {
    with_styles(text, |_| "")
}

fn with_styles(text: &str, kept: impl Fn(&str) -> &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        let (before, escape) = rest.split_at(at);
        shown.push_str(&lines(before));
        let inside = &escape[2..];
        let len = inside.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
        let (style, after) = match inside.as_bytes().get(len) {
            Some(b'm') => escape.split_at(2 + len + 1),
            _ => {
                shown.push_str(&lines("\u{1b}"));
                ("", &escape[1..])
            }
        };
        shown.push_str(kept(style));
        rest = after;
    }
    shown.push_str(&lines(rest));
    shown
}

fn escape(f: &mut fmt::Formatter<'_>, text: &str, stays: impl Fn(char) -> bool) -> fmt::Result {
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        if stays(c) || !is_hidden(c) {
            continue;
        }
        f.write_str(&text[plain..at])?;
        write!(f, "{}", c.escape_default())?;
        plain = at + c.len_utf8();
    }
    f.write_str(&text[plain..])
}

/// Whether a character is not seen as itself: it orders the terminal, ends a line, turns the direction of
/// writing, or has no width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{3164}' | '\u{feff}'
            | '\u{ffa0}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_letter_is_shown_as_its_escape() {
        assert_eq!(Foreign("/etc/\u{1b}[2Jx\n\t\r").to_string(), r"/etc/\u{1b}[2Jx\n\t\r");
        assert_eq!(
            Foreign("a\u{202e}b\u{2028}c\u{200b}").to_string(),
            r"a\u{202e}b\u{2028}c\u{200b}"
        );
        assert_eq!(Foreign("Ärger 😀 C:\\x").to_string(), "Ärger 😀 C:\\x");
        assert_eq!(lines("a\n\tb\u{9b}2J"), "a\n\tb\\u{9b}2J");
    }

    #[test]
    fn json_stays_json() {
        let text = "family \u{1f468}\u{200d}\u{1f469} \u{7f}\u{e0001}\n\u{feff}\"\\";
        let escaped = json(&format!("{:#}\n", serde_json::json!([text, { "\u{ad}": 1 }])));
        assert_eq!(escaped, lines(&escaped), "nothing is left to be escaped");
        let read: serde_json::Value = serde_json::from_str(&escaped).unwrap();
        assert_eq!(read, serde_json::json!([text, { "\u{ad}": 1 }]));
    }

    #[test]
    fn a_style_stays_and_nothing_else_that_begins_like_one() {
        assert_eq!(styled("\u{1b}[1;31merror\u{1b}[0m"), "\u{1b}[1;31merror\u{1b}[0m");
        assert_eq!(unstyled("\u{1b}[1;31merror\u{1b}[0m\u{1b}[2J"), "error\\u{1b}[2J");
        for order in ["\u{1b}[2J", "\u{1b}[", "\u{1b}[1;", "\u{1b}]0;t\u{7}", "\u{1b}[1\u{1b}[2K"] {
            assert!(!styled(order).contains(['\u{1b}', '\u{7}']), "{order:?}");
        }
    }
}
