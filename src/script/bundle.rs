//! A recipe with all that it imports, and its lock, in one text.
//!
//! The recipe stands first and as it is, so that its lines keep their numbers. What it imports follows
//! as comments, each line behind `//|`, to be read like any other code:
//!
//! ```text
//! // --- dsr bundle: recipe "gpt2.rhai" sha256=9f31... ---
//! // --- dsr bundle: module "parts/rates.rhai" sha256=51aa... ---
//! //| fn warm(step) { step * 0.1 }
//! // --- dsr bundle: lock "dsr.lock" sha256=77b0... ---
//! //| { ... }
//! // --- dsr bundle: end ---
//! ```
//!
//! Each hash is that of the text, to the byte: of the recipe that is above, of a module or of the lock.
//! A text that has another one is refused, as is anything else between the lines. Modules of dsr are
//! in dsr and not in the bundle. A module that is no file is named by its address, and needs no grant
//! here: its code is part of the text that the user runs.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Component, Path},
};

use rhai::Position;

use super::{
    Failure, Host, Recipe,
    error::AtPosition,
    imports::{Edge, Imports},
    lock::Lock,
    pinned::{Address, has_files, is_address, without_hash},
    requests,
    resolver::{EMBEDDED, relative_name},
    sources::Sources,
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    hash,
};

/// What each line that divides a bundle begins with.
const MARK: &str = "// --- dsr bundle: ";

/// And ends with.
const MARK_END: &str = " ---";

/// What stands before each line of a text.
const LINE: &str = "//|";

const KINDS: [&str; 4] = ["recipe", "module", "lock", "end"];

/// What a bundle holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// What the recipe's file was called.
    pub name: String,
    /// The text of the recipe alone.
    pub recipe: String,
    /// The texts of what it imports, by path or by address.
    pub modules: BTreeMap<String, String>,
    /// The text of the lock.
    pub lock: Option<String>,
}

/// A text that is being read, with the line of its mark.
struct Part {
    kind: &'static str,
    name: String,
    sha256: String,
    line: usize,
    lines: Vec<String>,
}

/// A fault with its line, from 1.
type Faulty<T> = std::result::Result<T, (usize, Error)>;

impl Bundle {
    /// The bundle that a recipe is; `None` where it is none.
    ///
    /// Fails where a bundle is damaged: a hash that is not so, a name that leaves the recipe's
    /// directory, a line that does not belong there.
    pub fn open(recipe: &Recipe) -> Result<Option<Self>, Failure> {
        Self::read(&recipe.text).map_err(|(line, error)| {
            let sources = Sources::default();
            sources.insert_text(&recipe.name, &recipe.text);
            let place = u16::try_from(line).map_or(Position::NONE, |line| Position::new(line, 1));
            Failure::of(error.at(&recipe.name, place), &[], &sources)
        })
    }

    fn read(text: &str) -> Faulty<Option<Self>> {
        let Some(at) = begin(text) else { return Ok(None) };
        let (above, below) = text.split_at(at);
        // The line's end that stands between the recipe and the first mark is not the recipe's.
        let recipe = above.strip_suffix('\n').unwrap_or(above);
        let first = above.matches('\n').count() + 1;
        let mut bundle = Self { recipe: recipe.to_owned(), ..Self::default() };
        let mut open: Option<Part> = None;
        let mut is_ended = false;
        for (i, line) in below.split('\n').enumerate() {
            let number = first + i;
            let is_stray = if line.starts_with(MARK) && !is_ended {
                if let Some(part) = open.take() {
                    bundle.add(part)?;
                }
                match mark(line).map_err(|e| (number, e))? {
                    Some(part) => {
                        let is_first = part.kind == "recipe";
                        open = Some(Part { line: number, ..part });
                        is_first != (i == 0)
                    }
                    None => {
                        is_ended = true;
                        i == 0
                    }
                }
            } else {
                match (content(line), &mut open) {
                    _ if is_ended => !line.trim().is_empty(),
                    (Some(content), Some(part)) if part.kind != "recipe" => {
                        part.lines.push(content.to_owned());
                        false
                    }
                    (Some(_), _) => true,
                    (None, _) => !(line.starts_with("// ") || line.trim().is_empty()),
                }
            };
            if is_stray {
                return Err((number, stray(line)));
            }
        }
        match is_ended {
            true => Ok(Some(bundle)),
            false => Err((
                first,
                Error::new(Code::Pin, "the bundle has no end: its last lines are missing")
                    .hint("get the whole file, or bundle the recipe again"),
            )),
        }
    }

    fn add(&mut self, part: Part) -> Faulty<()> {
        let Part { kind, name, sha256, line, lines } = part;
        let text = if kind == "recipe" { self.recipe.clone() } else { lines.join("\n") };
        let found = hash::sha256(&text);
        let fault = |e: Error| Err((line, e));
        if found != sha256 {
            let e = Error::new(
                Code::Pin,
                format!("{kind} \"{name}\" has another hash than is written"),
            );
            return fault(
                e.hint(format!("written: sha256={sha256}"))
                    .hint(format!("found:   sha256={found}"))
                    .hint("a bundle is not edited: take it apart with `dsr recipe unbundle`"),
            );
        }
        let is_new = match kind {
            "recipe" if self.name.is_empty() => {
                self.name = name.clone();
                !name.is_empty()
            }
            "module" => self.modules.insert(name.clone(), text).is_none(),
            "lock" => self.lock.replace(text).is_none(),
            _ => false,
        };
        match is_new {
            true => Ok(()),
            false => {
                fault(Error::new(Code::Pin, format!("the bundle has {kind} \"{name}\" twice")))
            }
        }
    }

    /// The text of the bundle.
    pub fn text(&self) -> String {
        let Self { name, recipe, modules, lock } = self;
        let mut text = format!("{recipe}\n");
        let head = |text: &mut String, kind: &str, name: &str, content: &str| {
            let sha256 = hash::sha256(content);
            let _ = writeln!(text, "{MARK}{kind} \"{name}\" sha256={sha256}{MARK_END}");
        };
        head(&mut text, "recipe", name, recipe);
        text.push_str(
            "// What the recipe above imports. `dsr recipe unbundle FILE DIR` takes it apart.\n",
        );
        let modules = modules.iter().map(|(name, content)| ("module", name.as_str(), content));
        for (kind, name, content) in modules.chain(lock.iter().map(|l| ("lock", "dsr.lock", l))) {
            head(&mut text, kind, name, content);
            for line in content.split('\n') {
                let space = if line.is_empty() { "" } else { " " };
                let _ = writeln!(text, "{LINE}{space}{line}");
            }
        }
        let _ = writeln!(text, "{MARK}end{MARK_END}");
        text
    }

    /// A bundle of a recipe, of what it imports, and of the lock of `host`.
    ///
    /// Fails where an import cannot be read, or could not be found in a bundle, and where the lock is
    /// not true of the recipe.
    pub fn make(host: &Host, recipe: &Recipe) -> Result<Self, Failure> {
        let found = requests::read(host, recipe)?;
        found.check(host)?;
        found.check_bundling(host)?;
        if let Some(lock) = &host.lock {
            lock.check_texts(host, recipe, &found)?;
        }
        let own = Self::open(recipe)?;
        let text = own.as_ref().map_or(&recipe.text, |own| &own.recipe);
        let mut bundle = Self {
            name: file_name(recipe, own.as_ref()),
            recipe: text.clone(),
            modules: BTreeMap::new(),
            lock: host.lock.as_ref().map(Lock::text),
        };
        if let Some(at) = begin(text) {
            let line = text[..at].matches('\n').count() + 1;
            let message = format!("line {line} of the recipe begins as the lines of a bundle do");
            return Err(Error::new(Code::BadValue, message).into());
        }
        for (name, text) in found.modules() {
            if name.starts_with(EMBEDDED) {
                continue;
            }
            let name = without_hash(name).to_owned();
            check_name(&name)?;
            if bundle.modules.insert(name.clone(), text.to_owned()).is_some_and(|old| old != text) {
                let message = format!("{name} is imported with two hashes, a bundle has one");
                return Err(Error::new(Code::Pin, message).into());
            }
        }
        Ok(bundle)
    }

    /// The module that `path` means when it is imported from `importer`.
    pub(super) fn module(&self, importer: Option<&str>, path: &str) -> Option<(String, String)> {
        let importer = importer.filter(|name| self.modules.contains_key(*name));
        let name = relative_name(importer, path)?;
        let text = self.modules.get(&name)?.clone();
        Some((name, text))
    }

    /// The text at an address.
    pub(super) fn at_address(&self, address: &Address) -> Result<Option<String>> {
        let Some(text) = self.modules.get(&address.url) else { return Ok(None) };
        address.check(text)?;
        Ok(Some(text.clone()))
    }
}

/// What of the imports of the recipe `main` no bundle could have: paths that are put together while it
/// runs, and links.
pub(super) fn obstacles(main: &str, imports: &Imports) -> Vec<Error> {
    let mut faults = Vec::new();
    for (source, position) in &imports.computed {
        let e = Error::new(Code::Recipe, "a path that is put together cannot be bundled")
            .hint("write the path of the import out");
        faults.push(e.at(source, *position));
    }
    for Edge { importer, path, position, name, .. } in &imports.edges {
        let from = Some(importer.as_str()).filter(|source| *source != main);
        if has_files(path) && relative_name(from, path).as_ref() != Some(name) {
            let e = Error::new(Code::Recipe, format!("\"{path}\" is a link to {name}"))
                .hint("a bundle has no links: import that file by its own name");
            faults.push(e.at(importer, *position));
        }
    }
    faults
}

/// The name of a recipe's file, without its directory.
pub(super) fn file_name(recipe: &Recipe, bundle: Option<&Bundle>) -> String {
    if let Some(bundle) = bundle {
        return bundle.name.clone();
    }
    let stem = Recipe::stem(&recipe.name);
    let plain = |c: char| if c == '"' || c.is_control() { '_' } else { c };
    format!("{}.rhai", stem.chars().map(plain).collect::<String>())
}

/// Where the first mark stands.
fn begin(text: &str) -> Option<usize> {
    let at_start = text.starts_with(MARK).then_some(0);
    at_start.or_else(|| Some(text.find(&format!("\n{MARK}"))? + 1))
}

/// The part that a mark begins; `None` for the end.
fn mark(line: &str) -> Result<Option<Part>> {
    let wrong = |why: &str| {
        Error::new(Code::Pin, format!("a damaged line of a bundle: {why}"))
            .hint("it is written: // --- dsr bundle: module \"NAME\" sha256=HEX ---")
    };
    let inside = line.trim_end().strip_prefix(MARK).and_then(|l| l.strip_suffix(MARK_END));
    let inside = inside.ok_or_else(|| wrong("it does not end in ---"))?;
    let (word, rest) = inside.split_once(' ').unwrap_or((inside, ""));
    let Some(kind) = KINDS.into_iter().find(|kind| *kind == word) else {
        let e = wrong(&format!("there is no `{word}`"));
        return Err(match nearest(word, KINDS) {
            Some(near) => e.hint(format!("did you mean `{near}`?")),
            None => e,
        });
    };
    if kind == "end" {
        return if rest.is_empty() { Ok(None) } else { Err(wrong("nothing follows `end`")) };
    }
    let quoted = rest.strip_prefix('"').and_then(|rest| rest.split_once("\" sha256="));
    let (name, sha256) = quoted.ok_or_else(|| wrong("the name or the hash is missing"))?;
    if !hash::is_sha256(sha256) {
        return Err(wrong("the hash is not one of SHA-256"));
    }
    check_name(name)?;
    if kind == "recipe" && name.contains('/') {
        return Err(wrong("the recipe's name has a directory"));
    }
    let (name, sha256) = (name.to_owned(), sha256.to_owned());
    Ok(Some(Part { kind, name, sha256, line: 0, lines: Vec::new() }))
}

/// The line of a text that a line of the bundle holds.
fn content(line: &str) -> Option<&str> {
    let rest = line.strip_prefix(LINE)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix(' ') }
}

/// Refuses the name of a module that could stand for a file elsewhere.
fn check_name(name: &str) -> Result<()> {
    let is_plain =
        !name.is_empty() && !name.contains(['"', '\\']) && !name.contains(char::is_control);
    let inside =
        |name: &str| Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    let is_right = match is_address(name) {
        true => Address::parse(name).is_ok_and(|address| address.sha256.is_none()),
        false => inside(name) && !name.contains("://"),
    };
    if is_plain && is_right {
        return Ok(());
    }
    let shown: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    Err(Error::new(Code::Permission, format!("a bundle may not have a part named \"{shown}\""))
        .hint("a module is named by its path from the recipe's directory, or by its address"))
}

fn stray(line: &str) -> Error {
    let shown: String =
        line.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect();
    Error::new(Code::Pin, format!("a line that does not belong into a bundle: {shown}"))
        .hint("a bundle is not edited: take it apart with `dsr recipe unbundle`")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bundle() -> Bundle {
        let modules =
            [("parts/a.rhai", "fn f() { 1 }\n\n  // x"), ("https://h.org/b.rhai", "\r\n")];
        Bundle {
            name: "r.rhai".to_owned(),
            recipe: "import \"parts/a\" as a;\n".to_owned(),
            modules: modules.map(|(n, t)| (n.to_owned(), t.to_owned())).into(),
            lock: Some("{}\n".to_owned()),
        }
    }

    #[test]
    fn a_bundle_reads_back_what_was_written() {
        let text = bundle().text();
        assert!(
            text.starts_with("import \"parts/a\" as a;\n\n// --- dsr bundle: recipe \"r.rhai\"")
        );
        assert_eq!(Bundle::read(&text).unwrap(), Some(bundle()));
        assert_eq!(Bundle::read("let x = 1;\n// --- dsr\n").unwrap(), None);
    }

    #[test]
    fn what_was_changed_is_refused_at_its_line() {
        let text = bundle().text();
        let told = |text: &str| {
            let (line, e) = Bundle::read(text).unwrap_err();
            (line, e.code())
        };
        assert_eq!(told(&text.replace("fn f() { 1 }", "fn f() { 2 }")), (8, Code::Pin));
        assert_eq!(told(&text.replace("as a;", "as b;")), (3, Code::Pin));
        assert_eq!(told(&text.replace("//| fn f", "fn f")), (9, Code::Pin));
        assert_eq!(told(&text.replace("parts/a.rhai", "../a.rhai")).1, Code::Permission);
        assert_eq!(told(&text.replace("parts/a.rhai", "/a.rhai")).1, Code::Permission);
        assert_eq!(told(&text.replace("bundle: module", "bundle: modul")).1, Code::Pin);
        assert_eq!(told(&text.replace("// --- dsr bundle: end ---\n", "")), (3, Code::Pin));
        assert_eq!(told(&format!("{text}print(1);\n")).1, Code::Pin);
        assert_eq!(told(&text.replace("bundle: recipe", "bundle: module")), (3, Code::Pin));
        assert_eq!(told(&text.replace("bundle: lock", "bundle: recipe")).1, Code::Pin);
    }

    proptest! {
        #[test]
        fn any_texts_come_back(recipe in "[a\n\r|/ -]*", module in "\\PC*[\n\r]*", lock in "\\PC*") {
            let bundle = Bundle {
                name: "r.rhai".to_owned(),
                recipe,
                modules: [("m.rhai".to_owned(), module)].into(),
                lock: Some(lock),
            };
            prop_assert_eq!(Bundle::read(&bundle.text()).unwrap(), Some(bundle));
        }

        #[test]
        fn nothing_makes_it_panic(
            tail in prop::collection::vec(prop_oneof![
                Just("// --- dsr bundle: end ---".to_owned()),
                Just("// --- dsr bundle: module \"a\" sha256=".to_owned()),
                Just("//|".to_owned()),
                "\\PC*",
            ], 0..8)
        ) {
            let _ = Bundle::read(&format!("// --- dsr bundle: {}", tail.join("\n")));
        }
    }
}
