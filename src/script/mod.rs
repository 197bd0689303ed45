//! The host of recipes.
//!
//! A [`Session`] runs a recipe. The recipe calls the functions of [`api`], which reach the [`Host`].

pub mod api;
pub mod callback;
pub mod deepspeed;
pub mod engine_options;
pub mod host;
pub mod output;
pub mod planning;
pub mod ranks;
pub mod reference;
pub mod session;
pub mod shared;

pub(crate) mod check;
pub(crate) mod feed;
pub(crate) mod runtime;

mod iterate;
mod mistakes;
mod observers;
mod program;
mod row_lengths;

/// The language; a program that adds functions needs the same version.
pub use rhai;

pub use self::{
    callback::Callback,
    check::{check_options, written_meshes},
    host::Host,
    planning::Planned,
    session::Session,
    shared::Shared,
};
