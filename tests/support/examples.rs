//! Recipes with their expectations inside; tests/script/README.md describes the notation.

use std::{
    cell::RefCell,
    env, fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use dsr::{
    recipe::{Failure, Recipe, diagnostics::Fault, params},
    script::{
        Session,
        rhai::{Dynamic, Module},
    },
};

use super::{
    expectations::{self, Found, Said, Section},
    files::copy,
    recipe::with_host,
};

/// Rewrites the expectations instead of comparing them.
const UPDATE: &str = "DSR_UPDATE_TESTS";

/// Adds functions to those that a recipe can call.
type Prepare<'a> = &'a dyn Fn(&mut Session);

/// Runs each recipe of a folder of tests/script; fails with all that differs.
pub(crate) fn check_area(area: &str, prepare: Prepare<'_>) {
    let folder = root().join(area);
    let mut recipes: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "rhai"))
        .collect();
    recipes.sort();
    assert!(!recipes.is_empty(), "{} holds no recipe", folder.display());
    let report: String = recipes.iter().map(|path| check_file(path, prepare)).collect();
    assert!(report.is_empty(), "\n{report}\n{UPDATE}=1 writes what was found into the files");
}

/// The areas: the folders of tests/script that hold recipes.
pub(crate) fn areas() -> Vec<String> {
    let folders = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let folders = folders.filter(|path| path.is_dir());
    folders.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The folder of the areas.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/script")
}

/// How a file differs from what was found, or nothing.
fn check_file(path: &Path, prepare: Prepare<'_>) -> String {
    let text = fs::read_to_string(path).unwrap();
    let sections = expectations::sections(&text);
    let found: Vec<Found> =
        sections.iter().map(|section| run_section(path, section, prepare)).collect();
    let mut report = String::new();
    for (section, found) in sections.iter().zip(&found) {
        report += &expectations::difference(section, found, &name_of(path));
    }
    if !report.is_empty() && env::var_os(UPDATE).is_some() {
        let lines = |section: &Section| print_lines(path, section, prepare);
        fs::write(path, expectations::rewritten(&text, &sections, &found, lines)).unwrap();
        return String::new();
    }
    report
}

fn name_of(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string()
}

/// Runs a section in a directory of its own, beside the other files of its folder.
fn run_section(path: &Path, section: &Section, prepare: Prepare<'_>) -> Found {
    let directory = directory(path);
    let file = directory.path().join(path.file_name().unwrap());
    fs::write(&file, &section.text).unwrap();
    let (printed, result) = run(directory.path(), section, prepare, &file);
    let shown = |text: &str| without_directory(text, directory.path()).trim_end().to_owned();
    let printed = printed.iter().flat_map(|line| line.split('\n')).map(shown).collect();
    let faults = result.err().map(|failure| said(&failure, section, &file, directory.path()));
    Found { printed, faults: faults.unwrap_or_default() }
}

/// Paths of the directory are shown without it: it has another name each time.
fn without_directory(text: &str, directory: &Path) -> String {
    let whole = directory.canonicalize().unwrap();
    text.replace(&format!("{}/", whole.display()), "")
        .replace(&format!("{}/", directory.display()), "")
}

/// A directory with what stands beside a recipe, but for other recipes.
fn directory(path: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
        let from = entry.unwrap().path();
        if from.is_dir() || from.extension().is_none_or(|end| end != "rhai") {
            copy(&from, &directory.path().join(from.file_name().unwrap()));
        }
    }
    directory
}

/// Runs or checks the recipe in `file`; gives what it printed and how it ended.
fn run(
    directory: &Path,
    section: &Section,
    prepare: Prepare<'_>,
    file: &Path,
) -> (Vec<String>, Result<(), Failure>) {
    let recipe = Recipe::open(file).unwrap();
    with_host(directory, |mut host| {
        for args in section.settings("args") {
            let given = args.strip_prefix("-p ").expect("args are `-p name=value`");
            host.workspace.rights.params.push(params::parse_assignment(given).unwrap());
        }
        let variables: Vec<(String, String)> = section
            .settings("env")
            .map(|value| value.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        host.workspace.rights.env = Box::new(move |name| {
            variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        });
        let mut session = Session::new(host);
        prepare(&mut session);
        match section.settings("check").next() {
            Some(_) => session.check(&recipe),
            None => session.run(&recipe),
        }
    })
}

/// The mistakes, and the calls around the first.
fn said(failure: &Failure, section: &Section, file: &Path, directory: &Path) -> Vec<Said> {
    let shown = |text: &str| without_directory(text, directory);
    // Its own lines have their place by where they stand; others are named.
    let place = |source: &str, line: usize, column: usize| {
        if Path::new(source).file_name() != file.file_name() {
            let name = source.rsplit('/').next().unwrap_or_default();
            return (None, format!("{name}:{line}:{column}"));
        }
        match section.own_lines().contains(&line) {
            true => (Some((line, column)), column.to_string()),
            false => (None, format!("{line}:{column}")),
        }
    };
    let mut all: Vec<Said> = Vec::new();
    for Fault { error, place: at } in &failure.faults {
        let (here, at) = match at {
            Some(at) => place(&at.source.name, at.line, at.column),
            None => (None, "nowhere".to_owned()),
        };
        let code = error.code().number();
        let mut lines = vec![format!("error[{code}] {at}: {}", shown(error.message()))];
        lines.extend(error.hints().iter().map(|hint| format!("help: {}", shown(hint))));
        all.push(Said { place: here, text: lines.join("\n") });
    }
    for call in &failure.calls {
        let (here, at) = place(&call.place.source.name, call.place.line, call.place.column);
        // The name of a closure is made from its text.
        let is_named = !call.callee.is_empty() && !call.callee.starts_with("anon$");
        let name = if is_named { &call.callee } else { "a function" };
        let text = format!("called {at}: {name}");
        // A function that calls itself is there once.
        if all.iter().all(|said| said.text != text || said.place != here) {
            all.push(Said { place: here, text });
        }
    }
    let text = all.iter().map(|said| said.text.as_str()).collect::<Vec<_>>().join("\n");
    for word in ["panicked", "Exception raised", "frame #", "RUST_BACKTRACE"] {
        assert!(!text.contains(word), "{}: {text}", file.display());
    }
    all
}

/// The line of the call of `print` behind each printed line, found by a second run.
fn print_lines(path: &Path, section: &Section, prepare: Prepare<'_>) -> Vec<usize> {
    let directory = directory(path);
    let file = directory.path().join(path.file_name().unwrap());
    let mut text = String::new();
    for (i, line) in section.text.lines().enumerate() {
        text += &line.replace("print(", &format!("print_at({}, ", i + 1));
        text.push('\n');
    }
    text += "fn print_at(line, value) { printed_at(line, `${value}`); print(value); }\n";
    fs::write(&file, text).unwrap();
    let lines = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&lines);
    let count = move |line: i64, text: &str| {
        let count = text.split('\n').count();
        sink.borrow_mut().extend(std::iter::repeat_n(line as usize, count));
        Ok(Dynamic::UNIT)
    };
    let mut module = Module::new();
    module.set_native_fn("printed_at", count);
    let module = RefCell::new(Some(module));
    let prepare = |session: &mut Session| {
        prepare(session);
        session.add_functions(module.take().unwrap());
    };
    let (_, _) = run(directory.path(), section, &prepare, &file);
    lines.take()
}
