//! Datasets: from files to batches of token ids, lazily and in bounded memory.
//!
//! A [`Dataset`] is an immutable plan, a source and the operations on it; nothing is read until
//! batches are asked for, and then a few thousand rows at a time. Arrow's `RecordBatch` is the
//! currency between the stages, so that every format and every operation speaks the same types.
//! The last stage is the [`Loader`], which cuts the rows into micro batches for one rank and knows
//! its place, so that training can stop and go on with the very next row.
//!
//! | file | concept |
//! |---|---|
//! | `source/` | Parquet, Arrow IPC, JSON, CSV and text files; which files belong to which split |
//! | `split.rs` | Hugging Face's slicing syntax, `train[:1%]+test` |
//! | `dataset.rs`, `stage.rs` | [`Dataset`], the chain of stages |
//! | `tokenizer.rs`, `tokenize.rs`, `pack.rs`, `tokens.rs` | text to token ids to rows of equal length |
//! | `tokenized.rs`, `ahead.rs`, `token_cache.rs` | tokens made ahead by a thread, and kept from one run to the next |
//! | `chat/`, `pack_documents.rs` | conversations as tokens with labels; rows of texts that are apart |
//! | `rows.rs`, `values.rs` | rows as JSON objects: `filter` and `map`; no value changes on the way |
//! | `window.rs`, `spool.rs`, `shuffle.rs`, `shuffle_buffer.rs` | `take` and `skip`, a copy on disk, a permutation of it, one of each block |
//! | `columns.rs` | other columns of the same rows |
//! | `concat.rs`, `mix.rs`, `parts.rs` | the rows of several datasets, one after another and among each other |
//! | `tokenizer_files.rs` | the files beside a tokenizer's rules: its settings and the tokens that it adds |
//! | `tokenizer_pieces.rs`, `tokenizer_training.rs` | long texts in pieces; a tokenizer learned from a dataset |
//! | `source_name.rs`, `hub_names.rs` | what a name is: part of dsr, files, the hub; short names of the hub |
//! | `order.rs` | `sort` and `unique` |
//! | `loader.rs`, `batcher.rs`, `prefetch.rs`, `worker.rs`, `wanted.rs` | micro batches of one rank, in order, kept ready by a thread |
//! | `batch_table.rs`, `row_checks.rs` | the rows of one of them, checked and of one length |
//! | `batch.rs`, `batch_stats.rs` | one of them as tensors, and what is known of it |
//! | `batch_rows.rs` | the rows of a batch that training failed on |
//!
//! Not here: downloading (`hub`), and the shift of labels by one (the model does it, as in
//! Hugging Face).

mod ahead;
mod batch;
mod batch_rows;
mod batch_stats;
mod batch_table;
mod batcher;
mod chat;
mod columns;
mod concat;
mod dataset;
mod embedded;
mod hub_names;
mod loader;
mod mix;
mod order;
mod pack;
mod pack_documents;
mod parts;
mod places;
mod prefetch;
mod row_checks;
mod rows;
mod shuffle;
mod shuffle_buffer;
mod source;
mod source_name;
mod split;
mod spool;
mod stage;
mod token_cache;
mod tokenize;
mod tokenized;
mod tokenizer;
mod tokenizer_check;
mod tokenizer_files;
mod tokenizer_pieces;
mod tokenizer_training;
mod tokens;
mod values;
mod wanted;
mod window;
mod worker;

#[cfg(test)]
pub(crate) use batch::tests::batch_of;
pub use batch::{Batch, TargetTensors};
pub use batch_rows::{BatchRows, write_rows};
pub use batch_stats::BatchStats;
pub use batcher::{LoaderOptions, LoaderState, SavedPlace};
pub use chat::{ChatOptions, ChatTemplate, Message, PreviewRow};
pub use dataset::Dataset;
pub use hub_names::{hub_hint, no_path_hint};
pub use loader::Loader;
pub use mix::MixOptions;
pub use pack_documents::{Documents, PackOptions};
pub use rows::{RowMap, RowPredicate, Rows};
pub use source::{DatasetFiles, OpenOptions, SampleBy, matches};
pub use source_name::{DataSource, SourceName, WILD};
pub use split::{SplitSlice, parse_split};
pub use stage::Batches;
pub use tokenize::TokenizeOptions;
pub use tokenizer::{Tokenizer, is_tokenizer_json};
pub use tokenizer_training::{TokenizerTraining, TokenizerType};
pub use tokens::Padding;
pub use values::Row;
