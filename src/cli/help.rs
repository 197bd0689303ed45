//! `dsr run RECIPE --help`: what the recipe says about itself.

use std::fmt::Write;

use super::console;
use crate::recipe::{self, Description, Failure, Recipe};

/// Prints the recipe's documentation and its parameters, without running it.
pub(super) fn print_recipe(recipe: &Recipe) -> Result<(), Failure> {
    let description = recipe::describe(recipe)?;
    console::out(&text(&recipe.name, &description));
    Ok(())
}

fn text(recipe: &str, description: &Description) -> String {
    let mut text = String::new();
    if !description.doc.is_empty() {
        text.push_str(&description.doc);
        text.push_str("\n\n");
    }
    if description.parameters.is_empty() {
        let _ = writeln!(text, "Usage: dsr run {recipe}\n\nThe recipe declares no parameters.");
        return text;
    }
    let _ = writeln!(text, "Usage: dsr run {recipe} [-p NAME=VALUE]...\n\nParameters:");
    let rows: Vec<[String; 4]> = description
        .parameters
        .iter()
        .map(|p| {
            let limits = p.limits_text();
            let help = match (p.help.is_empty(), limits.is_empty()) {
                (_, true) => p.help.clone(),
                (true, false) => format!("({limits})"),
                (false, false) => format!("{} ({limits})", p.help),
            };
            [p.name.clone(), p.type_name().to_owned(), p.default_text(), help]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let (names, types, defaults) = (width(0), width(1), width(2));
    for [name, kind, default, help] in &rows {
        let line = format!("  {name:names$}  {kind:types$}  {default:defaults$}  {help}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
