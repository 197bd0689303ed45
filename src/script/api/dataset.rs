//! `Dataset` in scripts: rows of files, and lazy operations on them.
//!
//! A thin layer over [`crate::data::Dataset`]. Rows are maps; functions of the recipe see them as
//! JSON would carry them.

use std::{
    ops::{Range, RangeInclusive},
    rc::Rc,
    sync::Arc,
};

use rhai::{Array, Dynamic, FnPtr, Map, Module, plugin::*};

use crate::{
    config::options::option_table,
    data::{self, OpenOptions, Row, SampleBy, TokenizeOptions},
    error::{Code, Error, Result},
    recipe::{
        error::ScriptResult,
        options,
        value::{self, argument, describe},
    },
    script::{callback::Callback, host, iterate::set_iterator},
};

/// The seed of a shuffle that names none.
const DEFAULT_SEED: u64 = 0;

/// The functions of datasets, and `for` over the rows.
pub(super) fn build() -> Module {
    let mut module = rhai::exported_module!(api);
    set_iterator(&mut module, |dataset: data::Dataset| {
        Ok(dataset.rows()?.map(|row| row.map(row_to_map)))
    });
    module
}

/// Datasets.
#[export_module]
pub mod api {
    use crate::script::api::tokenizer::api::Tokenizer;

    /// A table of rows: where it comes from and what is done to it. Every operation makes a new
    /// one; nothing is read before it is needed.
    pub type Dataset = data::Dataset;

    /// Opens a dataset: a Parquet, Arrow, JSON, JSON Lines, CSV, TSV or text file, a glob, a directory,
    /// `dsr:austen`, which is in the binary, or `Owner/name:config` of the Hugging Face hub. JSON, CSV
    /// and text may be packed (`.gz`, `.zst`). Relative paths start from the working directory. A text
    /// file (`.txt`, `.md`) is one row, unless `sample_by` cuts it.
    ///
    /// * `spec` - the path, name or hub id
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen");
    /// let ds = dataset("corpus/*.parquet");
    /// let ds = dataset("Salesforce/wikitext:wikitext-2-raw-v1");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn dataset(ctx: NativeCallContext, spec: &str) -> ScriptResult<Dataset> {
        dataset_with_options(ctx, spec, Map::new())
    }

    /// Opens a part of a dataset, or another revision of it.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen", #{ split: "train[:1%]+test" });
    /// let ds = dataset("novel.txt", #{ sample_by: "paragraph" });
    /// let ds = dataset("Salesforce/wikitext:wikitext-2-raw-v1", #{ revision: "main" });
    /// ```
    #[rhai_fn(name = "dataset", return_raw)]
    pub fn dataset_with_options(
        ctx: NativeCallContext,
        spec: &str,
        options: Map,
    ) -> ScriptResult<Dataset> {
        let options = super::open_options(&options)?;
        Ok(Dataset::open(spec, &super::located(&ctx, spec, options)?)?)
    }

    /// Returns the names of the splits of a dataset.
    ///
    /// ```rhai
    /// print(dataset_splits("dsr:austen"));           // ["train", "validation", "test"]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn dataset_splits(ctx: NativeCallContext, spec: &str) -> ScriptResult<Array> {
        let options = super::located(&ctx, spec, OpenOptions::default())?;
        Ok(Dataset::splits(spec, &options)?.into_iter().map(Dynamic::from).collect())
    }

    /// Keeps the columns of these names, in this order.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").select(["text"]);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn select(dataset: &mut Dataset, columns: Array) -> ScriptResult<Dataset> {
        Ok(dataset.select(&super::names(&columns)?)?)
    }

    /// Leaves the columns of these names out.
    ///
    /// ```rhai
    /// let ds = dataset("rows.jsonl").remove(["id", "url"]);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn remove(dataset: &mut Dataset, columns: Array) -> ScriptResult<Dataset> {
        Ok(dataset.remove(&super::names(&columns)?)?)
    }

    /// Leaves a column out.
    ///
    /// ```rhai
    /// let ds = dataset("rows.jsonl").remove("id");
    /// ```
    #[rhai_fn(name = "remove", return_raw, pure)]
    pub fn remove_one(dataset: &mut Dataset, column: &str) -> ScriptResult<Dataset> {
        Ok(dataset.remove(&[column.to_owned()])?)
    }

    /// Gives columns other names: a map of the old names to the new ones.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").rename(#{ text: "content" });
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn rename(dataset: &mut Dataset, names: Map) -> ScriptResult<Dataset> {
        let pairs = names.iter().map(|(old, new)| Ok((old.to_string(), super::name(new)?)));
        Ok(dataset.rename(&pairs.collect::<Result<Vec<_>>>()?)?)
    }

    /// Makes columns of the fields of nested columns: `answers.text` of `#{ answers: #{ text: ... } }`.
    ///
    /// ```rhai
    /// let ds = dataset("rows.jsonl").flatten();
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn flatten(dataset: &mut Dataset) -> ScriptResult<Dataset> {
        Ok(dataset.flatten()?)
    }

    /// Puts the rows of another dataset with the same columns behind these.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").concat(dataset("dsr:austen", #{ split: "test" }));
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn concat(dataset: &mut Dataset, other: Dataset) -> ScriptResult<Dataset> {
        Ok(dataset.concat(&other)?)
    }

    /// Puts the rows of the second dataset behind those of the first.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen") + dataset("dsr:austen", #{ split: "test" });
    /// ```
    #[rhai_fn(name = "+", return_raw, pure)]
    pub fn add(dataset: &mut Dataset, other: Dataset) -> ScriptResult<Dataset> {
        Ok(dataset.concat(&other)?)
    }

    /// Puts the rows in the order of a column's values; equal ones keep their order.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").sort("text");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn sort(dataset: &mut Dataset, column: &str) -> ScriptResult<Dataset> {
        Ok(dataset.sort(column, false)?)
    }

    /// Puts the rows in the order of a column's values, the highest first with `reverse`.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").sort("text", #{ reverse: true });
    /// ```
    #[rhai_fn(name = "sort", return_raw, pure)]
    pub fn sort_with_options(
        dataset: &mut Dataset,
        column: &str,
        options: Map,
    ) -> ScriptResult<Dataset> {
        let super::SortOptions { reverse } = super::sort_options(&options)?;
        Ok(dataset.sort(column, reverse)?)
    }

    /// Keeps the first row of each value of a column.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").unique("text");
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn unique(dataset: &mut Dataset, column: &str) -> ScriptResult<Dataset> {
        Ok(dataset.unique(column)?)
    }

    /// Cuts the rows into two datasets, `train` and `test`, in a random order that stays.
    ///
    /// ```rhai
    /// let parts = dataset("dsr:austen").train_test_split(#{ test_size: 0.1, seed: 42 });
    /// print(parts.test.count());
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn train_test_split(dataset: &mut Dataset, options: Map) -> ScriptResult<Map> {
        Ok(super::train_test_split(dataset, &options)?)
    }

    /// Turns the column `text` into token ids, on all cores. The other columns are dropped.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2"));
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn tokenize(dataset: &mut Dataset, tokenizer: Tokenizer) -> ScriptResult<Dataset> {
        Ok(dataset.tokenize(tokenizer, TokenizeOptions::default())?)
    }

    /// Turns a column of text into token ids; with `text_target` into pairs for a model with an encoder.
    ///
    /// ```rhai
    /// let tok = tokenizer("dsr:gpt2");
    /// let ds = dataset("dsr:austen").tokenize(tok, #{
    ///     field: "text",
    ///     max_length: 128,
    ///     truncation: true,
    ///     padding: "max_length",
    /// });
    /// ```
    #[rhai_fn(name = "tokenize", return_raw, pure)]
    pub fn tokenize_with_options(
        ctx: NativeCallContext,
        dataset: &mut Dataset,
        tokenizer: Tokenizer,
        options: Map,
    ) -> ScriptResult<Dataset> {
        let options = super::tokenize_options(&options)?;
        if let Some(planning) = &host::of(&ctx)?.planning {
            let count = |length: Option<usize>| length.map(|length| length as u64);
            planning.cuts(count(options.max_length), count(options.max_target_length));
        }
        Ok(dataset.tokenize(tokenizer, options)?)
    }

    /// Joins the tokens of all rows and cuts them into rows of `seq_len` tokens. A shorter
    /// remainder at the end is dropped.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2")).pack(1024);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn pack(
        ctx: NativeCallContext,
        dataset: &mut Dataset,
        seq_len: Dynamic,
    ) -> ScriptResult<Dataset> {
        let seq_len = argument("seq_len", &seq_len)?;
        let packed = dataset.pack(seq_len)?;
        if let Some(planning) = &host::of(&ctx)?.planning {
            planning.packs(seq_len as u64);
        }
        Ok(packed)
    }

    /// Keeps the rows for which a function returns true. The function runs when rows are read.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").filter(|row| row.text.len > 0);
    /// ```
    // By value, so that the function can use the variable that it is called on; so is `map`.
    #[rhai_fn(return_raw)]
    pub fn filter(ctx: NativeCallContext, dataset: Dataset, keep: FnPtr) -> ScriptResult<Dataset> {
        let keep = Callback::new(&ctx, keep)?;
        Ok(dataset.filter(Rc::new(move |row| {
            keep.call_predicate("the function of `filter`", (super::row_to_map(row.clone()),))
        }))?)
    }

    /// Replaces every row by the map that a function returns. The function runs when rows are read,
    /// and once more for the first rows, now: they say what the columns are.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").map(|row| #{ text: row.text.to_lower() });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn map(ctx: NativeCallContext, dataset: Dataset, change: FnPtr) -> ScriptResult<Dataset> {
        let change = Callback::new(&ctx, change)?;
        Ok(dataset
            .map(Rc::new(move |row| super::map_to_row(&change.call((super::row_to_map(row),))?)))?)
    }

    /// Puts all rows in a random order, another in every epoch, always the same ones: the seed is 0.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").shuffle();
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn shuffle(dataset: &mut Dataset) -> ScriptResult<Dataset> {
        Ok(dataset.shuffle(DEFAULT_SEED)?)
    }

    /// Puts all rows in a random order that depends on the option `seed` and on the epoch.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").shuffle(#{ seed: 42 });
    /// ```
    #[rhai_fn(name = "shuffle", return_raw, pure)]
    pub fn shuffle_with_options(dataset: &mut Dataset, options: Map) -> ScriptResult<Dataset> {
        Ok(dataset.shuffle(super::shuffle_options(&options)?)?)
    }

    /// Copies the rows to a temporary file when they are first read; later epochs read the copy.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2")).cache();
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn cache(dataset: &mut Dataset) -> ScriptResult<Dataset> {
        Ok(dataset.cache()?)
    }

    /// Keeps the first `n` rows.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").take(100);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn take(dataset: &mut Dataset, n: Dynamic) -> ScriptResult<Dataset> {
        Ok(dataset.take(argument("n", &n)?)?)
    }

    /// Leaves the first `n` rows out.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").skip(100);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn skip(dataset: &mut Dataset, n: Dynamic) -> ScriptResult<Dataset> {
        Ok(dataset.skip(argument("n", &n)?)?)
    }

    /// Returns the number of rows. Where it depends on what is in the rows, they are all read.
    ///
    /// ```rhai
    /// print(dataset("dsr:austen").count());
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn count(dataset: &mut Dataset) -> ScriptResult<i64> {
        Ok(dataset.count()? as i64)
    }

    /// Returns the names of the columns.
    ///
    /// ```rhai
    /// print(dataset("dsr:austen").columns);           // ["text"]
    /// ```
    #[rhai_fn(get = "columns", pure)]
    pub fn columns(dataset: &mut Dataset) -> Array {
        dataset.columns().into_iter().map(Dynamic::from).collect()
    }

    /// Returns one row as a map; a negative index counts from the end.
    ///
    /// ```rhai
    /// print(dataset("dsr:austen")[3].text);
    /// ```
    #[rhai_fn(index_get, return_raw, pure)]
    pub fn row(dataset: &mut Dataset, index: i64) -> ScriptResult<Dynamic> {
        Ok(super::row_at(dataset, index)?)
    }

    /// Returns the rows of a range as an array of maps; those beyond the last row are left out.
    ///
    /// ```rhai
    /// for row in dataset("dsr:austen")[0..3] {
    ///     print(row.text);
    /// }
    /// ```
    #[rhai_fn(index_get, return_raw, pure)]
    pub fn rows(dataset: &mut Dataset, range: Range<i64>) -> ScriptResult<Array> {
        Ok(super::rows_in(dataset, range.start, range.end)?)
    }

    /// Returns the rows of a range with its last, as an array of maps.
    ///
    /// ```rhai
    /// print(dataset("dsr:austen")[0..=2].len);        // 3
    /// ```
    #[rhai_fn(index_get, return_raw, pure)]
    pub fn rows_with_last(
        dataset: &mut Dataset,
        range: RangeInclusive<i64>,
    ) -> ScriptResult<Array> {
        Ok(super::rows_in(dataset, *range.start(), range.end().saturating_add(1))?)
    }

    /// Describes the dataset: where it comes from, what is done to it, its columns.
    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn describe(dataset: &mut Dataset) -> String {
        super::description(dataset)
    }
}

option_table! {
    /// The options of `dataset`.
    #[derive(Debug)]
    pub(crate) struct OpenTable {
        /// the rows, in Hugging Face's slicing syntax: `train[:1%]+test`; `train`, or the only split, by
        /// default
        #[option(optional)]
        pub split: Option<String>,
        /// a branch, tag or commit of the hub
        #[option(optional)]
        pub revision: Option<String>,
        /// what of a text file is a row
        #[option(default = SampleBy::Document)]
        pub sample_by: SampleBy,
    }
}

option_table! {
    /// The option of `sort`.
    #[derive(Debug)]
    pub(crate) struct SortOptions {
        /// whether the highest value comes first
        #[option(default = false)]
        pub reverse: bool,
    }
}

option_table! {
    /// The options of `train_test_split`.
    #[derive(Debug)]
    pub(crate) struct SplitOptions {
        /// the rows of `test`: a share below 1, or a number of rows
        #[option(default = 0.25, range = 0.0..)]
        pub test_size: f64,
        /// whether the rows are put in a random order before
        #[option(default = true)]
        pub shuffle: bool,
        /// the seed of the order
        #[option(default = DEFAULT_SEED)]
        pub seed: u64,
    }
}

option_table! {
    /// The option of `shuffle`.
    #[derive(Debug)]
    pub(crate) struct ShuffleOptions {
        /// the seed of the order
        #[option(default = DEFAULT_SEED)]
        pub seed: u64,
    }
}

/// The options of `dataset`, without the hub and the directory that paths start from.
pub(crate) fn open_options(map: &Map) -> Result<OpenOptions> {
    let OpenTable { split, revision, sample_by } = options::read_table("dataset", map)?;
    Ok(OpenOptions { split, revision, sample_by, ..OpenOptions::default() })
}

/// The options with where and how this recipe may look for the dataset.
fn located(ctx: &NativeCallContext, spec: &str, options: OpenOptions) -> Result<OpenOptions> {
    let host = host::of(ctx)?;
    host.workspace.rights.check_source(spec)?;
    let base_dir = host.workspace.rights.work_dir.clone();
    let stop = Some(Arc::new(host.stopper()) as _);
    let hub = Some(Rc::new(host) as _);
    Ok(OpenOptions { base_dir, hub, stop, ..options })
}

/// The option of `sort`.
pub(crate) fn sort_options(map: &Map) -> Result<SortOptions> {
    options::read_table("sort", map)
}

/// The options of `train_test_split`.
pub(crate) fn split_options(map: &Map) -> Result<SplitOptions> {
    options::read_table("train_test_split", map)
}

fn train_test_split(dataset: &data::Dataset, options: &Map) -> Result<Map> {
    let SplitOptions { test_size, shuffle, seed } = split_options(options)?;
    let rows = match test_size < 1.0 {
        true => (dataset.count()? as f64 * test_size).ceil() as u64,
        false if test_size.fract() == 0.0 => test_size as u64,
        false => {
            let message = "test_size is a share below 1, or a whole number of rows";
            return Err(Error::new(Code::BadValue, message).option("test_size"));
        }
    };
    let (train, test) = dataset.split_at_end(rows, shuffle.then_some(seed))?;
    let part = |name: &str, rows: data::Dataset| (name.into(), Dynamic::from(rows));
    Ok([part("train", train), part("test", test)].into())
}

/// The name of a column.
fn name(value: &Dynamic) -> Result<String> {
    value.clone().into_string().map_err(|_| {
        let found = describe(value);
        Error::new(Code::WrongType, format!("the name of a column is text, found {found}"))
    })
}

fn names(values: &Array) -> Result<Vec<String>> {
    values.iter().map(name).collect()
}

/// The options of `tokenize`.
pub(crate) fn tokenize_options(map: &Map) -> Result<TokenizeOptions> {
    options::read_table("tokenize", map)
}

/// The option of `shuffle`: the seed.
pub(crate) fn shuffle_options(map: &Map) -> Result<u64> {
    options::read_table("shuffle", map).map(|ShuffleOptions { seed }| seed)
}

/// A row as scripts see it.
pub(super) fn row_to_map(row: Row) -> Dynamic {
    value::from_json(row.into())
}

/// A row that a function of the recipe has made.
fn map_to_row(returned: &Dynamic) -> Result<Row> {
    match value::to_json(returned)? {
        serde_json::Value::Object(row) => Ok(row),
        _ => {
            let found = describe(returned);
            let message = format!("the function of `map` must return a map, found {found}");
            Err(Error::new(Code::WrongType, message).hint("for example: |row| #{ text: row.text }"))
        }
    }
}

fn row_at(dataset: &data::Dataset, index: i64) -> Result<Dynamic> {
    let from_start = match u64::try_from(index) {
        Ok(index) => index,
        Err(_) => {
            let rows = dataset.count()?;
            rows.checked_sub(index.unsigned_abs()).ok_or_else(|| {
                Error::new(Code::Data, format!("no row {index}: the dataset has {rows} rows"))
            })?
        }
    };
    dataset.row(from_start).map(row_to_map)
}

fn rows_in(dataset: &data::Dataset, from: i64, to: i64) -> Result<Array> {
    let Ok(first) = u64::try_from(from) else {
        bail!(Code::BadValue, "a range of rows starts at 0 or later, found {from}..{to}");
    };
    let len = u64::try_from(to.saturating_sub(from)).unwrap_or(0);
    dataset.skip(first)?.take(len)?.rows()?.map(|row| row.map(row_to_map)).collect()
}

fn description(dataset: &data::Dataset) -> String {
    // A dataset that cannot be counted is reported when its rows are read.
    let rows = match dataset.num_rows() {
        Ok(Some(rows)) => format!("{rows} rows, "),
        _ => String::new(),
    };
    format!("Dataset({}; {rows}columns {})", dataset.describe(), dataset.columns().join(", "))
}
