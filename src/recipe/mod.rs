//! Recipes as text, and their rights.
//!
//! Nothing here runs a recipe. Rhai's parser reads the text; the declarations, imports and requests of
//! the recipe, and the places of its faults, are found in the syntax tree.

pub mod address;
pub mod bundle;
pub mod bundling;
pub mod description;
pub mod diagnostics;
pub mod error;
pub mod file;
mod habits;
pub mod hub_name;
pub mod literal;
pub mod lock;
pub mod locking;
pub mod options;
pub mod params;
pub mod requests;
pub mod rights;
pub mod sources;
pub mod value;
pub mod workspace;

pub(crate) mod caches;
pub(crate) mod embedded;
pub(crate) mod imports;
pub(crate) mod indices;
pub(crate) mod lexer;
pub(crate) mod locate;
pub(crate) mod parser;
pub(crate) mod recovery;
pub(crate) mod resolver;
pub(crate) mod translate;

mod imported_files;
mod module_path;
mod parameter_uses;

pub use self::{
    description::{Description, describe},
    diagnostics::Failure,
    error::ScriptResult,
    file::Recipe,
    params::Parameter,
    workspace::Workspace,
};
