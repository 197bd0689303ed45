//! Option maps: tables of options, from which they are read, listed, completed and documented.
//!
//! A table is a struct in `option_table!`: each field is an option, with its type, default, range and
//! help. A map becomes the struct, or *all* of its mistakes as one error.

mod document;
mod field;
mod kind;
mod limits;
mod reader;
mod table;
mod types;
mod value;
mod wrong;

pub(crate) use self::table::{option_table, option_words};
pub use self::{
    document::{Listing, document},
    field::{Field, Given},
    kind::{Kind, ROW, Row, Typed, Variant},
    limits::{Limits, is_finite, limits},
    reader::{OptionTable, OptionType, Options, read, read_empty, read_table},
    table::{Switch, Tables},
    types::{AUTO, OneOrMany, OptionValue, read_word},
    value::{Foreign, Map, Value, quoted},
    wrong::Wrong,
};
