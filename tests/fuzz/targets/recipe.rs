//! Recipes as `dsr check` reads them: parsed and looked through, never run.

use std::fs;

use dsr::{
    recipe::{Failure, Recipe, sources::Location},
    script::{Host, Session},
};

/// Stands between the recipe and a module, `part`, that it may import.
const BESIDE: &str = "\n---\n";

/// Checks the input as a recipe.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (text, part) = text.split_once(BESIDE).unwrap_or((text, "fn twice(x) { 2 * x }\n"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("part.rhai"), part).expect("space for a file");
    let recipe = Recipe {
        name: "recipe.rhai".to_owned(),
        text: text.to_owned(),
        base_dir: directory.path().to_owned(),
    };
    let host = Host::new(directory.path(), |_| panic!("a recipe that is checked prints nothing"));
    if let Err(failure) = Session::new(host).check(&recipe) {
        check(&failure);
    }
}

/// Every mistake has a place in its source and can be drawn.
fn check(failure: &Failure) {
    assert!(!failure.faults.is_empty());
    for fault in &failure.faults {
        assert!(!fault.error.message().is_empty());
        let Some(place) = &fault.place else { panic!("nowhere: {:?}", fault.error) };
        check_place(place);
    }
    failure.calls.iter().for_each(|call| check_place(&call.place));
    dsr::cli::report::text(failure, true, false);
}

fn check_place(place: &Location) {
    let Location { source, line, column } = place;
    let lines = source.text.split('\n').count();
    assert!((1..=lines).contains(line), "line {line} of {lines}");
    // What is missing at the end of a line is behind its last character.
    let columns = place.line_text().chars().count() + 1;
    let end = column + place.length() - 1;
    assert!((1..=columns).contains(column) && end <= columns, "{line}:{column} to {end}");
}
