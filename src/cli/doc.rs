//! `dsr doc`: the reference of what recipes can call.

use std::fmt::Write;

use serde_json::json;

use super::{args::DocArgs, console};
use crate::{
    error::Result,
    script::reference::{self, ReferenceEntry},
};

/// Prints the entries of a name, or all of them.
pub(super) fn show(args: &DocArgs) -> Result<()> {
    let entries = match &args.name {
        Some(name) => reference::find(name)?,
        None => reference::entries(),
    };
    if args.json {
        console::out_json(format_args!("{:#}", json!(entries)));
    } else if args.name.is_some() || args.all {
        console::out(&entries.iter().map(whole).collect::<Vec<_>>().join("\n"));
    } else if args.list {
        console::out(&list(&entries));
    } else {
        console::out(&topics(&entries));
    }
    Ok(())
}

/// The most characters of a line.
const WIDTH: usize = 96;

/// The names of the entries, by concept.
fn topics(entries: &[ReferenceEntry]) -> String {
    let mut text = String::new();
    for of_group in entries.chunk_by(|a, b| a.group == b.group) {
        let _ = writeln!(text, "{}", of_group[0].group);
        let mut names: Vec<&str> = Vec::new();
        for entry in of_group {
            if !names.contains(&entry.name.as_str()) {
                names.push(&entry.name);
            }
        }
        let mut line = String::from(" ");
        for name in names {
            if line.len() + name.len() >= WIDTH {
                let _ = writeln!(text, "{line}");
                line = String::from(" ");
            }
            line = line + " " + name;
        }
        let _ = writeln!(text, "{line}");
    }
    text.push_str(
        "\ndsr doc NAME shows one of them with its options and examples, dsr doc --list a line for \
         each, dsr doc --all everything.\n",
    );
    text
}

/// One line for each entry, by concept.
fn list(entries: &[ReferenceEntry]) -> String {
    let mut text = String::new();
    let mut group = "";
    for entry in entries {
        if entry.group != group {
            group = &entry.group;
            let _ = writeln!(text, "{}{group}", if text.is_empty() { "" } else { "\n" });
        }
        let _ = writeln!(text, "  {}\n      {}", entry.signature, entry.summary());
    }
    text
}

/// An entry as Markdown.
fn whole(entry: &ReferenceEntry) -> String {
    format!("### `{}`\n\n{}\n", entry.signature, entry.doc)
}
