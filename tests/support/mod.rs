//! What several tests stand on.

pub(crate) mod hub_server;
pub(crate) mod ranks;
pub(crate) mod recipe;
pub(crate) mod small_hub;
pub(crate) mod web_server;

use std::{
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The program, on the CPU wherever it runs: tests compare what the CPU computes. Those that are for
/// a GPU say so.
pub(crate) fn dsr() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsr"));
    command.env(DEVICE.0, DEVICE.1);
    command
}

/// The variable that says it.
pub(crate) const DEVICE: (&str, &str) = ("DSR_DEVICE", "cpu");

/// To be held by each test that trains in this process: libtorch has one random generator for all
/// threads, and engines seed it. Running a [`recipe::Recipe`] holds it.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}
