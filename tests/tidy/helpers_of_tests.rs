//! No test uses what stands in another test: what several need stands in `support`.

use std::{fs, path::Path};

use super::{
    collect,
    source::{Source, has_word, roots},
};

#[test]
fn no_test_uses_another_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let main = fs::read_to_string(tests.join("main.rs")).unwrap();
    let modules: Vec<&str> = main.lines().filter_map(module).collect();
    let mut files = Vec::new();
    collect(&tests, &mut files);
    let mut report = String::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "rs")) {
        let path = file.strip_prefix(&tests).unwrap();
        if path.starts_with("fuzz") {
            continue;
        }
        for (line, name) in of_others(&modules, path, &fs::read_to_string(file).unwrap()) {
            report += &format!("{}:{}: {name} is of another test\n", path.display(), line + 1);
        }
    }
    assert!(report.is_empty(), "\n{report}what several tests need stands in tests/support");
}

/// The module that a line of `tests/main.rs` declares, if any test may not use it.
fn module(line: &str) -> Option<&str> {
    line.strip_prefix("mod ")?.strip_suffix(';').filter(|name| *name != "support")
}

/// The modules of other tests that a file of tests names, with their lines.
fn of_others(modules: &[&str], path: &Path, text: &str) -> Vec<(usize, String)> {
    let source = Source::of(text);
    let own = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
    let mut named = roots(&source.code, "crate");
    // For a file right in the folder of tests, the module above is the whole program.
    if path.components().count() == 1 {
        named.extend(roots(&source.code, "super"));
    }
    named.retain(|(_, name)| name != own && modules.contains(&name.as_str()));
    let climbs = |(_, code): &(usize, &String)| has_word(code, "super::super");
    let climbing = source.code.iter().enumerate().filter(climbs);
    named.extend(climbing.map(|(line, _)| (line, "super::super".to_owned())));
    named
}

#[test]
fn modules_of_other_tests_are_found() {
    let of = |path: &str, line: &str| {
        of_others(&["cli", "engine", "repl"], Path::new(path), &format!("//! A.\n{line}\n"))
    };
    for line in ["use super::engine::model;", "use crate::{engine::model, support::alone};"] {
        assert_eq!(of("zero.rs", line), [(1, "engine".to_owned())]);
    }
    assert!(of("zero.rs", "use crate::support::{alone, ranks};").is_empty());
    assert!(of("repl/looking.rs", "use super::terminal::Terminal;").is_empty());
    assert!(of("repl/looking.rs", "use crate::repl::terminal::Terminal;").is_empty());
    assert_eq!(of("repl/looking.rs", "use crate::cli::run;"), [(1, "cli".to_owned())]);
    assert_eq!(of("repl/looking.rs", "super::super::cli::run();").len(), 1);
}
