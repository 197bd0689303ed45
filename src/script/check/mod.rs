//! Mistakes that can be seen before a recipe runs.
//!
//! Rhai looks a function up when it is called, which may be an hour into a run. The check looks at once:
//! whether a function, method or property exists and takes such arguments, whether options that are
//! written out are right, whether `P::x` is a parameter of the recipe. Types of values count only where
//! they are certain.

mod calls;
mod known;
mod option_functions;
mod own_options;
mod reader;
mod source;
mod surface;
mod types;
mod whole;
mod written;

pub use self::option_functions::check_options;
pub(crate) use self::{
    known::KnownNames,
    option_functions::option_function,
    own_options::OwnOptions,
    reader::OptionReader,
    source::{check, check_input},
    surface::{Surface, ValueType},
    whole::check_whole,
};
