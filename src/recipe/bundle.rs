//! A recipe, its imports and its lock in one text.
//!
//! The recipe stands first, unchanged, so that its lines keep their numbers. Its imports follow as
//! comments, each line behind `//|`, to be read like any other code:
//!
//! ```text
//! // --- dsr bundle: recipe "gpt2.rhai" sha256=9f31... ---
//! // --- dsr bundle: module "parts/rates.rhai" sha256=51aa... ---
//! //| fn warm(step) { step * 0.1 }
//! // --- dsr bundle: lock "mine.lock" sha256=77b0... ---
//! //| { ... }
//! // --- dsr bundle: end ---
//! ```
//!
//! Each hash is that of the text, to the byte: of the recipe above, of a module or of the lock. A text
//! with another hash is refused, as is anything else between the lines. Modules of dsr are not in the
//! bundle. A module from an address needs no grant here: its code is part of the text that the user
//! runs.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Component, Path},
};

use rhai::Position;

use super::{
    address::{Address, is_address},
    diagnostics::Failure,
    error::AtPosition,
    file::Recipe,
    module_path::relative_name,
    sources::Sources,
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    hash,
};

/// The start of each line that divides a bundle.
const MARK: &str = "// --- dsr bundle: ";

/// The end of such a line.
const MARK_END: &str = " ---";

/// The mark before each line of a text.
const LINE: &str = "//|";

const KINDS: [&str; 4] = ["recipe", "module", "lock", "end"];

/// A bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// The name of the recipe's file.
    pub name: String,
    /// The text of the recipe alone.
    pub recipe: String,
    /// The texts of its imports, by path or by address.
    pub modules: BTreeMap<String, String>,
    /// The text of the lock.
    pub lock: Option<String>,
}

/// A section of a bundle while it is read, with the line of its mark.
struct Section {
    kind: &'static str,
    name: String,
    sha256: String,
    line: usize,
    lines: Vec<String>,
}

/// A fault with its line, from 1.
type Faulty<T> = std::result::Result<T, (usize, Error)>;

impl Bundle {
    /// The bundle of a recipe, if the recipe is one.
    ///
    /// Fails if a bundle is damaged: another hash, a name that leaves the recipe's directory, a stray
    /// line.
    pub fn open(recipe: &Recipe) -> Result<Option<Self>, Failure> {
        Self::read(&recipe.text).map_err(|(line, error)| {
            let sources = Sources::default();
            sources.insert_text(&recipe.name, &recipe.text);
            let place = u16::try_from(line).map_or(Position::NONE, |line| Position::new(line, 1));
            Failure::of(error.at(&recipe.name, place), &[], &sources)
        })
    }

    fn read(text: &str) -> Faulty<Option<Self>> {
        let Some(at) = first_mark(text) else { return Ok(None) };
        let (above, below) = text.split_at(at);
        // The line's end before the first mark is not the recipe's.
        let recipe = above.strip_suffix('\n').unwrap_or(above);
        let first = above.matches('\n').count() + 1;
        let mut bundle = Self { recipe: recipe.to_owned(), ..Self::default() };
        let mut open: Option<Section> = None;
        let mut is_ended = false;
        for (i, line) in below.split('\n').enumerate() {
            let number = first + i;
            let is_stray = if line.starts_with(MARK) && !is_ended {
                if let Some(section) = open.take() {
                    bundle.add(section)?;
                }
                match mark(line).map_err(|e| (number, e))? {
                    Some(section) => {
                        let is_first = section.kind == "recipe";
                        open = Some(Section { line: number, ..section });
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
                    (Some(content), Some(section)) if section.kind != "recipe" => {
                        section.lines.push(content.to_owned());
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

    fn add(&mut self, section: Section) -> Faulty<()> {
        let Section { kind, name, sha256, line, lines } = section;
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
        let locked = Recipe::lock_of(name);
        let modules = modules.iter().map(|(name, content)| ("module", name.as_str(), content));
        for (kind, name, content) in
            modules.chain(lock.iter().map(|l| ("lock", locked.as_str(), l)))
        {
            head(&mut text, kind, name, content);
            for line in content.split('\n') {
                let space = if line.is_empty() { "" } else { " " };
                let _ = writeln!(text, "{LINE}{space}{line}");
            }
        }
        let _ = writeln!(text, "{MARK}end{MARK_END}");
        text
    }

    /// The module `path` that `importer` imports.
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

/// The name of a recipe's file, without its directory.
pub(super) fn file_name(recipe: &Recipe, bundle: Option<&Bundle>) -> String {
    if let Some(bundle) = bundle {
        return bundle.name.clone();
    }
    let stem = Recipe::stem(&recipe.name);
    let plain = |c: char| if c == '"' || c.is_control() { '_' } else { c };
    format!("{}.rhai", stem.chars().map(plain).collect::<String>())
}

/// The recipe in a text: what stands above the first mark of a bundle, and nothing behind it. A string or a
/// comment that is left open there does not reach what follows.
pub(crate) fn code(text: &str) -> &str {
    first_mark(text).map_or(text, |at| &text[..at])
}

/// The offset of the first mark.
pub(super) fn first_mark(text: &str) -> Option<usize> {
    let at_start = text.starts_with(MARK).then_some(0);
    at_start.or_else(|| Some(text.find(&format!("\n{MARK}"))? + 1))
}

/// The section that a mark begins; `None` for the end.
fn mark(line: &str) -> Result<Option<Section>> {
    let wrong = |why: &str| {
        Error::new(Code::Pin, format!("a damaged line of a bundle: {why}"))
            .hint("it is written: // --- dsr bundle: module \"NAME\" sha256=HEX ---")
    };
    let inside = line.trim_end().strip_prefix(MARK).and_then(|l| l.strip_suffix(MARK_END));
    let inside = inside.ok_or_else(|| wrong("it does not end in ---"))?;
    let (word, rest) = inside.split_once(' ').unwrap_or((inside, ""));
    let Some(kind) = KINDS.into_iter().find(|kind| *kind == word) else {
        let e = wrong(&format!("there is no `{word}`"));
        return Err(e.hint_if(nearest(word, KINDS).map(|near| format!("did you mean `{near}`?"))));
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
    Ok(Some(Section { kind, name, sha256, line: 0, lines: Vec::new() }))
}

/// The line of a text in a line of the bundle.
fn content(line: &str) -> Option<&str> {
    let rest = line.strip_prefix(LINE)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix(' ') }
}

/// Refuses the name of a module that could stand for a file elsewhere.
pub(super) fn check_name(name: &str) -> Result<()> {
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
