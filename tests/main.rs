//! Behaviour of dsr, seen from outside.

// Outside of `#[test]` functions too: all of this binary is a test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod address;
mod batch;
mod book;
mod bundle;
mod check;
mod checkpoint;
mod cli;
mod data;
mod deepspeed;
mod device;
mod dist;
mod doctor;
mod engine;
mod examples;
mod families;
mod fuzz_corpus;
mod generation;
mod habits;
mod hub;
mod install;
mod launch;
mod lock;
mod memory;
mod mesh;
mod mistakes;
mod monitor;
mod numerics;
mod odd_arguments;
mod offload;
mod optimizers;
mod own_models;
mod precision;
mod recipes;
mod reference;
mod repl;
mod safety;
mod script;
mod stdlib;
mod support;
mod tidy;
mod trace;
mod zero;
