//! What several tests stand on.

pub(crate) mod examples;
pub(crate) mod expectations;
pub(crate) mod files;
pub(crate) mod hub_server;
pub(crate) mod numbers;
pub(crate) mod picture;
pub(crate) mod program;
pub(crate) mod ranks;
pub(crate) mod recipe;
pub(crate) mod small_hub;
pub(crate) mod stages;
pub(crate) mod terminal;
pub(crate) mod tiny;
pub(crate) mod tiny_run;
pub(crate) mod user;
pub(crate) mod watched_run;
pub(crate) mod web_server;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// To be held by each test that trains in this process: libtorch has one random generator for all
/// threads, and engines seed it. Running a [`recipe::Recipe`] holds it.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}
