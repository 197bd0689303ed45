//! dsr: train GPT-class models from recipes written in Rhai, over libtorch, without Python.
//!
//! The modules in reading order; each may use only those above it (`tests/tidy.rs` holds the
//! table, `ARCHITECTURE.md` the reasons):
//!
//! | layer | modules | concept |
//! |---|---|---|
//! | 0 | [`error`], [`panics`], [`hash`], [`foreign`], [`columns`], [`names`], [`fs`], [`units`], [`rope`], [`companions`], [`config`], [`config_json`], [`permission`] | the error type; panics of libraries; hashes; text of others, and tables of it; names of hosts; files that are whole or absent; sizes as text; frequencies of rotary positions; the files beside a model; validated settings; the config.json of models; what a recipe may do |
//! | 1 | [`bridge`], [`tensor`] | the only unsafe code: libtorch through C++; tensors made safe to use |
//! | 2 | [`dist`], [`tensor_parallel`] | process groups and collectives, one rank or many; ranks that share layers |
//! | 2 | [`sparse`], [`masks`], [`quantize`], [`kv_cache`], [`cost`] | attention to some keys; masks of scores; matrices in fewer bits; keys and values of texts; what operations keep and make |
//! | 3 | [`hub`], [`data`], [`model`], [`optim`], [`checkpoint`], [`swap`] | what a training step is made of |
//! | 3 | [`generation`] | texts that a model goes on with, many at a time |
//! | 4 | [`engine`] | forward, backward, step: the walk over the layers |
//! | 5 | [`run`], [`launch`] | a run's directory, metrics, progress and interruption; its ranks as processes |
//! | 6 | [`recipe`] | recipes as text: their parameters and imports, and where a mistake is |
//! | 7 | [`script`] | the host that runs recipes, and what they can call |
//! | 8 | [`live`] | a session of inputs: values, completion, what an input that fails leaves |
//! | 9 | [`repl`] | a session on a terminal: the prompt, the screen, commands |
//! | 10 | [`cli`] | the command line and the only code that prints |

#[macro_use]
pub mod error;
pub mod columns;
pub mod companions;
pub mod config;
pub mod config_json;
pub mod foreign;
pub mod fs;
pub mod hash;
pub mod names;
pub mod panics;
pub mod permission;
pub mod rope;
pub mod units;

pub mod bridge;
pub mod tensor;

pub mod dist;

pub mod checkpoint;
pub mod cost;
pub mod data;
pub mod hub;
pub mod kv_cache;
pub mod masks;
pub mod model;
pub mod optim;
pub mod quantize;
pub mod sparse;
pub mod swap;
pub mod tensor_parallel;

pub mod generation;

pub mod engine;
pub mod launch;
pub mod run;

pub mod recipe;

pub mod script;

pub mod live;

pub mod repl;

pub mod cli;
