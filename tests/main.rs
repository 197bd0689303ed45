//! Behaviour of dsr, seen from outside.

// clippy's allow-unwrap-in-tests knows only functions that carry #[test].
#![allow(clippy::unwrap_used)]

mod cli;
mod script;
