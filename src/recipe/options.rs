//! Option maps of scripts, read as any option map; handles and functions are a script's own.

use std::fmt;

use rhai::Map;

use super::value;
pub use crate::config::options::Options;
use crate::{
    config::options::{self, Given, Kind, OptionTable, OptionType, Value},
    error::Result,
};

/// Reads the trailing option map of the function `owner`: `fields` asks for every option that
/// exists, and what it did not ask for is refused.
pub fn read<T>(owner: &str, map: &Map, fields: impl FnOnce(&mut Options<'_>) -> T) -> Result<T> {
    options::read(owner, &value::option_map(map), fields)
}

/// Reads the trailing option map of the function `owner` into a table.
pub fn read_table<T: OptionTable>(owner: &str, map: &Map) -> Result<T> {
    read(owner, map, T::read)
}

/// A type of values that a script can hold and an option can be.
pub trait ScriptType: Clone + 'static {
    /// Completes "`path` must be ...".
    const EXPECTED: &'static str;
}

/// The value of an option that is no plain data, where it is given.
pub struct Handed<T>(pub Option<T>);

impl<T> Default for Handed<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: ScriptType> fmt::Debug for Handed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref().map_or("nothing", |_| T::EXPECTED))
    }
}

impl<T: ScriptType> OptionType for Handed<T> {
    fn take(o: &mut Options<'_>, key: &'static str) -> Given<Self> {
        let Some(found) = o.raw(key) else { return Given::Absent };
        let handle = held(&found);
        if handle.is_none() {
            o.refuse_value(key, T::EXPECTED, &found);
            return Given::Faulty;
        }
        Given::Value(Self(handle))
    }

    fn kind() -> Kind {
        Kind::Handle(T::EXPECTED)
    }
}

/// The value of this type that only a script knows.
pub fn held<T: Clone + 'static>(found: &Value) -> Option<T> {
    let Value::Foreign(foreign) = found else { return None };
    value::of_foreign(foreign).try_cast()
}

/// The option `key`, which is no plain data.
pub fn handed<T: ScriptType>(o: &mut Options<'_>, key: &'static str) -> Option<T> {
    o.get::<Handed<T>>(key).or(Handed(None)).0
}
