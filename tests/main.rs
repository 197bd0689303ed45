//! Behaviour of dsr, seen from outside.

mod cli;
mod script;
