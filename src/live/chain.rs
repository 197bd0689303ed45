//! The value or type of the expression before a dot, without running it.

use std::any::TypeId;

use rhai::{Dynamic, Map};

use super::{names::Names, session::Live};
use crate::{
    recipe::lexer::{Class, Token},
    script::check::ValueType,
};

impl Live {
    /// The value or type of the expression of these tokens, as far as it is known.
    pub(super) fn known_of(&self, names: &Names, text: &str, tokens: &[Token]) -> KnownExpression {
        let mut links = links(text, tokens).into_iter();
        let Some(first) = links.next() else { return KnownExpression::Nothing };
        let mut known = match first {
            Link::Name(name) => match self.scope.get(name) {
                Some(value) => KnownExpression::Value(value.flatten_clone()),
                None => KnownExpression::Nothing,
            },
            Link::Call(name, arguments) => {
                KnownExpression::of(names.surface.returns(name, &vec![None; arguments]))
            }
            Link::Text => KnownExpression::Kind(TypeId::of::<rhai::ImmutableString>()),
            Link::Number(is_float) => KnownExpression::Kind(if is_float {
                TypeId::of::<f64>()
            } else {
                TypeId::of::<i64>()
            }),
            Link::Index => KnownExpression::Kind(TypeId::of::<rhai::Array>()),
        };
        for link in links {
            let kind = known.kind();
            known = match link {
                Link::Name(key) => match &known {
                    KnownExpression::Value(value) if value.is_map() => {
                        let inner = value.read_lock::<Map>().and_then(|map| map.get(key).cloned());
                        inner.map_or(KnownExpression::Nothing, KnownExpression::Value)
                    }
                    _ => KnownExpression::of(names.surface.returns(&format!("get${key}"), &[kind])),
                },
                Link::Call(name, arguments) => {
                    let mut all = vec![None; arguments + 1];
                    all[0] = kind;
                    KnownExpression::of(names.surface.returns(name, &all))
                }
                Link::Index => match &known {
                    KnownExpression::Value(value) if value.is_array() => {
                        let first =
                            value.read_lock::<rhai::Array>().and_then(|a| a.first().cloned());
                        first.map_or(KnownExpression::Nothing, KnownExpression::Value)
                    }
                    _ => KnownExpression::Nothing,
                },
                Link::Text | Link::Number(_) => KnownExpression::Nothing,
            };
        }
        known
    }
}

/// An expression, as far as it is known.
pub(super) enum KnownExpression {
    Value(Dynamic),
    Kind(TypeId),
    Nothing,
}

impl KnownExpression {
    fn of(kind: ValueType) -> Self {
        kind.map_or(Self::Nothing, Self::Kind)
    }

    pub(super) fn kind(&self) -> ValueType {
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

/// The parts of the chain of these tokens; none if they are something else.
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

/// The token behind the bracket that opens at `open`, and the number of arguments in it.
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
