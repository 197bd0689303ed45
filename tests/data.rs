//! Datasets, from files to batches: what a recipe relies on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{fs::File, path::Path, rc::Rc, sync::Arc};

use arrow::{
    array::{ArrayRef, Int32Array, ListArray, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int32Type, Schema},
    ipc::{
        CompressionType,
        writer::{FileWriter, IpcWriteOptions, StreamWriter},
    },
};
use dsr::{
    data::{
        Batch, DataSource, Dataset, DatasetFiles, Loader, LoaderOptions, OpenOptions, Padding, Row,
        SampleBy, SourceName, TokenizeOptions, Tokenizer, TokenizerTraining,
    },
    error::{Code, Error, Result},
    fs::Place,
    hub::{DatasetFile, DatasetId},
};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use serde_json::json;
use tempfile::TempDir;

mod damaged_files;
mod files;
mod kept_tokens;
mod loading;
mod operations;
mod sentencepiece;
mod sources;
mod tokenizers;
mod values;

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn options(split: Option<&str>) -> OpenOptions {
    OpenOptions {
        split: split.map(str::to_owned),
        sample_by: SampleBy::Line,
        ..OpenOptions::default()
    }
}

/// What `spec` names where `dir` is the working directory.
fn source(dir: &TempDir, spec: &str) -> DataSource {
    SourceName::parse(spec, dir.path()).beneath(&Place::unguarded(dir.path()))
}

fn open(dir: &TempDir, spec: &str) -> Result<Dataset> {
    Dataset::open(source(dir, spec), &options(None))
}

fn open_split(dir: &TempDir, spec: &str, split: &str) -> Result<Dataset> {
    Dataset::open(source(dir, spec), &options(Some(split)))
}

fn texts(dataset: &Dataset) -> Vec<String> {
    dataset.rows().unwrap().map(|row| row.unwrap()["text"].as_str().unwrap().to_owned()).collect()
}

fn gpt2() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::open("dsr:gpt2").unwrap())
}

/// `rows` numbered lines, `row 0`, `row 1` and so on.
fn numbered(rows: usize) -> String {
    (0..rows).map(|i| format!("row {i}\n")).collect()
}

fn text_batch(from: usize, to: usize) -> RecordBatch {
    let column: ArrayRef =
        Arc::new(StringArray::from_iter_values((from..to).map(|i| format!("row {i}"))));
    RecordBatch::try_from_iter([("text", column)]).unwrap()
}

fn write_parquet(path: &Path, batch: &RecordBatch, rows_per_group: usize) {
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(rows_per_group)).build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// A dataset of `rows` rows of `len` tokens: row i holds i, i, i, ...
fn token_rows(dir: &TempDir, rows: i32, len: usize) -> Dataset {
    let data = (0..rows).map(|i| Some(vec![Some(i); len]));
    let column: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(data));
    let batch = RecordBatch::try_from_iter([("input_ids", column)]).unwrap();
    write_parquet(&dir.path().join("tokens.parquet"), &batch, 7);
    open(dir, "tokens.parquet").unwrap()
}

fn ids(batch: &Batch) -> Vec<Vec<i64>> {
    Vec::try_from(batch.input_ids()).unwrap()
}

fn labels(batch: &Batch) -> Vec<Vec<i64>> {
    Vec::try_from(batch.labels()).unwrap()
}

fn mask(batch: &Batch) -> Vec<Vec<i64>> {
    Vec::try_from(batch.attention_mask()).unwrap()
}

/// The first token of every row of a batch: which rows they are.
fn which(batch: &Batch) -> Vec<i64> {
    ids(batch).iter().map(|row| row[0]).collect()
}

fn all(loader: Loader) -> Vec<Vec<i64>> {
    loader.map(|batch| which(&batch.unwrap())).collect()
}

fn micro(micro_batch_size: usize) -> LoaderOptions {
    LoaderOptions { micro_batch_size, ..LoaderOptions::default() }
}
