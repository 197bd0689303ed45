//! The context of the cursor in a text that is being typed, by the tokens before it.

use std::collections::BTreeMap;

use crate::recipe::lexer::{Class, Token};

/// The context of the cursor.
pub(super) enum CursorContext {
    /// In a text, which may be the value of an option: the call, the keys down to its map, its key.
    InText {
        typed: String,
        key: Option<(Call, Vec<String>, String)>,
    },
    Member {
        receiver: Vec<Token>,
    },
    InModule {
        module: String,
    },
    Key {
        call: Call,
        path: Vec<String>,
    },
    Name,
    Nothing,
}

/// The call of a function.
pub(super) struct Call {
    /// The function, with its module.
    pub(super) name: String,
    /// The first argument, where it is a text.
    pub(super) first: Option<String>,
}

/// The cursor in a text.
pub(super) struct Cursor<'a> {
    pub(super) text: &'a str,
    /// The start of the word at the cursor, and the part of the word before the cursor.
    pub(super) start: usize,
    pub(super) typed: &'a str,
    /// The function whose argument the cursor is in.
    pub(super) callee: Option<&'a str>,
    pub(super) context: CursorContext,
    /// Words of the map around the cursor: key and text of a value.
    pub(super) beside: BTreeMap<String, String>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str, all: &[Token], at: usize) -> Self {
        let before: Vec<_> = all.iter().filter(|token| token.range.start < at).cloned().collect();
        let mut cursor = Self {
            text,
            start: at,
            typed: "",
            callee: None,
            context: CursorContext::Name,
            beside: BTreeMap::new(),
        };
        let Some((last, rest)) = before.split_last() else { return cursor };
        let touches = last.range.end >= at;
        match last.class {
            Class::Comment if touches || !last.closed => cursor.context = CursorContext::Nothing,
            Class::Text if last.range.end > at || !last.closed => {
                let quote = last.of(text).chars().next().map_or(1, char::len_utf8);
                cursor.start = (last.range.start + quote).min(at);
                cursor.typed = &text[cursor.start..at];
                let typed = cursor.typed.to_owned();
                cursor.context = CursorContext::InText { typed, key: option_of(text, rest) };
                cursor.callee = callee(text, rest);
            }
            Class::Name | Class::Keyword if touches => {
                cursor.start = last.range.start;
                cursor.typed = &text[cursor.start..at];
                cursor.behind(rest, all);
            }
            Class::Number if touches => cursor.context = CursorContext::Nothing,
            _ => cursor.behind(&before, all),
        }
        cursor
    }

    /// Finds the context by the tokens before the word.
    fn behind(&mut self, before: &[Token], all: &[Token]) {
        let text = self.text;
        let Some((last, rest)) = before.split_last() else { return };
        match last.of(text) {
            "." | "?." => {
                self.context = CursorContext::Member { receiver: receiver(text, rest) };
            }
            "::" => {
                let module = rest.last().map_or("", |token| token.of(text));
                self.context = CursorContext::InModule { module: module.to_owned() };
            }
            "#{" | "," => {
                if let Some((call, path, open)) = map_path(text, before) {
                    self.beside = values_beside(text, all, open);
                    self.context = CursorContext::Key { call, path };
                }
            }
            "let" | "const" | "fn" | "as" => self.context = CursorContext::Nothing,
            _ => {}
        }
    }
}

/// The option that has the text behind `before` as its value.
fn option_of(text: &str, before: &[Token]) -> Option<(Call, Vec<String>, String)> {
    let (colon, rest) = before.split_last()?;
    let (key, rest) = rest.split_last()?;
    let (call, path, _) = (colon.of(text) == ":").then(|| map_path(text, rest))??;
    Some((call, path, key.of(text).trim_matches('"').to_owned()))
}

/// The name of the function in whose brackets the text behind `before` stands.
fn callee<'a>(text: &'a str, before: &[Token]) -> Option<&'a str> {
    let mut depth = 0;
    for (i, token) in before.iter().enumerate().rev() {
        match token.class {
            Class::Close => depth += 1,
            Class::Open if depth > 0 => depth -= 1,
            Class::Open => {
                let name = before.get(i.checked_sub(1)?)?;
                return (name.class == Class::Name).then(|| name.of(text));
            }
            Class::Keyword if depth == 0 && token.of(text) == "import" => return Some("import"),
            _ => {}
        }
    }
    None
}

/// The chain of members that ends with the last token.
fn receiver(text: &str, before: &[Token]) -> Vec<Token> {
    let mut at = before.len();
    let mut wants_part = true;
    while at > 0 {
        let token = &before[at - 1];
        let word = token.of(text);
        match token.class {
            Class::Close if wants_part && word != "}" => {
                let mut depth = 0;
                while at > 0 {
                    at -= 1;
                    match before[at].class {
                        Class::Close => depth += 1,
                        Class::Open => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
                // The name of the call, or the value that is indexed.
                let has_more = at > 0
                    && (before[at - 1].class == Class::Name
                        || (before[at].of(text) == "[" && before[at - 1].class == Class::Close));
                wants_part = has_more;
            }
            Class::Sign if wants_part && word == "()" => at -= 1,
            Class::Name | Class::Text | Class::Number if wants_part => {
                at -= 1;
                wants_part = false;
            }
            Class::Sign if !wants_part && (word == "." || word == "?.") => {
                at -= 1;
                wants_part = true;
            }
            _ => break,
        }
    }
    before[at..].to_vec()
}

/// The call whose option map the last token is in, the keys down to it, and the token that opens the
/// innermost map.
fn map_path(text: &str, before: &[Token]) -> Option<(Call, Vec<String>, usize)> {
    let (mut depth, mut path, mut innermost) = (0, Vec::new(), None);
    for (i, token) in before.iter().enumerate().rev() {
        match token.class {
            Class::Close => depth += 1,
            Class::Open if depth > 0 => depth -= 1,
            Class::Open => match token.of(text) {
                "#{" => {
                    innermost.get_or_insert(token.range.start);
                    let key = before[..i].split_last().filter(|(colon, _)| colon.of(text) == ":");
                    if let Some((_, rest)) = key {
                        path.insert(0, rest.last()?.of(text).trim_matches('"').to_owned());
                    }
                }
                "(" => {
                    let name = called(text, &before[..i])?;
                    let first = before.get(i + 1).filter(|token| token.class == Class::Text);
                    let first =
                        first.map(|token| token.of(text).trim_matches(['"', '`']).to_owned());
                    return Some((Call { name, first }, path, innermost?));
                }
                _ => return None,
            },
            _ => {}
        }
    }
    None
}

/// The name of the function that the tokens end with, with that of its module.
fn called(text: &str, before: &[Token]) -> Option<String> {
    let (name, rest) = before.split_last()?;
    let name = name.of(text);
    Some(match rest {
        [.., module, colons] if colons.of(text) == "::" => format!("{}::{name}", module.of(text)),
        _ => name.to_owned(),
    })
}

/// Keys of the map that opens at byte `open`, with the texts that are their values.
fn values_beside(text: &str, all: &[Token], open: usize) -> BTreeMap<String, String> {
    let mut depth = 0;
    let mut found = BTreeMap::new();
    let inside = all.iter().skip_while(|token| token.range.start < open);
    let mut last: [Option<&Token>; 2] = [None, None];
    for token in inside {
        match token.class {
            Class::Open => depth += 1,
            Class::Close => depth -= 1,
            Class::Sign if depth == 1 && token.of(text) == ":" => {
                if let Some(key) = last[1] {
                    found.insert(key.of(text).trim_matches('"').to_owned(), String::new());
                }
            }
            Class::Text if depth == 1 => {
                if let [Some(key), Some(colon)] = last
                    && colon.of(text) == ":"
                {
                    let value = token.of(text).trim_matches('"').to_owned();
                    found.insert(key.of(text).trim_matches('"').to_owned(), value);
                }
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        last = [last[1], Some(token)];
    }
    found
}
