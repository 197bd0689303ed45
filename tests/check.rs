//! `dsr check`: what is found in a recipe without running it.

use std::{
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use dsr::{
    recipe::{Failure, Recipe, diagnostics::Fault},
    script::{Host, Session},
};
use serde_json::Value;

use crate::support::program::dsr;

fn check(recipe: &str) -> Result<(), Failure> {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        name: "r.rhai".to_owned(),
        text: recipe.to_owned(),
        base_dir: dir.path().to_owned(),
    };
    Session::new(Host::new(dir.path(), |_| ())).check(&recipe)
}

/// Code, place, message and first hint.
fn line(Fault { error, place }: &Fault) -> String {
    let place = place
        .as_ref()
        .map_or_else(|| "nowhere".to_owned(), |place| format!("{}:{}", place.line, place.column));
    let mut line = format!("{} {place} {}", error.code().number(), error.message());
    if let Some(hint) = error.hints().first() {
        let _ = write!(line, " = {hint}");
    }
    line
}

/// What is found in a single recipe stands in tests/script/check; here is the order.
#[test]
fn mistakes_are_told_in_the_order_of_the_text() {
    let recipe = "let model = new_modl(\"gpt2\");\nlet rows = dataset(\"dsr:austen\").pack(8);\n\
                  print(P::lr);\n";
    let found: Vec<_> = check(recipe).unwrap_err().faults.iter().map(line).collect();
    let expected = [
        "E110 1:13 unknown function `new_modl` = did you mean `new_model`?",
        "E101 3:10 the recipe has no parameter `lr` = it declares none",
    ];
    assert_eq!(found, expected);
}

/// For Rhai it does behind a comment only, so that the place would be in no line of the text.
#[test]
fn a_carriage_return_ends_a_line() {
    let failure =
        check("// a comment\rlet b = 1; // another\r\nlod_model(b); // the last\r").unwrap_err();
    let found: Vec<_> = failure.faults.iter().map(line).collect();
    assert_eq!(found, ["E110 3:1 unknown function `lod_model` = did you mean `load_model`?"]);
    let place = failure.faults[0].place.as_ref().unwrap();
    assert_eq!(place.line_text(), "lod_model(b); // the last");
}

/// What editors read: one object for each mistake.
#[test]
fn mistakes_are_told_as_json() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("r.rhai"), "let a = 1;\nlet model = load_modle(\"gpt2\");\n")
        .unwrap();
    let output = dsr(dir.path(), &["check", "r.rhai", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!([{
        "code": "E110",
        "severity": "error",
        "message": "unknown function `load_modle`",
        "hints": ["did you mean `load_model`?"],
        "file": "r.rhai",
        "line": 2,
        "column": 13,
        "end_column": 23,
    }]);
    assert_eq!(said, expected);
    fs::write(dir.path().join("r.rhai"), "print(1);\n").unwrap();
    let output = dsr(dir.path(), &["check", "r.rhai", "--json"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"[]\n"[..]));
}

/// What is imported is looked through too, and so is what is called of it.
#[test]
fn imports_are_checked_with_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write(
        "r.rhai",
        "param(\"lr\", 0.1, \"learning rate\");\nimport \"parts/rates\" as rates;\n\
         print(rates::warm(1));\nprint(rates::wram(1, 2));\nprint(rates::warm(1, 2));\n",
    );
    fs::create_dir(dir.path().join("parts")).unwrap();
    // It uses the parameter, and has a mistake of its own.
    write(
        "parts/rates.rhai",
        "fn warm(step, steps) { P::lr * step / steps }\nfn broken() { lod_model(\"x\") }\n",
    );
    let output = dsr(dir.path(), &["check", "r.rhai"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    for part in [
        "unknown function `lod_model`\n   ,-[ parts/rates.rhai:2:15 ]",
        "`rates::warm` takes 2 arguments, found 1\n   ,-[ r.rhai:3:",
        "unknown function `rates::wram`\n   ,-[ r.rhai:4:",
        "did you mean `rates::warm`?",
    ] {
        assert!(said.contains(part), "{part:?}: {said}");
    }
    assert_eq!(said.matches("error[").count(), 3, "{said}");
}

/// A text that is mended to find what else is wrong in it may be one long line of brackets.
#[test]
fn a_line_of_brackets_is_mended_in_bounded_time() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("r.rhai"), "(".repeat(200_000)).unwrap();
    let start = Instant::now();
    let output = dsr(dir.path(), &["check", "r.rhai"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--> r.rhai:1:64"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// The recipes of the repository have no mistake, nor have those of the tests.
#[test]
fn every_recipe_of_the_repository_is_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut recipes: Vec<_> = ["recipes", "benches", "tests/golden"]
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "rhai"))
        .collect();
    recipes.sort();
    assert!(recipes.len() >= 4, "{recipes:?}");
    for path in recipes {
        let output = dsr(root, &["check", path.to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", path.display());
    }
}
