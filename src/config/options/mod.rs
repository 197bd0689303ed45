//! Option maps: tables of options, from which they are read, listed, completed and documented.
//!
//! A table is a struct in [`option_table`]: each field is an option, with its type, default, range and
//! help. A map becomes the struct, or *all* of its mistakes as one error.

mod document;
mod kind;
mod reader;
mod table;
mod value;
mod wrong;

pub(crate) use self::table::{option_table, option_words};
pub use self::{
    document::{Listing, document},
    kind::{Kind, ROW, Row, Typed, Variant},
    reader::{Field, Given, Options, read, read_empty, read_table},
    table::{OptionTable, OptionType, Switch, Tables},
    value::{Foreign, Map, OptionValue, Value, quoted, read_word},
    wrong::{Limits, Wrong, limits},
};
