//! Recipes with their expectations inside: each folder of tests/script is an area, and each file in
//! it an example. tests/script/README.md describes the notation.

use std::{fs, os::unix::fs::symlink};

use dsr::{error::Code, script::Session};

use crate::support::{
    examples::{areas, check_area},
    recipe::Recipe,
};

mod counter;

#[test]
fn host() {
    check_area("host", &counter::add);
}

#[test]
fn check() {
    check_area("check", &|_| ());
}

#[test]
fn imports() {
    check_area("imports", &|_| ());
}

#[test]
fn data() {
    check_area("data", &|_| ());
}

#[test]
fn tensors() {
    check_area("tensors", &|_| ());
}

#[test]
fn chat() {
    check_area("chat", &|_| ());
}

#[test]
fn adapters() {
    check_area("adapters", &|_| ());
}

#[test]
fn models() {
    check_area("models", &|_| ());
}

#[test]
fn optimizers() {
    check_area("optimizers", &|_| ());
}

#[test]
fn schedules() {
    check_area("schedules", &|_| ());
}

#[test]
fn steps() {
    check_area("steps", &|_| ());
}

#[test]
fn every_area_has_a_test() {
    let this = include_str!("script.rs");
    for area in areas() {
        assert!(this.contains(&format!("check_area(\"{area}\"")), "tests/script/{area} is not run");
    }
}

#[test]
fn imports_stay_in_the_recipes_directory() {
    let recipe = Recipe::new("");
    let outside = tempfile::tempdir().unwrap();
    let evil = outside.path().join("evil.rhai");
    fs::write(&evil, "print(\"evil\");").unwrap();
    symlink(&evil, recipe.directory().join("link.rhai")).unwrap();
    symlink(outside.path(), recipe.directory().join("folder")).unwrap();
    let whole = evil.with_extension("");
    for path in ["../evil", "parts/../../evil", whole.to_str().unwrap(), "link", "folder/evil"] {
        recipe.file("recipe.rhai", &format!("import \"{path}\" as evil;"));
        let (lines, result) = recipe.run(Session::new);
        assert_eq!(result.expect_err(path).code(), Code::Permission, "{path}");
        assert_eq!(lines, Vec::<String>::new());
    }
}
