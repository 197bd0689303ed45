//! The reader of the option map of a call, and the options of the map.

use rhai::Map;

use super::{
    option_functions::{OptionFunction, option_function},
    own_options::OwnOptions,
};
use crate::{config::options::Listing, error::Result};

/// The reader of the option map that ends a call.
pub(crate) enum OptionReader {
    /// A function of dsr, and its first argument, where it is a text that is known.
    Native(&'static OptionFunction, Option<String>),
    /// A function of a recipe.
    Own(OwnOptions),
}

impl OptionReader {
    /// The reader of a call of the function of dsr with this name.
    pub(crate) fn native(name: &str, first: Option<String>) -> Option<Self> {
        option_function(name).map(|function| Self::Native(function, first))
    }

    /// Reads a map for its mistakes.
    pub(crate) fn read(&self, map: &Map) -> Result<()> {
        match self {
            Self::Native(function, first) => function.read(first.as_deref(), map),
            Self::Own(options) => options.read(map),
        }
    }

    /// The names of the options of the map at `path`, down from the function's own; `kind` is the
    /// map's `type`.
    pub(crate) fn names(&self, path: &[String], kind: Option<&str>) -> Vec<String> {
        match self {
            Self::Own(options) => options.names(path),
            Self::Native(function, first) => {
                let settings = match path.is_empty() {
                    true => (function.settings)(first.as_deref()),
                    false => Vec::new(),
                };
                let listed = Listing::at(function.tables, path, kind);
                let names = listed.iter().flat_map(Listing::names).chain(settings);
                names.map(str::to_owned).collect()
            }
        }
    }

    /// The words that the option `key` of this map may be.
    pub(crate) fn words(
        &self,
        path: &[String],
        key: &str,
        kind: Option<&str>,
    ) -> Vec<&'static str> {
        let Self::Native(function, _) = self else { return Vec::new() };
        Listing::at(function.tables, path, kind).map(|map| map.words(key)).unwrap_or_default()
    }

    /// The help of the option `key` of this map, if a table has it.
    pub(crate) fn help(&self, path: &[String], key: &str, kind: Option<&str>) -> Option<String> {
        let Self::Native(function, _) = self else { return None };
        Listing::at(function.tables, path, kind)?.help(key)
    }
}
