//! DeepSpeed's `ds_config.json`, and the options that a recipe gives beside it.

use std::io::Write;

use dsr::{
    config::deepspeed::{self, Position},
    error::Code,
    fs::Place,
    recipe::{diagnostics::Fault, literal},
    script,
};
use serde_json::{Map, Value};

/// Stands between the file and the recipe's options.
const BESIDE: &str = "\n---\n";

/// Reads the input as a file, and what is behind [`BESIDE`] as options in JSON.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (file, given) = match text.split_once(BESIDE) {
        Some((file, given)) => (file, serde_json::from_str(given).ok()),
        None => (text, None),
    };
    config(file, given.as_ref());
    init_engine(file);
}

/// The file by itself: every place is in it.
fn config(text: &str, given: Option<&Map<String, Value>>) {
    match deepspeed::read(text, given) {
        Ok(settings) => {
            settings.notes.iter().for_each(|note| check_place(text, note.at));
            for option in settings.options.keys() {
                settings.origin(option);
            }
            literal::options(&settings.options);
        }
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in faults {
                assert!(!fault.error.message().is_empty());
                match fault.at {
                    Some(at) => check_place(text, at),
                    None => assert!(given.is_some(), "nowhere: {:?}", fault.error),
                }
            }
        }
    }
}

/// The file as `init_engine` would take it: what is wrong has a place and can be drawn.
fn init_engine(text: &str) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("space for a file");
    if let Err(failure) = script::deepspeed::read(&Place::unguarded(file.path()), None) {
        // A pointer of Git LFS is no DeepSpeed file, and has no place in one.
        let has_place = |fault: &Fault| fault.place.is_some() || fault.error.code() == Code::Io;
        assert!(failure.faults.iter().all(has_place), "{failure:?}");
        dsr::cli::report::text(&failure, true, false);
    }
}

fn check_place(text: &str, at: Position) {
    let line = text.split('\n').nth(at.line - 1).unwrap_or_else(|| panic!("no line {}", at.line));
    assert!((1..=line.chars().count() + 1).contains(&at.column), "{at}: {line:?}");
}
