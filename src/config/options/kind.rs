//! The rows of option tables: what is listed, completed and documented of an option.

use super::limits::Limits;

/// One option of a table.
#[derive(Debug)]
pub struct Row {
    /// Its key in the map.
    pub name: &'static str,
    /// The help, line by line.
    pub help: &'static [&'static str],
    /// The kind of its values.
    pub kind: fn() -> Kind,
    /// The default as a recipe writes it, where there is one to show.
    pub default: fn() -> Option<String>,
    /// The range of its numbers.
    pub limits: fn() -> Option<Limits>,
    /// Whether a map without it is refused.
    pub is_required: bool,
    /// The key of DeepSpeed's file that is this option as it is.
    pub deepspeed: Option<&'static str>,
}

/// A row whose values have no default and no range.
pub const ROW: Row = Row {
    name: "",
    help: &[],
    kind: || Kind::Any,
    default: || None,
    limits: || None,
    is_required: false,
    deepspeed: None,
};

impl Row {
    /// The help on one line.
    pub fn text(&self) -> String {
        self.help.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// The kind of an option's values.
#[derive(Debug)]
pub enum Kind {
    /// True or false.
    Bool,
    /// A whole number.
    Whole,
    /// A number.
    Number,
    /// A string.
    Text,
    /// One of a few words.
    Words(Vec<&'static str>),
    /// A list.
    List,
    /// A map with these options.
    Map(&'static [&'static [Row]]),
    /// A list of maps with these options.
    Maps(&'static [&'static [Row]]),
    /// A map whose `type` decides about its options.
    Typed(Typed),
    /// A word or a number that stands for a map, or the map itself.
    Or(Box<Self>, Box<Self>),
    /// A function of the recipe with these parameters.
    Function(&'static str),
    /// A value that only the recipe's language knows, as "a loader".
    Handle(&'static str),
    /// Anything.
    Any,
}

impl Kind {
    /// The words that a value may be.
    pub fn words(&self) -> Vec<&'static str> {
        match self {
            Self::Words(words) => words.clone(),
            Self::Or(first, second) => [first.words(), second.words()].concat(),
            _ => Vec::new(),
        }
    }
}

/// A map whose `type` decides about its options.
#[derive(Debug)]
pub struct Typed {
    /// The options of every type.
    pub common: &'static [&'static [Row]],
    /// The types.
    pub variants: Vec<&'static Variant>,
    /// The type whose options are offered where the map names none.
    pub untyped: &'static str,
}

/// One type of such a map.
#[derive(Debug)]
pub struct Variant {
    /// The words of `type` for it.
    pub names: &'static [&'static str],
    /// Its options beside the common ones.
    pub tables: &'static [&'static [Row]],
}

impl Typed {
    /// The options of the type `kind`, table by table.
    pub fn tables(&self, kind: Option<&str>) -> Vec<&'static [Row]> {
        let kind = kind.unwrap_or(self.untyped);
        let is_it =
            |variant: &&&Variant| variant.names.iter().any(|name| name.eq_ignore_ascii_case(kind));
        let own = self.variants.iter().find(is_it).map_or(&[][..], |variant| variant.tables);
        own.iter().chain(self.common).copied().collect()
    }

    /// All words of `type`.
    pub fn words(&self) -> Vec<&'static str> {
        self.variants.iter().flat_map(|variant| variant.names).copied().collect()
    }
}
