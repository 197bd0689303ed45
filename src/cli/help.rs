//! `dsr run RECIPE --help`: what the recipe says about itself.

use std::fmt::Write;

use super::console;
use crate::{
    columns::{Cell, fitted},
    recipe::{self, Description, Failure, Recipe},
};

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
    for row in fitted(rows) {
        let cells: Vec<_> = row.iter().map(Cell::to_the_left).collect();
        let _ = writeln!(text, "  {}", cells.join("  ").trim_end());
    }
    text
}
