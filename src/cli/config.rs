//! `dsr config`: a DeepSpeed config file in dsr's terms, and the list of its keys.

use std::{fmt::Write, path::Path};

use super::{args::ConfigArgs, console};
use crate::{
    config::deepspeed::{Settings, known_keys},
    fs::Place,
    recipe::{Failure, literal},
    script::deepspeed,
};

/// Prints what was asked for.
pub(super) fn show(args: &ConfigArgs) -> Result<(), Failure> {
    let Some(path) = &args.file else {
        console::out(&keys());
        return Ok(());
    };
    let world_size = args.world_size.and_then(|n| usize::try_from(n).ok());
    let settings = deepspeed::read(&Place::unguarded(path), world_size)?;
    console::out(&text(path, &settings));
    Ok(())
}

/// The options as a map that a recipe can have, below comments with what became of the rest.
fn text(path: &Path, settings: &Settings) -> String {
    let mut text = format!("// {} as options of init_engine.\n", path.display());
    for note in &settings.notes {
        let _ = writeln!(text, "// line {}: {}", note.at.line, note.text);
    }
    let _ = writeln!(text, "{}", literal::options(&settings.options));
    text
}

fn keys() -> String {
    let keys = known_keys();
    let width = keys.iter().map(|key| key.path.chars().count()).max().unwrap_or(0);
    keys.iter().fold(String::new(), |mut text, key| {
        let _ = writeln!(text, "{:width$}  {}", key.path, key.fate);
        text
    })
}
