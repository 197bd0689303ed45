//! The options that are written out in a call, read before the recipe runs by the very readers that
//! read them then.

use rhai::{Dynamic, Expr, FnPtr, Map};

use crate::{
    error::{Code, Error, Result},
    script::{
        Callback, api, engine_options,
        error::split,
        params::{self, Parameter},
    },
};

/// Reads a map for its mistakes.
type Reader = fn(&Map) -> Result<()>;

/// A reader that may know the function of a recipe that it reads for.
pub(crate) type Read<'a> = &'a dyn Fn(&Map) -> Result<()>;

/// The functions with a trailing option map, and what reads it.
const READERS: [(&str, Reader); 14] = [
    ("dataset", |map| api::dataset::open_options(map).map(drop)),
    ("decode", |map| api::tokenizer::decode_options(map).map(drop)),
    ("export_hf", |map| api::model::export_options(map).map(drop)),
    ("generate", |map| api::generate::sampling(map).map(drop)),
    ("init_engine", |map| engine_options::read(map, 1, no_function).map(drop)),
    ("load_checkpoint", |map| api::engine::load_options(map).map(drop)),
    ("load_model", |map| api::model::load_options(map).map(drop)),
    ("loader", |map| api::loader::read_options(map).map(drop)),
    ("new_model", |map| api::model::make_options(map).map(drop)),
    ("save_checkpoint", |map| api::engine::save_options(map).map(drop)),
    ("sequential", |map| api::nn::sequential::read(map, no_function).map(drop)),
    ("shuffle", |map| api::dataset::shuffle_options(map).map(drop)),
    ("start_run", |map| api::run::read_options(map).map(drop)),
    ("tokenize", |map| api::dataset::tokenize_options(map).map(drop)),
];

/// A function is there in the run only.
fn no_function(_: FnPtr) -> Result<Callback> {
    Err(Error::new(Code::Internal, "a function is read by the run"))
}

/// Stands for a value that only the run knows.
#[derive(Debug, Clone)]
struct Unseen;

/// The paths in a map of the values that only the run knows.
pub(super) struct Seen {
    unseen: Vec<String>,
    stand_in: Dynamic,
}

/// Reads a map of plain data as the call of `function`, such as `init_engine` on one rank, would
/// read its options.
///
/// # Errors
/// All mistakes of the map, each with the path of its option; [`Code::UnknownFunction`] where there
/// is no function of this name that has options.
pub fn check_options(function: &str, options: &Map) -> Result<()> {
    let Some(read) = reader(function) else {
        bail!(Code::UnknownFunction, "there is no function `{function}` with options");
    };
    read(options)
}

/// The mistakes that `read` finds in the option map that a call ends with, each with its option.
pub(super) fn faults(read: Read<'_>, arguments: &[Expr], parameters: &[Parameter]) -> Vec<Error> {
    let Some(literal @ Expr::Map(..)) = arguments.last() else { return Vec::new() };
    let mut seen = Seen { unseen: Vec::new(), stand_in: Dynamic::from(Unseen) };
    let value = seen.value(literal, "", parameters);
    let Ok(map) = value.as_map_ref() else { return Vec::new() };
    let Err(error) = read(&map) else { return Vec::new() };
    split(error).into_iter().filter(|fault| seen.is_certain(fault)).collect()
}

/// What reads the options of dsr's own `function`.
pub(crate) fn reader(function: &str) -> Option<Reader> {
    READERS.iter().find(|(name, _)| *name == function).map(|(_, read)| *read)
}

/// No option and no word of one: what refuses it says which there are.
const NONE_SUCH: &str = " ";

/// What `type` may be where the map does not say it yet.
const TYPES: [&str; 2] = ["AdamW", "cosine"];

/// The options that the map at `path`, down from the option map that `read` reads, may have; `kind`
/// is its `type`.
pub(crate) fn names(read: Read<'_>, path: &[String], kind: Option<&str>) -> Vec<String> {
    let kinds = [kind].into_iter().chain(TYPES.map(Some));
    let listed = |kind: Option<&str>| {
        let mut map = Map::from([(NONE_SUCH.into(), Dynamic::UNIT)]);
        map.extend(kind.map(|kind| ("type".into(), kind.to_owned().into())));
        let refusal = refusal(read, path, NONE_SUCH, map)?;
        let known = refusal.hints().last()?.split_once(" takes: ")?.1.to_owned();
        Some(known.split(", ").map(str::to_owned).collect())
    };
    kinds.take(if kind.is_some() { 1 } else { 3 }).find_map(listed).unwrap_or_default()
}

/// The words that the option `key` of such a map may be.
pub(crate) fn words(read: Read<'_>, path: &[String], key: &str) -> Vec<String> {
    let map = Map::from([(key.into(), NONE_SUCH.to_owned().into())]);
    let Some(refusal) = refusal(read, path, key, map) else { return Vec::new() };
    let Some((_, rest)) = refusal.message().split_once("must be one of ") else {
        return Vec::new();
    };
    let words = rest.split(", found ").next().unwrap_or(rest);
    words.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Why the option `key` of the map at `path` is refused.
fn refusal(read: Read<'_>, path: &[String], key: &str, map: Map) -> Option<Error> {
    let around =
        |inner: Map, key: &String| Map::from([(key.as_str().into(), Dynamic::from_map(inner))]);
    let error = read(&path.iter().rev().fold(map, around)).err()?;
    let at: Vec<&str> = path.iter().map(String::as_str).chain([key]).collect();
    split(error).into_iter().find(|fault| fault.option_path() == Some(&at.join(".")))
}

impl Seen {
    /// The value of `expr`, with `()` for what only the run knows.
    pub(super) fn of_any_type(expr: &Expr, parameters: &[Parameter]) -> Dynamic {
        Self { unseen: Vec::new(), stand_in: Dynamic::UNIT }.value(expr, "", parameters)
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
