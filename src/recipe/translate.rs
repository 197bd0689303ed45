//! Rhai's own errors in dsr's words, with what to do about them.

use rhai::{Dynamic, EvalAltResult, LexError, ParseErrorType};

use super::value;
use crate::{
    config::{suggest::nearest, words::of_elsewhere},
    error::{Code, Error},
};

/// The prefix of the names of closures.
pub(crate) const CLOSURE: &str = "anon$";

/// dsr's error for an error that Rhai itself raised.
pub(crate) fn translate(engine: &rhai::Engine, error: &EvalAltResult) -> Error {
    use EvalAltResult as E;
    match error {
        E::ErrorParsing(kind, _) => syntax(kind),
        E::ErrorVariableNotFound(name, _) => unknown_variable(name),
        E::ErrorModuleNotFound(name, _) => {
            Error::new(Code::UnknownFunction, format!("unknown module `{name}`"))
        }
        E::ErrorPropertyNotFound(name, _) => {
            Error::new(Code::UnknownFunction, format!("the map has no key `{name}`"))
                .hint("test for it with `\"key\" in map`, or read it with map.get(\"key\")")
        }
        E::ErrorDotExpr(message, _) => unknown_property(engine, message),
        E::ErrorFunctionNotFound(signature, _) => no_such_function(engine, signature),
        E::ErrorMismatchDataType(expected, found, _)
        | E::ErrorMismatchOutputType(expected, found, _) => mismatch(engine, expected, found),
        E::ErrorIndexingType(name, _) => {
            let (owner, index) = name.split_once(" [").unwrap_or((name, ""));
            let owner = friendly(engine, owner);
            let message = match friendly(engine, index.trim_end_matches(']')) {
                index if index.is_empty() => format!("a value of type {owner} has no elements"),
                index => {
                    format!("a value of type {owner} has no elements by an index of type {index}")
                }
            };
            Error::new(Code::WrongType, message)
        }
        E::ErrorRuntime(value, _) => thrown(value),
        E::ErrorTerminated(..) => Error::interrupted(),
        E::ErrorDataRace(name, _) => {
            let message = format!("{name} is used by the call that runs this function");
            Error::new(Code::CallOrder, message)
                .hint("take it as the function's argument instead of capturing it")
        }
        E::ErrorAssignmentToConstant(name, _) => {
            Error::new(Code::Recipe, format!("`{name}` is a constant and cannot be assigned"))
                .hint("declare it with `let` to change it")
        }
        E::ErrorStackOverflow(_) => Error::new(Code::Recipe, "calls are nested too deeply")
            .hint("a function probably calls itself without an end"),
        E::ErrorArithmetic(message, _) => Error::new(Code::Recipe, lower_first(message)),
        E::ErrorSystem(message, cause) => {
            let message = if message.is_empty() { cause.to_string() } else { message.clone() };
            Error::new(Code::Internal, message)
        }
        E::ErrorArrayBounds(..) | E::ErrorStringBounds(..) | E::ErrorIndexNotFound(..) => {
            Error::new(Code::BadValue, plain(error))
        }
        E::ErrorFor(_) => Error::new(Code::WrongType, "`for` cannot go over this value")
            .hint("it goes over arrays, ranges, strings, maps' keys(), datasets and loaders"),
        _ => Error::new(Code::Recipe, plain(error)),
    }
}

/// The names of all functions that a script can call as they are.
pub(crate) fn function_names(engine: &rhai::Engine) -> Vec<String> {
    function_names_in(engine, "")
}

/// The names of the functions that a script calls as `namespace::name`.
pub(crate) fn function_names_in(engine: &rhai::Engine, namespace: &str) -> Vec<String> {
    let name =
        |f: rhai::FuncInfo<'_>| (f.namespace == namespace).then(|| f.metadata.name.to_string());
    engine.collect_fn_metadata(None, name, true)
}

/// The error for a call of a function that does not exist under any signature.
pub(crate) fn unknown_function(engine: &rhai::Engine, name: &str, own: &[String]) -> Error {
    let known = function_names(engine);
    let names =
        known.iter().chain(own).map(String::as_str).filter(|n| rhai::is_valid_identifier(n));
    let error = Error::new(Code::UnknownFunction, format!("unknown function `{name}`"));
    let near = || nearest(name, names).map(|near| format!("did you mean `{near}`?"));
    error.hint_if(of_elsewhere(name).map(str::to_owned).or_else(near))
}

/// The error for a call `group::name` of a function that is not among `names`.
pub(crate) fn unknown_in_group(group: &str, name: &str, names: &[String]) -> Error {
    let error = Error::new(Code::UnknownFunction, format!("unknown function `{group}::{name}`"));
    error.hint_if(
        nearest(name, names.iter().map(String::as_str))
            .map(|near| format!("did you mean `{group}::{near}`?")),
    )
}

fn syntax(kind: &ParseErrorType) -> Error {
    match kind {
        ParseErrorType::VariableUndefined(name) => unknown_variable(name),
        ParseErrorType::ModuleUndefined(name) => {
            Error::new(Code::UnknownFunction, format!("unknown module `{name}`"))
                .hint(format!("import it first: import \"...\" as {name};"))
        }
        ParseErrorType::Reserved(word) if rhai::is_valid_identifier(word) => {
            Error::new(Code::Syntax, format!("`{word}` is a reserved word"))
                .hint(of_elsewhere(word).unwrap_or("choose another name"))
        }
        ParseErrorType::BadInput(LexError::UnexpectedInput(text)) => {
            Error::new(Code::Syntax, format!("unexpected `{text}`"))
        }
        other => Error::new(Code::Syntax, lower_first(&other.to_string())),
    }
}

fn unknown_variable(name: &str) -> Error {
    let error = Error::new(Code::UnknownFunction, format!("unknown variable `{name}`"));
    match of_elsewhere(name) {
        Some(here) => error.hint(here),
        None => error.hint("declare it with `let`; functions see only their own variables, P:: and constants by global::NAME"),
    }
}

/// Rhai says: Unknown property 'x' - a getter is not registered for type 'T'.
pub(crate) fn unknown_property(engine: &rhai::Engine, message: &str) -> Error {
    let mut quoted = message.split('\'').skip(1).step_by(2);
    let (Some(property), Some(owner)) = (quoted.next(), quoted.next()) else {
        return Error::new(Code::UnknownFunction, lower_first(message));
    };
    let owner = friendly(engine, owner);
    let verb = if message.contains("setter") { "cannot be set on" } else { "does not exist on" };
    let error = Error::new(
        Code::UnknownFunction,
        format!("property `{property}` {verb} a value of type {owner}"),
    );
    let prefix = if message.contains("setter") { "set$" } else { "get$" };
    let names = function_names(engine);
    let known = names.iter().filter_map(|n| n.strip_prefix(prefix)).filter(|n| *n != property);
    if names.iter().any(|n| n == property) {
        return error.hint(format!("`{property}` is a function: write .{property}()"));
    }
    let near = || nearest(property, known).map(|near| format!("did you mean `{near}`?"));
    error.hint_if(of_elsewhere(property).map(str::to_owned).or_else(near))
}

/// Rhai says: name (type, type).
pub(crate) fn no_such_function(engine: &rhai::Engine, signature: &str) -> Error {
    let (name, types) = signature.split_once(" (").unwrap_or((signature, ")"));
    let name = name.rsplit("::").next().unwrap_or(name);
    if let Some(property) = name.strip_prefix("get$").or_else(|| name.strip_prefix("set$")) {
        return unknown_property(
            engine,
            &format!("'{property}' '{}'", types.trim_end_matches(')')),
        );
    }
    let types: Vec<_> = split_types(types.strip_suffix(')').unwrap_or(types))
        .map(|t| friendly(engine, t))
        .collect();
    if name.starts_with(CLOSURE) {
        let message = "a function of a module is called where the module is not imported, or with \
                       another number of arguments than it takes";
        return Error::new(Code::WrongType, message);
    }
    if name.contains('$') {
        let owner = types.first().map_or("this value", String::as_str);
        return Error::new(
            Code::WrongType,
            format!("a value of type {owner} has no elements to index"),
        );
    }
    let mut known = signatures(engine, name, false);
    if known.is_empty() {
        known = signatures(engine, name, true);
    }
    if known.is_empty() {
        return unknown_function(engine, name, &[]);
    }
    if let Some(first) = types.first() {
        // The forms of the value itself come first; the others keep their order.
        let first = format!(": {first}");
        let takes_it = |form: &String| {
            let parameter = form.split(", ").next().unwrap_or(form);
            parameter.trim_end_matches(')').ends_with(&first)
        };
        known.sort_by_key(|form| !takes_it(form));
    }
    let given = types.join(", ");
    let is_word = rhai::is_valid_identifier(name);
    let message = match is_word {
        true => format!("`{name}` cannot be called with ({given})"),
        false => format!("`{name}` cannot combine {}", types.join(" and ")),
    };
    let error = Error::new(Code::WrongType, message).hint_if(of_elsewhere(name));
    let few = known.len() <= 4 && is_word;
    if few { known.iter().fold(error, |e, s| e.hint(format!("it takes {s}"))) } else { error }
}

/// The arguments of the function `name`, in each of its forms: Rhai's own functions only if `standard`.
fn signatures(engine: &rhai::Engine, name: &str, standard: bool) -> Vec<String> {
    let form = |f: rhai::FuncInfo<'_>| {
        (f.metadata.name == name).then(|| format!("{name}({})", parameters(engine, &f)))
    };
    let mut forms = engine.collect_fn_metadata(None, form, standard);
    // Rhai has them in no order.
    forms.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    forms
}

/// The parameters of a function, each with its type for the user.
pub(crate) fn parameters(engine: &rhai::Engine, f: &rhai::FuncInfo<'_>) -> String {
    let parameter = |p: &rhai::Identifier| match p.split_once(": ") {
        Some((name, kind)) => format!("{name}: {}", friendly(engine, kind)),
        None => p.to_string(),
    };
    let taken = f.metadata.params_info.iter().take(f.metadata.num_params).map(parameter);
    taken.collect::<Vec<_>>().join(", ")
}

/// Splits the types of a signature at its commas, but not inside of angle brackets.
fn split_types(types: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    types
        .split(move |c| {
            match c {
                '<' => depth += 1,
                '>' => depth -= 1,
                _ => {}
            }
            c == ',' && depth == 0
        })
        .map(str::trim)
        .filter(|t| !t.is_empty())
}

fn mismatch(engine: &rhai::Engine, expected: &str, found: &str) -> Error {
    let (expected, found) = (friendly(engine, expected), friendly(engine, found));
    let message = match (expected.as_str(), found.as_str()) {
        ("", found) => format!("a value of type {found} cannot be used here"),
        (expected, "" | "any") => format!("expected {expected}"),
        (expected, found) => format!("expected {expected}, found {found}"),
    };
    Error::new(Code::WrongType, message)
}

/// The error for a thrown value: a string is the message; a map may have a `message`, and a `kind`
/// before it.
fn thrown(value: &Dynamic) -> Error {
    if value.is_unit() {
        return Error::new(Code::Recipe, "the recipe threw an error without a message");
    }
    let Ok(map) = value.as_map_ref() else {
        return Error::new(Code::Recipe, value.to_string());
    };
    let text = |key: &str| map.get(key).map(ToString::to_string);
    let rest = || {
        let shown = map.iter().filter(|(key, _)| !matches!(key.as_str(), "kind" | "message"));
        shown.map(|(key, v)| format!("{key}: {v:?}")).collect::<Vec<_>>().join(", ")
    };
    let message = match (text("kind"), text("message")) {
        (Some(kind), Some(message)) => format!("{kind}: {message}"),
        (None, Some(message)) => message,
        (Some(kind), None) if map.len() == 1 => kind,
        (Some(kind), None) => format!("{kind}: {}", rest()),
        (None, None) => rest(),
    };
    Error::new(Code::Recipe, message)
}

/// A type's name for the user.
pub(crate) fn friendly(engine: &rhai::Engine, name: &str) -> String {
    let name = name.trim().trim_start_matches("&mut ").trim_start_matches('&').trim();
    match name {
        "i64" | "INT" => "int".to_owned(),
        "f64" | "FLOAT" => "float".to_owned(),
        "ImmutableString" | "String" | "str" | "string" | "str | ImmutableString | String" => {
            "string".to_owned()
        }
        "()" => "nothing, ()".to_owned(),
        "Dynamic" | "?" => "any".to_owned(),
        other => match engine.map_type_name(other) {
            // Also the cell of a variable that a function has captured.
            mapped if value::short_type(mapped) == "Dynamic" => "any".to_owned(),
            mapped if mapped.contains("::") => value::short_type(mapped).to_owned(),
            "Array" => "array".to_owned(),
            "Map" => "map".to_owned(),
            "FnPtr" | "Fn" => "function".to_owned(),
            range if range.starts_with("Range") => "range".to_owned(),
            mapped => mapped.to_owned(),
        },
    }
}

/// Rhai's own sentence without the position at its end.
fn plain(error: &EvalAltResult) -> String {
    let text = error.to_string();
    let position = format!(" ({})", error.position());
    lower_first(text.strip_suffix(&position).unwrap_or(&text))
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(script: &str) -> Error {
        let engine = rhai::Engine::new();
        let error = engine.run(script).unwrap_err();
        translate(&engine, &error)
    }

    #[test]
    fn thrown_values_keep_their_words() {
        assert_eq!(of("throw \"no more data\"").message(), "no more data");
        assert_eq!(of("throw #{ kind: \"diverged\", step: 3 }").message(), "diverged: step: 3");
        assert_eq!(of("throw #{ kind: \"k\", message: \"m\" }").message(), "k: m");
    }

    #[test]
    fn wrong_arguments_are_told_from_unknown_functions() {
        let error = of("split(1, 2)");
        assert_eq!(error.code(), Code::WrongType);
        assert_eq!(error.message(), "`split` cannot be called with (int, int)");
        let error = of("let a = []; a.pusj(1)");
        assert_eq!(error.message(), "unknown function `pusj`");
        assert_eq!(error.hints(), ["did you mean `push`?"]);
    }

    #[test]
    fn properties_and_operators() {
        assert_eq!(
            of("let x = 1; x.foo").message(),
            "property `foo` does not exist on a value of type int"
        );
        assert_eq!(of("true + #{}").message(), "`+` cannot combine bool and map");
        assert_eq!(of("1 / 0").code(), Code::Recipe);
    }
}
