//! Completion of a text that is being typed.
//!
//! The tokens before the cursor tell its context: in a text, behind a dot, behind `::`, at a key of an
//! option map, or at a name. Nothing is run: the first of a chain of members is a variable of the
//! session, and the others have the types of the metadata.

use rhai::{Dynamic, Map};

use super::{
    chain::KnownExpression,
    cursor::{Call, Cursor, CursorContext},
    help::shortened,
    names::{Names, is_map},
    session::Live,
};
use crate::{
    fs::Place,
    model::ModelConfig,
    recipe::{
        embedded::STDLIB,
        lexer::{Class, KEYWORDS, Token, tokens},
        params::{self, PARAMETERS},
        value::describe,
    },
    script::check::{OptionReader, OwnOptions},
};

/// A completion.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The text from the start of the completion on.
    pub text: String,
    /// Its help, in a line.
    pub help: String,
}

/// All completions at a byte of the text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// The first byte that is replaced.
    pub start: usize,
    /// In order, each text once.
    pub candidates: Vec<Candidate>,
}

/// Functions of the language that are in no list.
const BUILT_IN: [(&str, &str); 3] = [
    ("print", "(value)  Prints a value on a line"),
    ("debug", "(value)  Prints a value with the place of the call"),
    ("type_of", "(value)  Returns the name of its type"),
];

/// The names within dsr that a function takes.
fn embedded(function: &str) -> Vec<&'static str> {
    match function {
        "dataset" => vec!["dsr:austen"],
        "tokenizer" => vec!["dsr:gpt2"],
        "new_model" => ModelConfig::names(),
        _ => Vec::new(),
    }
}

impl Live {
    /// The completions of `text` at byte `at`.
    pub fn complete(&self, text: &str, at: usize) -> Completion {
        let all = tokens(text);
        let names = self.names();
        let cursor = Cursor::new(text, &all, at);
        let mut found = match &cursor.context {
            CursorContext::InText { typed, key: Some((call, path, key)) } => {
                let reader = self.reader(call);
                let kind = cursor.beside.get("type").map(String::as_str);
                let words = reader.map(|reader| reader.words(path, key, kind));
                let words = words.unwrap_or_default();
                match words.is_empty() {
                    true => self.files(&cursor, typed),
                    false => words
                        .into_iter()
                        .map(|text| Candidate { text: text.to_owned(), help: String::new() })
                        .collect(),
                }
            }
            CursorContext::InText { typed, key: None } => self.files(&cursor, typed),
            CursorContext::Member { receiver } => self.members(&names, &cursor, receiver),
            CursorContext::InModule { module } => self.of_module(&names, module),
            CursorContext::Key { call, path } => self.keys(call, path, &cursor),
            CursorContext::Name => self.words(&names, text, &all, at),
            CursorContext::Nothing => Vec::new(),
        };
        found.retain(|candidate| candidate.text.starts_with(cursor.typed));
        found.sort();
        found.dedup_by(|a, b| a.text == b.text);
        Completion { start: cursor.start, candidates: found }
    }

    fn of_module(&self, names: &Names, module: &str) -> Vec<Candidate> {
        if module == PARAMETERS {
            let help = |p: &params::Parameter| format!("{}  {}", p.default_text(), p.help);
            let candidate =
                |p: &params::Parameter| Candidate { text: p.name.clone(), help: help(p) };
            return self.parameters.iter().map(candidate).collect();
        }
        names.functions(module).iter().map(|f| called(&f.name, &f.help)).collect()
    }

    /// Members of the value before the dot.
    fn members(&self, names: &Names, cursor: &Cursor<'_>, receiver: &[Token]) -> Vec<Candidate> {
        let known = self.known_of(names, cursor.text, receiver);
        let Some(kind) = known.kind() else { return Vec::new() };
        let mut found: Vec<_> = names
            .members(kind)
            .into_iter()
            .map(|f| match f.is_property {
                true => Candidate { text: f.name.clone(), help: f.help.clone() },
                false => called(&f.name, &f.help),
            })
            .collect();
        if let KnownExpression::Value(value) = &known
            && is_map(kind)
            && let Some(map) = value.read_lock::<Map>()
        {
            let key = |(key, value): (&rhai::Identifier, &Dynamic)| Candidate {
                text: key.to_string(),
                help: describe(value),
            };
            found.extend(map.iter().map(key).filter(|c| rhai::is_valid_identifier(&c.text)));
        }
        found
    }

    /// The options of a call that its map does not have yet.
    fn keys(&self, call: &Call, path: &[String], cursor: &Cursor<'_>) -> Vec<Candidate> {
        let kind = cursor.beside.get("type").map(String::as_str);
        let Some(reader) = self.reader(call) else { return Vec::new() };
        let help = |name: &str| match reader.help(path, name, kind) {
            Some(help) => shortened(&help),
            None => self.option_help(&call.name, name),
        };
        let names = reader.names(path, kind).into_iter();
        let missing = names.filter(|name| !cursor.beside.contains_key(name));
        missing.map(|name| Candidate { help: help(&name), text: format!("{name}: ") }).collect()
    }

    /// The reader of the options of `call`: a function of the session, of a module, or of dsr.
    fn reader(&self, call: &Call) -> Option<OptionReader> {
        let (source, name) = self.source_of(&call.name);
        let mut own = source.iter().flat_map(|ast| ast.iter_functions()).filter(|f| f.name == name);
        match own.next() {
            Some(function) => {
                let parameters = function.params.len();
                let own = OwnOptions::of(source?, name, parameters, &self.parameters)?;
                Some(OptionReader::Own(own))
            }
            None => OptionReader::native(name, call.first.clone()),
        }
    }

    /// Files below the working directory, and embedded ones.
    fn files(&self, cursor: &Cursor<'_>, typed: &str) -> Vec<Candidate> {
        let mut found = Vec::new();
        let own = |name: &str| Candidate { text: name.to_owned(), help: "in dsr".to_owned() };
        match cursor.callee {
            Some("import") => {
                found.extend(STDLIB.iter().map(|(name, _)| own(&format!("dsr:{name}"))));
            }
            Some(callee) => found.extend(embedded(callee).into_iter().map(own)),
            None => {}
        }
        found.extend(self.paths(typed));
        found
    }

    /// Files and directories whose path may begin with `typed`, which is cut at its last slash.
    pub fn paths(&self, typed: &str) -> Vec<Candidate> {
        let mut found = Vec::new();
        let (dir, _) = typed.rsplit_once('/').map_or(("", typed), |(dir, rest)| (dir, rest));
        let prefix = if dir.is_empty() && !typed.starts_with('/') {
            String::new()
        } else {
            format!("{dir}/")
        };
        let dir = if prefix.is_empty() { "." } else { prefix.as_str() };
        let dir = Place::unguarded(self.host.workspace.rights.work_dir.join(dir));
        let is_hidden = |name: &str| name.starts_with('.') && !typed.ends_with('.');
        for name in dir.list().unwrap_or_default() {
            let name = name.to_string_lossy();
            if !is_hidden(&name) {
                let end = if dir.join(&*name).is_dir() { "/" } else { "" };
                found.push(Candidate { text: format!("{prefix}{name}{end}"), help: String::new() });
            }
        }
        found
    }

    /// Variables, functions, modules and words of the language.
    fn words(&self, names: &Names, text: &str, all: &[Token], at: usize) -> Vec<Candidate> {
        let mut found: Vec<_> = self
            .scope
            .iter_raw()
            .map(|(name, _, value)| Candidate { text: name.to_owned(), help: short(value) })
            .collect();
        found.extend(names.functions("").iter().map(|f| called(&f.name, &f.help)));
        found.extend(BUILT_IN.iter().map(|(name, help)| called(name, help)));
        let modules = names.by_module.keys().filter(|name| !name.is_empty());
        let modules = modules.map(String::as_str).chain([PARAMETERS]);
        found.extend(
            modules.map(|name| Candidate { text: format!("{name}::"), help: "module".to_owned() }),
        );
        found.extend(
            KEYWORDS.iter().map(|word| Candidate { text: (*word).to_owned(), help: String::new() }),
        );
        for pair in all.windows(2) {
            let is_declared = pair[0].class == Class::Keyword
                && ["let", "const", "for"].contains(&pair[0].of(text))
                && pair[1].class == Class::Name
                && !pair[1].range.contains(&at.saturating_sub(1));
            if is_declared {
                found.push(Candidate {
                    text: pair[1].of(text).to_owned(),
                    help: "of this input".to_owned(),
                });
            }
        }
        found
    }
}

fn called(name: &str, help: &str) -> Candidate {
    Candidate { text: format!("{name}("), help: help.to_owned() }
}

/// A value in a few words.
pub(super) fn short(value: &Dynamic) -> String {
    match value.read_lock::<Dynamic>() {
        Some(inner) => describe(&inner),
        None => "in use".to_owned(),
    }
}
