//! The graph of `use`s between the files of `src`, as far as text tells it.
//!
//! A path (`crate::a::b`, `super::`, `self::`, a child module, an imported module) is followed through
//! the imports and re-exports of each `mod.rs` to the file that defines its item; that is an arrow. A
//! re-export is none by itself. Methods reached through a value are not seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::source::{Source, has_word, is_name, lines_before_tests};

type Module = Vec<String>;

/// The files of `src` by module, without those that only tests use.
pub(super) struct Graph {
    files: BTreeMap<Module, File>,
}

struct File {
    /// Below `src`.
    path: String,
    /// Lines before the inline tests.
    lines: usize,
    /// Code before the inline tests without `use` and `mod` declarations.
    code: String,
    imports: Vec<Import>,
}

/// One name that a `use` declaration brings.
#[derive(Clone)]
struct Import {
    /// `*` for all names of `path`.
    name: String,
    path: Module,
    is_public: bool,
}

impl Graph {
    /// The graph of these files, each a path below `src` with its text.
    pub(super) fn of<'a>(texts: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut files = BTreeMap::new();
        let mut only_tests = BTreeSet::new();
        for (path, text) in texts {
            let module = module_of(path);
            let code = Source::of(text).code;
            for pair in code.windows(2).filter(|pair| pair[0].trim() == "#[cfg(test)]") {
                let name = pair[1].trim().strip_prefix("mod ").and_then(|m| m.strip_suffix(';'));
                only_tests.extend(name.map(|name| joined(&module, name)));
            }
            let lines = lines_before_tests(text);
            let (code, imports) = without_imports(&code[..lines.min(code.len())].join("\n"));
            files.insert(module, File { path: path.to_owned(), lines, code, imports });
        }
        files.retain(|module, _| !only_tests.contains(module));
        Self { files }
    }

    /// The top-level modules.
    pub(super) fn modules(&self) -> BTreeSet<&str> {
        self.files.keys().filter_map(|module| module.first()).map(String::as_str).collect()
    }

    /// Lines of a top-level module before the inline tests.
    pub(super) fn lines(&self, module: &str) -> usize {
        let inside = self.files.iter().filter(|(at, _)| at.first().is_some_and(|m| m == module));
        inside.map(|(_, file)| file.lines).sum()
    }

    /// For each file of a top-level module the files of the module that it uses.
    pub(super) fn arrows(&self, module: &str) -> BTreeMap<&str, BTreeSet<&str>> {
        let inside = |at: &Module| at.first().is_some_and(|m| m == module);
        let mut arrows = BTreeMap::new();
        for (at, file) in self.files.iter().filter(|(at, _)| inside(at)) {
            let mut uses = self.uses(at, file);
            uses.retain(|used| inside(used) && used != at);
            let uses = uses.iter().map(|used| self.files[used].path.as_str()).collect();
            arrows.insert(file.path.as_str(), uses);
        }
        arrows
    }

    /// The modules whose items a file uses.
    fn uses(&self, at: &Module, file: &File) -> BTreeSet<Module> {
        let imported = file.imports.iter().filter(|import| {
            let is_used = || has_word(&file.code, &import.name);
            !import.is_public || import.name == "*" || is_used()
        });
        let paths = imported.map(|import| import.path.clone()).chain(paths_in(&file.code));
        paths
            .filter_map(|path| {
                let path = self.absolute(at, &path, 0)?;
                self.definition(&path, 0)
            })
            .collect()
    }

    /// A path from the crate's root, where the path begins in the crate.
    fn absolute(&self, at: &Module, path: &[String], depth: usize) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let from = |base: &[String]| Some([base, rest].concat());
        match first.as_str() {
            "crate" => from(&[]),
            "self" => from(at),
            "super" => {
                let supers = path.iter().take_while(|part| *part == "super").count();
                let base = &at[..at.len().checked_sub(supers)?];
                Some([base, &path[supers..]].concat())
            }
            _ if self.files.contains_key(&joined(at, first)) => Some([&at[..], path].concat()),
            _ if depth > 8 || rest.is_empty() => None,
            _ => {
                let imports = &self.files.get(at)?.imports;
                let import = imports.iter().find(|import| import.name == *first)?;
                let base = self.absolute(at, &import.path, depth + 1)?;
                from(&base)
            }
        }
    }

    /// The module in whose file the item at `path` is defined; `None` for a module itself.
    fn definition(&self, path: &[String], depth: usize) -> Option<Module> {
        let mut at = Module::new();
        for (i, part) in path.iter().enumerate() {
            let child = joined(&at, part);
            let is_module = self.files.contains_key(&child);
            if is_module && i + 1 < path.len() {
                at = child;
                continue;
            }
            return match self.import(&at, part, depth) {
                // Another crate's.
                Some(None) => None,
                Some(Some(base)) if depth < 8 => {
                    self.definition(&[&base[..], &path[i + 1..]].concat(), depth + 1)
                }
                _ if is_module => None,
                _ => Some(at).filter(|at| !at.is_empty()),
            };
        }
        None
    }

    /// Where a name comes from that a module imports: the path in the crate, or another crate.
    fn import(&self, at: &Module, name: &str, depth: usize) -> Option<Option<Module>> {
        let imports = &self.files.get(at)?.imports;
        if let Some(import) = imports.iter().find(|import| import.name == name) {
            let path = self.absolute(at, &import.path, depth + 1);
            return (path.as_ref() != Some(&joined(at, name))).then_some(path);
        }
        let globs = imports.iter().filter(|import| import.name == "*");
        globs.filter_map(|import| self.absolute(at, &import.path, depth + 1)).find_map(|base| {
            let text = &self.files.get(&base)?.code;
            ["fn", "struct", "enum", "trait", "type", "const"]
                .iter()
                .any(|kind| text.contains(&format!("{kind} {name}")))
                .then(|| Some(joined(&base, name)))
        })
    }
}

/// The circles of a graph: sets of more than one file, each of which leads to every other.
pub(super) fn circles<'a>(arrows: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reached = |from: &'a str| {
        let mut reached = BTreeSet::new();
        let mut ahead = vec![from];
        while let Some(file) = ahead.pop() {
            ahead.extend(arrows[file].iter().filter(|next| reached.insert(**next)));
        }
        reached
    };
    let reach: BTreeMap<_, _> = arrows.keys().map(|file| (*file, reached(file))).collect();
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for (file, reached) in &reach {
        if reached.contains(file) && seen.insert(*file) {
            let back = |other: &&&str| reach[**other].contains(file);
            let circle: Vec<_> = reached.iter().filter(back).copied().collect();
            seen.extend(&circle);
            circles.push(circle);
        }
    }
    circles
}

/// `engine/mod.rs` is the module `engine`, `engine/plan.rs` is `engine::plan`, `lib.rs` the root.
fn module_of(path: &str) -> Module {
    let path = Path::new(path).with_extension("");
    let parts = path.iter().map(|part| part.to_str().unwrap().to_owned());
    parts.filter(|part| part != "mod" && part != "lib").collect()
}

fn joined(module: &[String], name: &str) -> Module {
    [module, &[name.to_owned()]].concat()
}

/// Code without its `use` and `mod` declarations, and what it imports.
fn without_imports(code: &str) -> (String, Vec<Import>) {
    let (mut rest, mut imports) = (String::new(), Vec::new());
    let mut left = code;
    while let Some(at) = left.match_indices("use ").map(|(at, _)| at).find(|&at| {
        let line = left[..at].rsplit('\n').next().unwrap_or("").trim();
        line.is_empty() || line == "pub" || line.starts_with("pub(") && line.ends_with(')')
    }) {
        let end = left[at..].find(';').map_or(left.len(), |end| at + end);
        let is_public = left[..at].rsplit('\n').next().is_some_and(|line| line.contains("pub"));
        expand(&[], &left[at + "use ".len()..end], is_public, &mut imports);
        rest.push_str(&left[..at]);
        left = &left[end..];
    }
    rest.push_str(left);
    let is_module = |line: &&str| line.ends_with(';') && has_word(line, "mod");
    (rest.lines().filter(|line| !is_module(line)).collect::<Vec<_>>().join("\n"), imports)
}

/// Adds the imports of one `use` tree below `prefix`.
fn expand(prefix: &[String], tree: &str, is_public: bool, imports: &mut Vec<Import>) {
    let tree = tree.trim();
    if let Some((path, list)) = tree.split_once('{') {
        let base: Module = prefix.iter().cloned().chain(segments(path)).collect();
        let list = list.strip_suffix('}').unwrap_or(list);
        let (mut depth, mut from) = (0, 0);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(&base, &list[from..at], is_public, imports);
                    from = at + 1;
                }
                _ => {}
            }
        }
        return expand(&base, &list[from..], is_public, imports);
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(p, a)| (p, Some(a)));
    let mut path: Module = prefix.iter().cloned().chain(segments(path)).collect();
    if path.len() > 1 && path.last().is_some_and(|last| last == "self" || last == "*") {
        let last = path.pop().unwrap_or_default();
        let name = if last == "*" { last } else { path[path.len() - 1].clone() };
        imports.push(Import { name: alias.map_or(name, |a| a.trim().into()), path, is_public });
    } else if let Some(name) = path.last().filter(|_| !tree.is_empty()) {
        let name = alias.map_or(name.clone(), |a| a.trim().into());
        imports.push(Import { name, path, is_public });
    }
}

fn segments(path: &str) -> impl Iterator<Item = String> {
    path.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty())
}

/// The paths of more than one name in code.
fn paths_in(code: &str) -> Vec<Module> {
    let mut paths = Vec::new();
    let mut left = code;
    while let Some(at) = left.find("::") {
        let start = left[..at].char_indices().rev().take_while(|(_, c)| is_name(*c)).last();
        let start = start.map_or(at, |(start, _)| start);
        let length = left[start..].find(|c| !is_name(c) && c != ':').unwrap_or(left.len() - start);
        let path: Module = segments(&left[start..start + length]).collect();
        if path.len() > 1 {
            paths.push(path);
        }
        left = &left[(start + length).max(at + 2)..];
    }
    paths
}
