//! What is known of the expression before a dot, without running it.

use std::any::TypeId;

use rhai::{Dynamic, Map};

use super::{Live, names::Names};
use crate::script::{
    check::surface::Kind,
    lexer::{Class, Token},
};

impl Live {
    /// What is known of the expression that the tokens are.
    pub(super) fn known_of(&self, names: &Names, text: &str, tokens: &[Token]) -> Known {
        let mut links = links(text, tokens).into_iter();
        let Some(first) = links.next() else { return Known::Nothing };
        let mut known = match first {
            Link::Name(name) => match self.scope.get(name) {
                Some(value) => Known::Value(value.flatten_clone()),
                None => Known::Nothing,
            },
            Link::Call(name, arguments) => {
                Known::of(names.surface.returns(name, &vec![None; arguments]))
            }
            Link::Text => Known::Kind(TypeId::of::<rhai::ImmutableString>()),
            Link::Number(is_float) => {
                Known::Kind(if is_float { TypeId::of::<f64>() } else { TypeId::of::<i64>() })
            }
            Link::Index => Known::Kind(TypeId::of::<rhai::Array>()),
        };
        for link in links {
            let kind = known.kind();
            known = match link {
                Link::Name(key) => match &known {
                    Known::Value(value) if value.is_map() => {
                        let inner = value.read_lock::<Map>().and_then(|map| map.get(key).cloned());
                        inner.map_or(Known::Nothing, Known::Value)
                    }
                    _ => Known::of(names.surface.returns(&format!("get${key}"), &[kind])),
                },
                Link::Call(name, arguments) => {
                    let mut all = vec![None; arguments + 1];
                    all[0] = kind;
                    Known::of(names.surface.returns(name, &all))
                }
                Link::Index => match &known {
                    Known::Value(value) if value.is_array() => {
                        let first =
                            value.read_lock::<rhai::Array>().and_then(|a| a.first().cloned());
                        first.map_or(Known::Nothing, Known::Value)
                    }
                    _ => Known::Nothing,
                },
                Link::Text | Link::Number(_) => Known::Nothing,
            };
        }
        known
    }
}

/// What is known of an expression.
pub(super) enum Known {
    Value(Dynamic),
    Kind(TypeId),
    Nothing,
}

impl Known {
    fn of(kind: Kind) -> Self {
        kind.map_or(Self::Nothing, Self::Kind)
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Value(value) => Some(value.type_id()),
            Self::Kind(kind) => Some(*kind),
            Self::Nothing => None,
        }
    }
}

/// A part of a chain of members.
enum Link<'a> {
    Name(&'a str),
    /// A call with so many arguments.
    Call(&'a str, usize),
    Index,
    Text,
    Number(bool),
}

/// The parts of the chain that the tokens are; nothing where they are something else.
fn links<'a>(text: &'a str, tokens: &[Token]) -> Vec<Link<'a>> {
    let mut links = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let word = token.of(text);
        match token.class {
            Class::Name | Class::Keyword => {
                let after = tokens.get(at + 1).map_or("", |next| next.of(text));
                if after == "()" {
                    links.push(Link::Call(word, 0));
                    at += 2;
                } else if after == "(" {
                    let (end, arguments) = group(text, tokens, at + 1);
                    links.push(Link::Call(word, arguments));
                    at = end;
                } else {
                    links.push(Link::Name(word));
                    at += 1;
                }
            }
            Class::Text => {
                links.push(Link::Text);
                at += 1;
            }
            Class::Number => {
                links.push(Link::Number(word.contains('.')));
                at += 1;
            }
            Class::Open if word == "[" => {
                links.push(Link::Index);
                at = group(text, tokens, at).0;
            }
            Class::Sign if word == "." || word == "?." => at += 1,
            _ => return Vec::new(),
        }
    }
    links
}

/// The token behind the bracket that opens at `open`, and how many arguments stand in it.
fn group(text: &str, tokens: &[Token], open: usize) -> (usize, usize) {
    let (mut depth, mut commas, mut at) = (0, 0, open);
    while let Some(token) = tokens.get(at) {
        match token.class {
            Class::Open => depth += 1,
            Class::Close => depth -= 1,
            Class::Sign if depth == 1 && token.of(text) == "," => commas += 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    (at, commas + 1)
}
