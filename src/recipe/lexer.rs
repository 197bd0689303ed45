//! The tokens of a text, also of an input that is typed: for indices, colours, brackets, completion, and
//! the question whether more lines belong to it.
//!
//! Rhai's own tokenizer stops at the first fault, and a text that is being typed has faults most of the
//! time. This one goes on, and tells of each token whether it is closed.

use std::ops::Range;

/// The class of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `// ...` or `/* ... */`.
    Comment,
    /// Text in quotes, with its interpolations.
    Text,
    /// A number.
    Number,
    /// A word of the language.
    Keyword,
    /// A name.
    Name,
    /// A bracket that opens: `(`, `[`, `?[`, `{`, `#{`.
    Open,
    /// A bracket that closes.
    Close,
    /// Any other character that is no blank.
    Sign,
}

/// A stretch of the text, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its class.
    pub class: Class,
    /// Its bytes.
    pub range: Range<usize>,
    /// False for text or a comment whose end is missing.
    pub closed: bool,
}

impl Token {
    /// The token's text.
    pub fn of<'a>(&self, text: &'a str) -> &'a str {
        &text[self.range.clone()]
    }
}

/// The words of the language, without those that it only reserves.
pub const KEYWORDS: [&str; 26] = [
    "as", "break", "catch", "const", "continue", "do", "else", "export", "false", "fn", "for",
    "global", "if", "import", "in", "let", "loop", "private", "return", "switch", "this", "throw",
    "true", "try", "until", "while",
];

/// Signs of more than one character; longer ones first.
const SIGNS: [&str; 30] = [
    "<<=", ">>=", "**=", "..=", "===", "!==", "::", "=>", "->", "==", "!=", "<=", ">=", "&&", "||",
    "??", "?.", "..", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<", ">>", "**", "()",
];

/// The most texts within texts; Rhai takes fewer.
const DEEPEST: usize = 64;

/// The tokens of a text, blanks left out.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let (class, len, closed) = token(&text[at..], first, 0);
        found.push(Token { class, range: at..at + len, closed });
        at += len;
    }
    found
}

/// The class of the first token of `rest`, its length, and whether it is closed.
fn token(rest: &str, first: char, depth: usize) -> (Class, usize, bool) {
    if rest.starts_with("//") {
        return (Class::Comment, rest.find('\n').unwrap_or(rest.len()), true);
    }
    if rest.starts_with("/*") {
        let (len, closed) = block_comment(rest);
        return (Class::Comment, len, closed);
    }
    if let Some((len, closed)) = raw_text(rest) {
        return (Class::Text, len, closed);
    }
    match first {
        '"' | '\'' => {
            let (len, closed) = quoted(rest, first);
            (Class::Text, len, closed)
        }
        '`' => {
            let (len, closed) = interpolated(rest, depth, &mut |_| ());
            (Class::Text, len, closed)
        }
        '#' if rest.starts_with("#{") => (Class::Open, 2, true),
        '?' if rest.starts_with("?[") => (Class::Open, 2, true),
        '(' if rest.starts_with("()") => (Class::Sign, 2, true),
        '(' | '[' | '{' => (Class::Open, 1, true),
        ')' | ']' | '}' => (Class::Close, 1, true),
        '0'..='9' => (Class::Number, number(rest), true),
        first if first.is_alphabetic() || first == '_' => {
            let len = word(rest);
            let class = if KEYWORDS.contains(&&rest[..len]) { Class::Keyword } else { Class::Name };
            (class, len, true)
        }
        first => {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            (Class::Sign, sign.map_or(first.len_utf8(), |sign| sign.len()), true)
        }
    }
}

/// The length of the name that the text begins with.
pub fn word(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

fn number(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut len = 0;
    while let Some(byte) = bytes.get(len) {
        let next = bytes.get(len + 1);
        let goes_on = match byte {
            // `1..3` is a range, `1.max(2)` a call.
            b'.' => next.is_none_or(|n| !n.is_ascii_alphabetic() && *n != b'.'),
            b'+' | b'-' => {
                let is_exponent = matches!(bytes[len - 1], b'e' | b'E') && !rest.starts_with("0x");
                is_exponent && next.is_some_and(u8::is_ascii_digit)
            }
            byte => byte.is_ascii_alphanumeric() || *byte == b'_',
        };
        if !goes_on {
            break;
        }
        len += 1;
    }
    len
}

/// Block comments nest.
fn block_comment(rest: &str) -> (usize, bool) {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return (at, true);
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    (rest.len(), false)
}

/// `#"..."#`, with any number of signs.
fn raw_text(rest: &str) -> Option<(usize, bool)> {
    let signs = rest.len() - rest.trim_start_matches('#').len();
    if signs == 0 || !rest[signs..].starts_with('"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(signs));
    let inside = &rest[signs + 1..];
    Some(match inside.find(&end) {
        Some(at) => (signs + 1 + at + end.len(), true),
        None => (rest.len(), false),
    })
}

/// Text that ends at its quote or, without one, with its line, which a backslash takes to the next.
fn quoted(rest: &str, quote: char) -> (usize, bool) {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' => return (at, false),
            c if c == quote => return (at + 1, true),
            _ => {}
        }
    }
    (rest.len(), false)
}

/// The ranges of the expressions in `${ }` of the text `token`, without their brackets.
pub(crate) fn interpolations(token: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    if token.starts_with('`') {
        interpolated(token, 0, &mut |range| found.push(range));
    }
    found
}

/// Text in backticks; the content of `${ }` may hold text again.
fn interpolated(rest: &str, depth: usize, found: &mut dyn FnMut(Range<usize>)) -> (usize, bool) {
    if depth > DEEPEST {
        return (rest.len(), false);
    }
    let mut at = 1;
    while let Some(c) = rest[at..].chars().next() {
        if rest[at..].starts_with("``") {
            at += 2;
        } else if c == '`' {
            return (at + 1, true);
        } else if rest[at..].starts_with("${") {
            let (len, closed) = expression(&rest[at + 2..], depth + 1);
            at += 2 + len;
            if !closed {
                return (rest.len(), false);
            }
            found(at - len..at - 1);
        } else {
            at += c.len_utf8();
        }
    }
    (rest.len(), false)
}

/// The content of `${ }` with its closing bracket.
fn expression(text: &str, within: usize) -> (usize, bool) {
    let (mut depth, mut at) = (1, 0);
    while let Some(first) = text[at..].chars().next() {
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let (class, len, closed) = token(&text[at..], first, within);
        at += len;
        match class {
            Class::Open => depth += 1,
            Class::Close => depth -= 1,
            _ if !closed => return (text.len(), false),
            _ => {}
        }
        if depth == 0 {
            return (at, true);
        }
    }
    (text.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        tokens(text).iter().map(|token| token.of(text)).collect()
    }

    #[test]
    fn a_text_is_taken_apart() {
        let text = "let x = #{ a: 1.5e-3, b: [..] }; // end";
        let expected = [
            "let", "x", "=", "#{", "a", ":", "1.5e-3", ",", "b", ":", "[", "..", "]", "}", ";",
            "// end",
        ];
        assert_eq!(words(text), expected);
        assert_eq!(words("0..3"), ["0", "..", "3"]);
        assert_eq!(words("1.max(2)"), ["1", ".", "max", "(", "2", ")"]);
        assert_eq!(words("x.y()"), ["x", ".", "y", "()"]);
    }

    #[test]
    fn text_holds_what_stands_in_it() {
        for text in [
            r#""a \" // b""#,
            "`a ${x + `b ${1}`} c`",
            "#\"raw \" \"#",
            "`a `` b`",
            "/* a /* b */ c */",
        ] {
            assert_eq!(words(text), [text]);
            assert!(tokens(text)[0].closed, "{text}");
        }
    }

    #[test]
    fn what_is_not_closed_says_so() {
        for text in ["\"abc", "`a ${", "/* a /* b */", "#\"a\""] {
            assert!(!tokens(text)[0].closed, "{text}");
        }
        assert_eq!(words("\"abc\nx"), ["\"abc", "x"]);
    }
}
