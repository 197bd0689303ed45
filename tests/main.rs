//! Behaviour of dsr, seen from outside.

#![allow(clippy::unwrap_used)]

mod checkpoint;
mod cli;
mod data;
mod dist;
mod hub;
mod script;
mod support;
mod tidy;
