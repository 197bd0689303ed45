//! Reads Rust well enough to apply the law: code, comments and strings are told apart, paths and
//! words found. Nothing is resolved.

/// Rust taken apart, line by line: blanks stand where the other part or a string was.
pub(super) struct Source {
    pub(super) code: Vec<String>,
    pub(super) comments: Vec<String>,
    /// The line on which the unit tests begin.
    pub(super) tests_at: usize,
}

impl Source {
    pub(super) fn of(text: &str) -> Self {
        let (mut code, mut comments) = (String::new(), String::new());
        let mut rest = text;
        while !rest.is_empty() {
            let (length, kind) = token(rest, code.ends_with(is_name));
            let (part, after) = rest.split_at(length);
            let blank: String = part.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            code.push_str(if kind == Token::Code { part } else { &blank });
            comments.push_str(if kind == Token::Comment { part } else { &blank });
            rest = after;
        }
        let lines = |text: String| text.split('\n').map(str::to_owned).collect();
        Self { code: lines(code), comments: lines(comments), tests_at: lines_before_tests(text) }
    }
}

/// The first names after `krate::` in code, those in `krate::{...}` too, with their lines.
pub(super) fn roots(code: &[String], krate: &str) -> Vec<(usize, String)> {
    let text = code.join("\n");
    let start = format!("{krate}::");
    let mut found = Vec::new();
    for (at, _) in text.match_indices(&start) {
        if text[..at].ends_with(is_name) || text[..at].ends_with("::") {
            continue;
        }
        let mut depth = 0;
        let mut expected = true;
        let rest = at + start.len();
        for (offset, c) in text[rest..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => expected = true,
                _ if is_name(c) && depth <= 1 && expected => {
                    let name: String =
                        text[rest + offset..].chars().take_while(|&c| is_name(c)).collect();
                    let line = text[..rest + offset].matches('\n').count();
                    found.push((line, name));
                    expected = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// True where `word` stands in `line` and is no part of a longer name.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let after = &line[at + word.len()..];
        let open_end = word.ends_with(is_name) && after.starts_with(is_name);
        !line[..at].ends_with(is_name) && !open_end
    })
}

pub(super) fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

pub(super) fn lines_before_tests(text: &str) -> usize {
    text.lines().take_while(|line| !is_tests(line)).count()
}

fn is_tests(line: &str) -> bool {
    line.starts_with("mod tests {") || line.ends_with(" mod tests {")
}

#[derive(PartialEq)]
enum Token {
    Code,
    Comment,
    Text,
}

/// The length and kind of what `rest` begins with; `in_name` when a name runs into it.
fn token(rest: &str, in_name: bool) -> (usize, Token) {
    let to = |end: Option<usize>| end.unwrap_or(rest.len());
    if rest.starts_with("//") {
        return (to(rest.find('\n')), Token::Comment);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), Token::Comment);
    }
    if !in_name && let Some(length) = raw_string(rest) {
        return (length, Token::Text);
    }
    if rest.starts_with('"') {
        return (quoted(rest, '"'), Token::Text);
    }
    // A character, not a lifetime: 'x' or an escape.
    let mut ahead = rest.chars().skip(1);
    if rest.starts_with('\'') && (ahead.next() == Some('\\') || ahead.next() == Some('\'')) {
        return (quoted(rest, '\''), Token::Text);
    }
    (rest.chars().next().map_or(0, char::len_utf8), Token::Code)
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `r"..."`, `br#"..."#` and the like.
fn raw_string(rest: &str) -> Option<usize> {
    let after_prefix = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let body = after_prefix.trim_start_matches('#');
    let hashes = after_prefix.len() - body.len();
    let inside = body.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(rest.len() - inside.len() + length)
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
        } else {
            at += 1;
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}
