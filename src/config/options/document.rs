//! Lists made of tables: documentation for `dsr doc` and the reference, names and words for
//! completion.

use std::fmt::Write;

use super::{
    kind::{Kind, Row},
    value::quoted,
};

/// The width of a line of documentation.
const WIDTH: usize = 96;

/// The options of some tables as a list in Markdown.
pub fn document(tables: &[&[Row]]) -> String {
    let mut text = String::new();
    rows(&mut text, tables, "");
    text
}

/// The options of one map.
#[derive(Debug)]
pub struct Listing {
    /// The words of `type`, where it decides about the rest.
    types: Vec<&'static str>,
    rows: Vec<&'static Row>,
}

impl Listing {
    /// The options of the map at `path`, down from these tables; `kind` is the map's `type`. `None`
    /// where there is no such map.
    pub fn at(tables: &[&'static [Row]], path: &[String], kind: Option<&str>) -> Option<Self> {
        let rows: Vec<_> = tables.iter().flat_map(|rows| rows.iter()).collect();
        let Some((first, rest)) = path.split_first() else {
            return Some(Self { types: Vec::new(), rows });
        };
        match (rows.into_iter().find(|row| row.name == first)?.kind)().into_map() {
            Kind::Map(tables) | Kind::Maps(tables) => Self::at(tables, rest, kind),
            Kind::Typed(typed) if rest.is_empty() => {
                Some(Self { types: typed.words(), ..Self::at(&typed.tables(kind), rest, kind)? })
            }
            Kind::Typed(typed) => Self::at(&typed.tables(kind), rest, kind),
            _ => None,
        }
    }

    /// The names of the options.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let kind = (!self.types.is_empty()).then_some("type");
        kind.into_iter().chain(self.rows.iter().map(|row| row.name))
    }

    /// The words that the option `key` may be.
    pub fn words(&self, key: &str) -> Vec<&'static str> {
        if key == "type" && !self.types.is_empty() {
            return self.types.clone();
        }
        let row = self.rows.iter().find(|row| row.name == key);
        row.map(|row| (row.kind)().words()).unwrap_or_default()
    }

    /// The help of the option `key`.
    pub fn help(&self, key: &str) -> Option<String> {
        self.rows.iter().find(|row| row.name == key).map(|row| row.text())
    }
}

impl Kind {
    /// The map among two forms of a value.
    fn into_map(self) -> Self {
        match self {
            Self::Or(_, map) => map.into_map(),
            other => other,
        }
    }

    /// The kind in words, where the help beside it does not say it.
    fn describe(&self) -> Option<String> {
        match self {
            Self::Words(words) => Some(quoted(words.iter().copied())),
            Self::Function(parameters) => Some(format!("a function `{parameters}`")),
            Self::Handle(expected) => Some((*expected).to_owned()),
            Self::Map(_) => Some("a map".to_owned()),
            Self::Maps(_) => Some("a list of maps".to_owned()),
            Self::Or(first, map) if matches!(**first, Self::Bool) => {
                Some(format!("true, false, or {}", map.describe().unwrap_or_default()))
            }
            Self::Or(first, second) => match (first.describe(), second.describe()) {
                (Some(first), Some(second)) => Some(format!("{first}, or {second}")),
                (first, second) => first.or(second),
            },
            Self::Bool
            | Self::Whole
            | Self::Number
            | Self::Text
            | Self::List
            | Self::Typed(_)
            | Self::Any => None,
        }
    }
}

fn rows(text: &mut String, tables: &[&[Row]], indent: &str) {
    for row in tables.iter().flat_map(|rows| rows.iter()) {
        let kind = (row.kind)();
        let mut line = format!("* `{}`", row.name);
        if let Some(default) = (row.default)() {
            let _ = write!(line, " ({default})");
        } else if row.is_required {
            line.push_str(" (required)");
        }
        let _ = write!(line, " - {}", row.text());
        let about = [kind.describe(), (row.limits)().map(|limits| limits.words)];
        for about in about.into_iter().flatten() {
            let _ = write!(line, "; {about}");
        }
        wrap(text, &line, indent);
        inside(text, &kind, &format!("{indent}  "));
    }
}

/// The options of a map inside.
fn inside(text: &mut String, kind: &Kind, indent: &str) {
    match kind {
        Kind::Map(tables) | Kind::Maps(tables) => rows(text, tables, indent),
        Kind::Or(first, second) => {
            inside(text, first, indent);
            inside(text, second, indent);
        }
        Kind::Typed(typed) => {
            for variant in &typed.variants {
                let names: Vec<_> = variant.names.iter().map(|n| format!("\"{n}\"")).collect();
                wrap(text, &format!("* `type: {}`", names.join("`, `")), indent);
                rows(text, variant.tables, &format!("{indent}  "));
            }
            rows(text, typed.common, indent);
        }
        _ => {}
    }
}

/// Adds a paragraph whose further lines stand below its first word.
fn wrap(text: &mut String, paragraph: &str, indent: &str) {
    let mut width = 0;
    for word in paragraph.split_whitespace() {
        match width {
            0 => text.push_str(indent),
            _ if width + 1 + word.chars().count() > WIDTH => {
                let _ = write!(text, "\n{indent}  ");
                width = indent.len() + 2;
            }
            _ => {
                text.push(' ');
                width += 1;
            }
        }
        if width == 0 {
            width = indent.len();
        }
        text.push_str(word);
        width += word.chars().count();
    }
    text.push('\n');
}
