//! The options that are written out in a call, read before the recipe runs by the very readers that
//! read them then.

use rhai::{Dynamic, Expr, Map};

use crate::{
    error::{Code, Error, Result},
    recipe::params::{self, Parameter},
};

/// Reads a map for its mistakes.
pub(super) type Read<'a> = &'a dyn Fn(&Map) -> Result<()>;

/// Stands for a value that only the run knows.
#[derive(Debug, Clone)]
struct Unseen;

/// The paths in a map of the values that only the run knows.
pub(super) struct Seen {
    unseen: Vec<String>,
    stand_in: Dynamic,
}

/// The mistakes that `read` finds in the option map that a call ends with, each with its option.
pub(super) fn faults(read: Read<'_>, arguments: &[Expr], parameters: &[Parameter]) -> Vec<Error> {
    let Some(literal @ Expr::Map(..)) = arguments.last() else { return Vec::new() };
    let mut seen = Seen { unseen: Vec::new(), stand_in: Dynamic::from(Unseen) };
    let value = seen.value(literal, "", parameters);
    let Ok(map) = value.as_map_ref() else { return Vec::new() };
    let Err(error) = read(&map) else { return Vec::new() };
    error.split().into_iter().filter(|fault| seen.is_certain(fault)).collect()
}

impl Seen {
    /// The value of `expr`, with `()` for what only the run knows.
    pub(super) fn of_any_type(expr: &Expr, parameters: &[Parameter]) -> Dynamic {
        Self { unseen: Vec::new(), stand_in: Dynamic::UNIT }.value(expr, "", parameters)
    }

    /// The value of `expr`; `None` where only the run knows it, or a part of it.
    pub(super) fn certain(expr: &Expr, parameters: &[Parameter]) -> Option<Dynamic> {
        let mut seen = Self { unseen: Vec::new(), stand_in: Dynamic::UNIT };
        let value = seen.value(expr, "", parameters);
        seen.unseen.is_empty().then_some(value)
    }

    /// The value of `expr`, which stands at `path` of the map.
    fn value(&mut self, expr: &Expr, path: &str, parameters: &[Parameter]) -> Dynamic {
        match expr {
            Expr::Map(map, _) => {
                let entry = |(key, value): &(rhai::Ident, Expr)| {
                    let path = match path {
                        "" => key.name.to_string(),
                        outer => format!("{outer}.{}", key.name),
                    };
                    (key.name.as_str().into(), self.value(value, &path, parameters))
                };
                Dynamic::from_map(map.0.iter().map(entry).collect())
            }
            Expr::Array(items, _) => {
                let items = items.iter().enumerate();
                let item = |(i, item)| self.value(item, &format!("{path}[{i}]"), parameters);
                Dynamic::from_array(items.map(item).collect())
            }
            Expr::Variable(..) => match params::used(expr, parameters) {
                Some(parameter) => parameter.value.clone(),
                None => self.unseen(path),
            },
            other => match other.get_literal_value(None) {
                Some(value) if !value.is_fnptr() => value,
                _ => self.unseen(path),
            },
        }
    }

    fn unseen(&mut self, path: &str) -> Dynamic {
        self.unseen.push(path.to_owned());
        self.stand_in.clone()
    }

    /// Whether a fault is one whatever the unseen values are. A value that does not fit may be the
    /// fault of another that is not known.
    fn is_certain(&self, fault: &Error) -> bool {
        let path = fault.option_path().unwrap_or_default();
        let within = |outer: &String| {
            path.strip_prefix(outer.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        match fault.code() {
            Code::UnknownOption => true,
            Code::WrongType | Code::Missing => !self.unseen.iter().any(within),
            _ => self.unseen.is_empty(),
        }
    }
}
