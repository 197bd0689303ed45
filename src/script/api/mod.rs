//! The functions that a recipe can call: one file for each concept, and one table of them all.
//!
//! A binding is thin: it reads its options, calls the layer below and wraps the result in a handle.
//! Its doc comment is its reference.

#![allow(clippy::unwrap_used, reason = "`#[export_module]` unwraps arguments it has checked")]

pub mod adapters;
pub mod batch;
pub mod console;
pub mod dataset;
mod dataset_rows;
pub mod deepspeed;
pub mod engine;
pub mod engine_batch;
pub mod engine_ema;
pub mod engine_restore;
pub mod engine_speed;
pub mod generate;
pub mod json;
pub mod language;
pub mod loader;
pub mod model;
pub mod nn;
pub mod optimizer;
pub mod options;
pub mod param;
pub mod plot;
pub mod ranks;
pub mod run;
mod run_records;
pub mod table;
pub mod tensor;
pub mod tokenizer;
pub mod tokenizer_training;

mod evaluation;
pub(crate) mod groups;
