//! The law of the code, checked on its text: what may use what, and what each file looks like.
//!
//! The compiler and clippy hold the rules that they can; here are those that concern files and layers. [`LAYERS`]
//! and [`WORDS`] are the law for text that [`source`] took apart: `use crate as c` would get by.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use graph::{Graph, circles};
use source::{Source, has_word, lines_before_tests, roots};

mod graph;
mod helpers_of_tests;
mod source;

/// Each module of `src/lib.rs` with those that it may name, beside itself.
const LAYERS: &[(&str, &str)] = &[
    ("error", ""),
    ("panics", ""),
    ("hash", ""),
    ("foreign", ""),
    ("columns", "foreign"),
    ("names", ""),
    ("fs", "error"),
    ("companions", "error fs"),
    ("units", ""),
    ("rope", "foreign"),
    ("config", "error"),
    ("config_json", "error foreign fs config"),
    ("permission", "error hash foreign names fs config"),
    ("bridge", "error"),
    ("tensor", "error panics fs units config bridge"),
    ("dist", "error config bridge tensor"),
    ("hub", "error hash names companions fs units config"),
    ("data", "error panics hash fs units config tensor hub"),
    ("sparse", "error config bridge tensor"),
    ("quantize", "error config bridge tensor"),
    ("kv_cache", "error bridge tensor"),
    ("masks", "tensor"),
    ("cost", "config bridge tensor"),
    ("tensor_parallel", "error bridge tensor"),
    (
        "model",
        "error hash foreign companions fs config config_json rope bridge tensor sparse quantize kv_cache masks cost tensor_parallel",
    ),
    ("optim", "error config bridge tensor dist quantize"),
    ("generation", "error fs config tensor data kv_cache model"),
    ("checkpoint", "error fs units config tensor"),
    ("swap", "error fs units bridge tensor"),
    (
        "engine",
        "error fs config bridge tensor tensor_parallel dist data model optim checkpoint swap",
    ),
    ("run", "error hash foreign fs units config data checkpoint engine"),
    ("launch", "error fs config dist run"),
    ("recipe", "error hash foreign fs units config permission hub data model run"),
    (
        "script",
        "error fs units config tensor dist hub data model optim generation checkpoint engine run \
         recipe",
    ),
    ("live", "error fs units config tensor data model engine run recipe script"),
    ("repl", "error foreign columns fs units config run recipe script live"),
    (
        "cli",
        "error hash foreign columns companions fs units config permission bridge tensor dist hub data model \
         optim generation checkpoint engine run launch recipe script live repl",
    ),
];

/// Words of code in `src`, where they may stand, and why. Unit tests may print, open files,
/// read the environment and write `super::super`.
const WORDS: &[(&str, &[&str], &str)] = &[
    ("rhai::", &["src/recipe", "src/script", "src/live"], "only recipe, script and live know Rhai"),
    ("tch::", &["src/tensor", "src/bridge"], "use crate::tensor"),
    ("clap::", &["src/cli"], "only cli reads the command line"),
    ("ariadne::", &["src/cli"], "only cli renders errors"),
    ("indicatif::", &["src/cli"], "only cli draws progress"),
    ("ratatui::", &["src/cli"], "only cli draws screens"),
    ("rustyline::", &["src/repl"], "only repl edits lines"),
    ("textplots::", &["src/repl"], "only repl draws curves of characters"),
    ("unsafe", &["src/bridge"], "unsafe code is the bridge's"),
    ("print!", &["src/cli"], "only cli prints"),
    ("println!", &["src/cli"], "only cli prints"),
    ("eprint!", &["src/cli"], "only cli prints"),
    ("eprintln!", &["src/cli"], "only cli prints"),
    ("process::exit", &["src/cli"], "only cli ends the process"),
    ("env::var", &["src/cli"], "cli hands the environment down"),
    ("env::var_os", &["src/cli"], "cli hands the environment down"),
    ("env::vars", &["src/cli"], "cli hands the environment down"),
    ("std::fs", FILE_USERS, "use crate::fs"),
    ("File::open", FILE_USERS, "use crate::fs"),
    ("File::create", FILE_USERS, "use crate::fs"),
    ("File::create_new", FILE_USERS, "use crate::fs"),
    ("File::options", FILE_USERS, "use crate::fs"),
    ("tempfile::", TEMPORARY, "use Place::unnamed_file or fs::NewDir"),
    ("Place::unguarded", UNGUARDED, "a recipe's path has a guard"),
    ("DataSource::unguarded", UNGUARDED, "a recipe's path has a guard"),
    ("engine::Engine::new", &[], "use Engine::new_in, with the guard of the recipe's paths"),
    ("super::super", &[], "write crate:: and the path"),
];

/// Who may open files by their paths: the file layer, and the hub's client in Python's cache.
const FILE_USERS: &[&str] = &[
    "src/fs",
    "src/hub",
    "src/bridge/disk.rs",
    // Tests in a file of their own.
    "src/model/families/config_json_tests.rs",
    "src/sparse/golden.rs",
];

/// Who makes temporary files where the user's environment says.
const TEMPORARY: &[&str] = &[
    "src/fs",
    "src/bridge/trace.rs",
    "src/cli/doctor/system.rs",
    "src/data/spool.rs",
    "src/engine/trace.rs",
    "src/launch/supervise.rs",
];

/// Who may make a place that nobody judges, from a path of the program or of its user.
const UNGUARDED: &[&str] = &[
    "src/fs",
    "src/cli",
    "src/repl",
    // The cache of the hub's client, and files of dsr's own cache, by hashes.
    "src/hub",
    "src/data/source/streamed.rs",
    "src/data/token_cache.rs",
    "src/recipe/address.rs",
    // The hub of a program without a recipe.
    "src/data/source/locate.rs",
    "src/data/source_name.rs",
    // A trace, before it is copied to its place.
    "src/engine/trace.rs",
    // An engine of a program without a recipe.
    "src/engine/mod.rs",
    // A rank's report to its launcher, by the path of the environment, and the kernel's counters.
    "src/launch/cause.rs",
    "src/tensor/memory.rs",
    // Completion of a path that the user types.
    "src/live/complete.rs",
    "src/permission/sandbox.rs",
    "src/permission/trust.rs",
    // The lock and the patterns that the user names on the command line.
    "src/recipe/lock.rs",
    "src/recipe/rights.rs",
];

/// File names that hide a concept that has no name yet.
const BANNED_NAMES: &[&str] = &["utils", "common", "helpers", "base", "misc"];

/// Lines of a file before its unit tests.
const MOST_LINES: usize = 500;

/// Lines of a module of `src` without its inline tests.
const MOST_LINES_OF_A_MODULE: usize = 12_000;

/// Directories of the repository that hold no code of its own.
const SKIPPED: &[&str] = &["target", "libtorch", "runs", "shared"];

#[test]
fn every_file_keeps_the_law() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(root, &mut files);
    let mut report = String::new();
    for file in &files {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap();
        for fault in faults(path, &fs::read_to_string(file).unwrap()) {
            writeln!(report, "{fault}").unwrap();
        }
    }
    assert!(files.len() > LAYERS.len(), "only {} files found", files.len());
    assert!(report.is_empty(), "\n{report}");
}

/// `cargo test modules_have_no_circles -- --nocapture` prints the numbers of each module.
#[test]
fn modules_have_no_circles_and_are_small() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    let texts: BTreeMap<_, _> = files
        .iter()
        .map(|file| {
            let path = file.strip_prefix(&src).unwrap().to_str().unwrap();
            (path, fs::read_to_string(file).unwrap())
        })
        .collect();
    let graph = Graph::of(texts.iter().map(|(path, text)| (*path, text.as_str())));
    let mut report = String::new();
    println!("{:12} {:>6} {:>7} {:>7} {:>8}", "module", "files", "lines", "arrows", "circles");
    let mut sums = [0; 4];
    for module in graph.modules() {
        let (lines, arrows) = (graph.lines(module), graph.arrows(module));
        let circles = circles(&arrows);
        let count = arrows.values().map(|uses| uses.len()).sum();
        let numbers = [arrows.len(), lines, count, circles.len()];
        sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
        let [files, lines, arrows_inside, number] = numbers;
        println!("{module:12} {files:6} {lines:7} {arrows_inside:7} {number:8}");
        if lines > MOST_LINES_OF_A_MODULE {
            let most = MOST_LINES_OF_A_MODULE;
            writeln!(report, "{module}: {lines} lines without tests, {most} at most").unwrap();
        }
        for circle in circles {
            let text = circle_text(&circle, &arrows);
            println!("{text}");
            report.push_str(&text);
        }
    }
    let [files, lines, arrows, circles] = sums;
    println!("{:12} {files:6} {lines:7} {arrows:7} {circles:8}", "all");
    assert!(report.is_empty(), "\n{report}");
}

/// The files of a circle, each with those of the circle that it uses.
fn circle_text(circle: &[&str], arrows: &BTreeMap<&str, BTreeSet<&str>>) -> String {
    let mut text = format!("a circle of {} files:\n", circle.len());
    for file in circle {
        let uses: Vec<_> =
            arrows[file].iter().filter(|used| circle.contains(used)).copied().collect();
        writeln!(text, "  {file} uses {}", uses.join(", ")).unwrap();
    }
    text
}

#[test]
fn every_test_file_is_listed() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let main = fs::read_to_string(tests.join("main.rs")).unwrap();
    for entry in fs::read_dir(&tests).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.extension().is_some_and(|e| e == "rs") && name != "main" {
            assert!(main.contains(&format!("mod {name};")), "tests/main.rs does not list {name}");
        }
    }
}

#[test]
fn every_module_has_its_layer() {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let lib = fs::read_to_string(lib).unwrap();
    let declared: Vec<_> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(declared.len(), LAYERS.len());
    for (i, (module, allowed)) in LAYERS.iter().enumerate() {
        assert!(declared.contains(module), "src/lib.rs has no module {module}");
        for name in allowed.split_whitespace() {
            let above = LAYERS[..i].iter().any(|(earlier, _)| *earlier == name);
            assert!(above, "{module} may use {name}, which does not stand above it");
        }
    }
}

/// What `text`, the file at `path` in the repository, does against the law.
fn faults(path: &str, text: &str) -> Vec<String> {
    let mut found = Faults { path, list: Vec::new() };
    check_text(&mut found, text);
    if path.ends_with(".rs") {
        let source = Source::of(text);
        check_comments(&mut found, &source);
        if let Some(inside) = path.strip_prefix("src/") {
            check_words(&mut found, &source);
            check_safety(&mut found, &source);
            let module = inside.split(['/', '.']).next().unwrap();
            check_layer(&mut found, &source, module);
        }
    }
    found.list
}

struct Faults<'a> {
    path: &'a str,
    list: Vec<String>,
}

impl Faults<'_> {
    /// `line` counts from 0.
    fn add(&mut self, line: usize, fault: impl AsRef<str>) {
        self.list.push(format!("{}:{}: {}", self.path, line + 1, fault.as_ref()));
    }
}

/// What holds for Rust and Rhai alike.
fn check_text(found: &mut Faults, text: &str) {
    if !text.starts_with("//!") {
        found.add(0, "a file opens with `//!` and its concept");
    }
    let stem = Path::new(found.path).file_stem().unwrap().to_str().unwrap();
    if BANNED_NAMES.contains(&stem) {
        found.add(0, format!("{stem} is no concept: name the file after what it holds"));
    }
    let lines = lines_before_tests(text);
    if lines > MOST_LINES {
        found.add(MOST_LINES, format!("{lines} lines before the tests, {MOST_LINES} at most"));
    }
    for (i, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t', '\r']) {
            found.add(i, "blanks at the end of the line");
        }
        // Split so that this file does not break its own rule.
        for word in [concat!("TO", "DO"), concat!("FIX", "ME")] {
            if has_word(line, word) {
                found.add(i, format!("{word}: do it, or open an issue"));
            }
        }
    }
}

fn check_comments(found: &mut Faults, source: &Source) {
    for (i, comment) in source.comments.iter().enumerate() {
        if let Some(c) = comment.chars().find(|c| !c.is_ascii()) {
            found.add(i, format!("{c:?} in a comment: ASCII only"));
        }
    }
}

fn check_words(found: &mut Faults, source: &Source) {
    let mut std_roots = roots(&source.code, "std");
    std_roots.retain(|(_, root)| root == "fs");
    for &(word, places, why) in WORDS {
        if places.iter().any(|place| is_in(found.path, place)) {
            continue;
        }
        let free_in_tests = word.ends_with('!')
            || [FILE_USERS, TEMPORARY, UNGUARDED].contains(&places)
            || ["env::", "super::"].iter().any(|start| word.starts_with(start));
        let end = if free_in_tests { source.tests_at } else { source.code.len() };
        for (i, line) in source.code[..end].iter().enumerate() {
            let grouped = word == "std::fs" && std_roots.iter().any(|&(at, _)| at == i);
            if grouped || has_word(line, word) {
                found.add(i, format!("`{word}` may not stand here: {why}"));
            }
        }
    }
}

/// Each unsafe block or implementation has a comment right above its statement that says SAFETY.
fn check_safety(found: &mut Faults, source: &Source) {
    let starts = |line: &str| {
        let spaced = format!("{line} ");
        has_word(&spaced, "unsafe {") || has_word(&spaced, "unsafe impl")
    };
    for (i, line) in source.code.iter().enumerate() {
        if !starts(line) || source.comments[i].contains("SAFETY") {
            continue;
        }
        let mut above = (0..i).rev().take_while(|&j| {
            let (code, comment) = (source.code[j].trim(), source.comments[j].trim());
            let is_blank = code.is_empty() && comment.is_empty();
            !code.ends_with([';', '{', '}']) && !is_blank
        });
        if !above.any(|j| source.comments[j].contains("SAFETY")) {
            found.add(i, "an unsafe block without a SAFETY comment above it");
        }
    }
}

fn check_layer(found: &mut Faults, source: &Source, module: &str) {
    if matches!(module, "lib" | "main") {
        return;
    }
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return found.add(0, format!("module {module} has no layer in tests/tidy.rs"));
    };
    for (line, root) in roots(&source.code, "crate") {
        // `bail` is a macro of `error` that stands at the root.
        let fine = root == module || root == "bail" || allowed.split(' ').any(|name| name == root);
        if !fine {
            let allowed = if allowed.is_empty() { "nothing" } else { allowed };
            found.add(line, format!("{module} may not use {root}; it may use: {allowed}"));
        }
    }
}

fn is_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            if !SKIPPED.contains(&name.as_str()) && !name.starts_with('.') {
                collect(&path, files);
            }
        } else if name.ends_with(".rs") || name.ends_with(".rhai") {
            files.push(path);
        }
    }
}

mod law {
    use super::faults;

    /// The faults of a file whose first line is as it should be and whose second is `line`.
    fn of(path: &str, line: &str) -> Vec<String> {
        faults(path, &format!("//! A concept.\n{line}\n"))
    }

    #[test]
    fn a_file_opens_with_its_concept_and_a_name() {
        assert_eq!(faults("recipes/a.rhai", "let x = 1;\n").len(), 1);
        assert_eq!(of("src/optim/utils.rs", "").len(), 1);
        assert!(of("recipes/a.rhai", "let x = 1;").is_empty());
    }

    #[test]
    fn a_file_is_short_but_its_tests_may_be_long() {
        let long = "fn f() {}\n".repeat(500);
        assert_eq!(of("src/fs.rs", &long).len(), 1);
        assert!(of("src/fs.rs", &format!("mod tests {{\n{long}}}")).is_empty());
    }

    #[test]
    fn a_module_uses_what_stands_above_it() {
        for line in ["use crate::run::Meter;", "use crate::{error::Result, run::{self}};"] {
            let found = of("src/checkpoint/store.rs", line);
            assert_eq!(
                found,
                ["src/checkpoint/store.rs:2: checkpoint may not use run; \
                  it may use: error fs units config tensor"]
            );
        }
        let many = "use crate::{\n    error::{Error, fs},\n    script::run,\n};";
        assert!(of("src/run/log.rs", many)[0].starts_with("src/run/log.rs:4: run may not use"));
        for line in ["crate::run::f()", "// crate::cli", "\"crate::cli\"", "crate::bail!(x)"] {
            assert!(of("src/run/log.rs", line).is_empty(), "{line}");
        }
        assert_eq!(of("src/fs.rs", "use crate::config;").len(), 1);
        assert_eq!(of("src/new.rs", "").len(), 1);
    }

    #[test]
    fn words_stand_where_they_may() {
        let refused = [
            ("src/engine/mod.rs", "use rhai::Map;"),
            ("src/engine/mod.rs", "let t = tch::Tensor::new();"),
            ("src/script/mod.rs", "use clap::Parser;"),
            ("src/script/mod.rs", "println!(\"x\");"),
            ("src/dist/mod.rs", "let rank = std::env::var(\"RANK\");"),
            ("src/engine/mod.rs", "use std::{fmt, fs::File};"),
            ("src/engine/mod.rs", "let f = File::open(path);"),
            ("src/tensor/mod.rs", "unsafe fn f() {}"),
            ("src/run/mod.rs", "use super::super::fs;"),
        ];
        for (path, line) in refused {
            assert_eq!(of(path, line).len(), 1, "{line}");
        }
        let allowed = [
            ("src/script/mod.rs", "use rhai::Map;"),
            ("src/data/mod.rs", "batch::collate(); // rhai::Map, tch::Tensor"),
            ("src/cli/mod.rs", "println!(\"{}\", std::env::var(\"RANK\"));"),
            ("src/fs/mod.rs", "use std::{fmt, fs::File};"),
            ("src/engine/mod.rs", "#![deny(unsafe_code)] // unsafe"),
            ("src/engine/mod.rs", "mod tests {\n    use std::fs;\n}"),
            ("tests/a.rs", "println!(\"x\");"),
        ];
        for (path, line) in allowed {
            assert!(of(path, line).is_empty(), "{line}: {:?}", of(path, line));
        }
    }

    #[test]
    fn an_unsafe_block_says_why_it_is_safe() {
        let path = "src/bridge/a.rs";
        assert_eq!(of(path, "let x = unsafe { f() };").len(), 1);
        assert_eq!(of(path, "// SAFETY: a.\na();\nb(unsafe { f() });").len(), 1);
        assert!(of(path, "// SAFETY: f has no conditions.\nlet x = unsafe { f() };").is_empty());
        assert!(of(path, "// SAFETY: a.\nlet x =\n    unsafe { f() };").is_empty());
    }

    #[test]
    fn text_is_plain() {
        assert_eq!(of("src/fs.rs", "let x = 1; ").len(), 1);
        assert_eq!(of("src/fs.rs", concat!("// TO", "DO: later")).len(), 1);
        assert_eq!(of("src/fs.rs", "// \u{2192}").len(), 1);
        assert!(of("src/fs.rs", "let arrow = '\u{2192}'; let s = r#\"\"\u{2192}\"#;").is_empty());
    }

    #[test]
    fn strings_characters_and_lifetimes_are_told_apart() {
        let code = "fn f<'a>(x: &'a str) { g('\"'); h('\\''); } /* a /* b */ unsafe */ // \"";
        assert!(of("src/fs.rs", code).is_empty());
        assert_eq!(of("src/fs.rs", &format!("{code}\nunsafe")).len(), 1);
    }
}
