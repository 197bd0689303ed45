//! `dsr recipe`: the recipes that are part of dsr, to look at and to copy.

use std::{
    fmt::Write,
    io::IsTerminal,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    Console,
    args::{RecipeArgs, RecipeCommand},
    bundle, check, console, diff,
};
use crate::{
    error::Result,
    foreign::lines,
    fs::{Place, write_atomic},
    recipe::{
        Description, Failure, Recipe, describe,
        description::first_sentence,
        file::{BUILT_IN, BuiltIn},
    },
};

/// Does what was asked for; the result is the exit status.
pub(super) fn run(args: RecipeArgs, console: &Console) -> Result<u8, Failure> {
    match args.command {
        RecipeCommand::Ls { json } => list(json)?,
        RecipeCommand::Show { recipe, fetch } => {
            let text = fetch.open(&recipe)?.text;
            match std::io::stdout().is_terminal() {
                true => console::out(&lines(&text)),
                // A file gets it to the byte.
                false => console::out_bytes(text.as_bytes()),
            }
        }
        RecipeCommand::Cp { recipe, to, fetch } => copy(&fetch.open(&recipe)?, &to)?,
        RecipeCommand::Bundle(args) => bundle::make(&args)?,
        RecipeCommand::Unbundle { bundle, to, fetch } => bundle::take_apart(&bundle, &to, &fetch)?,
        RecipeCommand::Diff { old, new, fetch } => diff::run(&old, &new, &fetch)?,
        RecipeCommand::Check(args) => return check::run(&args, console),
    }
    Ok(0)
}

/// The name of each recipe and the first sentence that it says about itself.
fn list(as_json: bool) -> Result<(), Failure> {
    let described: Vec<(BuiltIn, Description)> = BUILT_IN
        .into_iter()
        .map(|recipe| Ok((recipe, describe(&recipe.into())?)))
        .collect::<Result<_, Failure>>()?;
    if as_json {
        let all = described.iter().map(|(recipe, description)| {
            let parameters = description.parameters.iter().map(|p| {
                json!({ "name": p.name, "type": p.type_name(), "default": p.default_text(), "help": p.help })
            });
            json!({
                "name": recipe.name,
                "doc": description.doc,
                "parameters": parameters.collect::<Vec<_>>(),
            })
        });
        console::out_json(format_args!("{:#}", Value::from(all.collect::<Vec<_>>())));
        return Ok(());
    }
    let width = BUILT_IN.map(|recipe| recipe.name.len()).into_iter().max().unwrap_or(0);
    let mut text = String::new();
    for (recipe, description) in &described {
        let _ = writeln!(text, "{:width$}  {}", recipe.name, first_sentence(&description.doc));
    }
    text.push_str("\ndsr run NAME runs one, dsr run NAME --help shows its parameters.\n");
    console::out(&text);
    Ok(())
}

/// Writes the recipe's text into a new file.
fn copy(recipe: &Recipe, to: &Path) -> Result<()> {
    let to: PathBuf = match to.is_dir() {
        true => to.join(format!("{}.rhai", Recipe::stem(&recipe.name))),
        false => to.to_owned(),
    };
    bundle::absent(&to)?;
    write_atomic(Place::unguarded(&to), recipe.text.as_bytes())?;
    console::out(&format!("{}\n", to.display()));
    Ok(())
}
