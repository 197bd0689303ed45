//! `dsr doc`: the reference of what recipes can call.

use std::fmt::Write;

use serde_json::{Value, json};

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
        let all: Vec<_> = entries.iter().map(as_json).collect();
        console::out(&format!("{:#}\n", Value::from(all)));
    } else if args.name.is_some() || args.all {
        console::out(&entries.iter().map(whole).collect::<Vec<_>>().join("\n"));
    } else {
        console::out(&list(&entries));
    }
    Ok(())
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
    text.push_str("\ndsr doc NAME shows one of them with its options and examples, dsr doc --all everything.\n");
    text
}

/// An entry as Markdown.
fn whole(entry: &ReferenceEntry) -> String {
    format!("### `{}`\n\n{}\n", entry.signature, entry.doc)
}

fn as_json(entry: &ReferenceEntry) -> Value {
    json!({
        "name": entry.name,
        "group": entry.group,
        "signature": entry.signature,
        "doc": entry.doc,
    })
}
