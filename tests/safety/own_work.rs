//! The user's own work needs no ceremony: what the user typed, named, or trusts.

use super::*;
use crate::support::{
    program::{dsr, text},
    user::{User, has},
};

const READS: &str = "param(\"export_dir\", \"\", \"where to\");\n\
    print(dataset(\"data/rows.txt\").count() + dataset(\"../rows.txt\").count());\n";
const EXPORTS: &str = "param(\"export_dir\", \"\", \"where to\");\n\
    let small = #{ n_layer: 1, n_embd: 16, n_head: 2, vocab_size: 50 };\n\
    new_model(\"gpt2\", small).export_hf(P::export_dir);\n";

/// A user whose recipes read a file beside the working directory, and one in a directory that is a link.
fn user() -> User {
    let user = User::new();
    let disk = user.home.path().join("disk");
    fs::create_dir(&disk).unwrap();
    for dir in [&disk, &user.home.path().to_owned()] {
        fs::write(dir.join("rows.txt"), "row\n").unwrap();
    }
    symlink(&disk, user.work().join("data")).unwrap();
    user.file("reads.rhai", READS);
    user.file("exports.rhai", EXPORTS);
    user
}

#[test]
fn a_typed_text_may_read_what_it_names() {
    let user = user();
    user.file("strange.rhai", "fn rows() { dataset(\"../rows.txt\").count() }\n");
    assert_eq!(user.says(&["eval", "dataset(\"../rows.txt\").count()"]), "1\n");
    assert_eq!(user.says(&["eval", "dataset(\"data/rows.txt\").count()"]), "1\n");
    // A module that it imports was not typed.
    let (said, status) = user.error(&["eval", "import \"strange\" as s; s::rows()"]);
    assert_eq!(status, 3);
    has(&said, &["may not read ../rows.txt"]);
    let (said, _) = user.error(&["eval", "dataset(\"../.ssh/id.txt\")"]);
    has(&said, &["E501"]);
    let (said, _) = user.error(&["eval", "--deny-read", "dataset(\"../rows.txt\")"]);
    has(&said, &["--deny-read says so"]);
}

#[test]
fn a_path_on_the_command_line_may_be_written_where_the_recipe_writes_it() {
    let user = user();
    let made = user.home.path().join("new/model");
    let given = format!("export_dir={}", made.display());
    user.says(&["run", "exports.rhai", "-p", &given]);
    assert!(made.join("model.safetensors").exists());
    // The other recipe has the parameter, and writes nothing by it.
    user.file(
        "other.rhai",
        &EXPORTS
            .replace("export_hf(P::export_dir)", "export_hf(\"../other\");\nprint(P::export_dir)"),
    );
    let other = format!("export_dir={}", user.home.path().join("other").display());
    let (said, status) = user.error(&["run", "other.rhai", "-p", &other]);
    assert_eq!(status, 3);
    has(&said, &["may not write ../other"]);
}

#[test]
fn jobs_that_nobody_attends_have_their_grants_in_the_environment() {
    let user = user();
    let run = |value: &str| {
        let mut command = dsr(&user.work(), &["run", "reads.rhai"]);
        command.env("HOME", user.home.path()).env("DSR_ALLOW_READ", value).output().unwrap()
    };
    let home = user.home.path().canonicalize().unwrap().display().to_string();
    assert_eq!(text(&run(&home).stdout), "2\n");
    assert_eq!(text(&run(&format!("{home}/disk, {home}/rows.txt")).stdout), "2\n");
    for nothing in ["", "/none"] {
        assert_eq!(run(nothing).status.code(), Some(3), "{nothing:?}");
    }
}

#[test]
fn a_directory_of_ones_own_recipes_is_trusted() {
    let user = user();
    assert_eq!(user.error(&["run", "reads.rhai"]).1, 3);
    has(&user.says(&["trust", "."]), &["get what they ask for"]);
    assert_eq!(user.says(&["run", "reads.rhai"]), "2\n");
    assert!(user.says(&["trust"]).trim_end().ends_with("/work"));
    // Of another directory nothing is trusted, and what is denied stays so.
    fs::create_dir(user.home.path().join("elsewhere")).unwrap();
    fs::write(user.home.path().join("elsewhere/reads.rhai"), READS).unwrap();
    assert_eq!(user.error(&["run", "../elsewhere/reads.rhai"]).1, 3);
    assert_eq!(user.error(&["run", "reads.rhai", "--deny-read"]).1, 3);
    user.says(&["trust", "--remove", "."]);
    assert_eq!(user.error(&["run", "reads.rhai"]).1, 3);
    assert_eq!(user.says(&["trust"]), "");
    has(&user.error(&["trust", "--remove", "."]).0, &["is not trusted"]);
    has(&user.error(&["trust", "/"]).0, &["cannot be trusted"]);
}
