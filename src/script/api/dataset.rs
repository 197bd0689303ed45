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
    data::{
        self, ChatOptions, DataSource, Documents, OpenOptions, PackOptions, PreviewRow, SampleBy,
        TokenizeOptions,
    },
    error::Result,
    recipe::{caches, error::ScriptResult, options, value::argument},
    script::{api::dataset_rows, callback::Callback, host, iterate::set_iterator},
};

/// The seed of a shuffle that names none.
pub(crate) const DEFAULT_SEED: u64 = 0;

/// The functions of datasets, and `for` over the rows.
pub(super) fn build() -> Module {
    let mut module = rhai::exported_module!(api);
    set_iterator(&mut module, |dataset: data::Dataset| {
        Ok(dataset.rows()?.map(|row| row.map(dataset_rows::row_to_map)))
    });
    module
}

/// Datasets.
#[export_module]
pub mod api {
    use super::ShuffleOptions;
    use crate::script::api::{dataset_rows, tokenizer::api::Tokenizer};

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
        Ok(super::open(&ctx, spec, options)?)
    }

    /// Returns the names of the splits of a dataset.
    ///
    /// ```rhai
    /// print(dataset_splits("dsr:austen"));           // ["train", "validation", "test"]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn dataset_splits(ctx: NativeCallContext, spec: &str) -> ScriptResult<Array> {
        let (source, options) = super::located(&ctx, spec, OpenOptions::default())?;
        Ok(Dataset::splits(source, &options)?.into_iter().map(Dynamic::from).collect())
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
        let options: TokenizeOptions = options::read_table("tokenize", &options)?;
        let count = |length: Option<usize>| length.map(|length| length as u64);
        let lengths = (count(options.max_length), count(options.max_target_length));
        host::of(&ctx)?.row_lengths.cuts(lengths.0, lengths.1);
        Ok(dataset.tokenize(tokenizer, options)?)
    }

    /// Turns conversations into token ids by the tokenizer's chat template; the assistant's tokens, and the
    /// one that ends each of its turns, are trained.
    ///
    /// The columns tell the form: `messages`, ShareGPT's `conversations`, `prompt` and `completion`, or
    /// `instruction`, `input` and `output`.
    ///
    /// ```rhai
    /// let rows = dataset("dsr:austen").map(|row| #{ prompt: "Go on.", completion: row.text });
    /// let ds = rows.chat(tokenizer("dsr:gpt2"), #{ apply_chat_template: false });
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn chat(
        ctx: NativeCallContext,
        dataset: &mut Dataset,
        tokenizer: Tokenizer,
    ) -> ScriptResult<Dataset> {
        chat_with_options(ctx, dataset, tokenizer, Map::new())
    }

    /// Turns conversations into token ids, by these options.
    ///
    /// ```rhai
    /// let rows = dataset("dsr:austen").map(|row| #{ prompt: "Go on.", completion: row.text });
    /// let ds = rows.chat(tokenizer("dsr:gpt2"), #{ apply_chat_template: false, max_length: 512 });
    /// ```
    #[rhai_fn(name = "chat", return_raw, pure)]
    pub fn chat_with_options(
        ctx: NativeCallContext,
        dataset: &mut Dataset,
        tokenizer: Tokenizer,
        options: Map,
    ) -> ScriptResult<Dataset> {
        let options: ChatOptions = options::read_table("chat", &options)?;
        let cut = options.max_length.map(|length| length as u64);
        host::of(&ctx)?.row_lengths.cuts(cut, None);
        Ok(dataset.chat(tokenizer, options)?)
    }

    /// Prints the first `n` rows of tokens as text, and what of it is trained: in colour on a terminal,
    /// else between `[[` and `]]`.
    ///
    /// ```rhai
    /// dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2")).preview(2);
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn preview(ctx: NativeCallContext, dataset: &mut Dataset, n: Dynamic) -> ScriptResult<()> {
        let rows = dataset.preview(argument("n", &n)?)?;
        let output = &host::of(&ctx)?.output;
        for (i, row) in rows.iter().enumerate() {
            output.print(&super::previewed(i, row, output.has_colours));
        }
        Ok(())
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
        pack_with_options(ctx, dataset, seq_len, Map::new())
    }

    /// Puts rows together, with `documents: "separate"` so that no token sees another text: whole texts
    /// stand in rows of at most `seq_len` tokens, and positions begin anew in each. Losses are those of
    /// the same texts one by one.
    ///
    /// ```rhai
    /// let tokens = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2"));
    /// let ds = tokens.pack(1024, #{ documents: "separate" });
    /// ```
    #[rhai_fn(name = "pack", return_raw, pure)]
    pub fn pack_with_options(
        ctx: NativeCallContext,
        dataset: &mut Dataset,
        seq_len: Dynamic,
        options: Map,
    ) -> ScriptResult<Dataset> {
        let seq_len = argument("seq_len", &seq_len)?;
        let options: PackOptions = options::read_table("pack", &options)?;
        let packed = match options.documents {
            Documents::Joined => dataset.pack(seq_len)?,
            Documents::Separate => dataset.pack_documents(seq_len)?,
        };
        host::of(&ctx)?.row_lengths.packs(seq_len as u64);
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
        let keep = Callback::new(&ctx, keep)?.taking(1..=1, "|row|")?;
        Ok(dataset.filter(Rc::new(move |row| {
            keep.call_predicate(
                "the function of `filter`",
                (dataset_rows::row_to_map(row.clone()),),
            )
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
        let change = Callback::new(&ctx, change)?.taking(1..=1, "|row|")?;
        Ok(dataset.map(Rc::new(move |row| {
            dataset_rows::map_to_row(&change.call((dataset_rows::row_to_map(row),))?)
        }))?)
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

    /// Puts all rows in a random order that depends on the option `seed` and on the epoch; with
    /// `buffer_size` the rows of each block among each other, in memory.
    ///
    /// ```rhai
    /// let ds = dataset("dsr:austen").shuffle(#{ seed: 42 });
    /// let ds = dataset("dsr:austen").shuffle(#{ buffer_size: 1000 });
    /// ```
    #[rhai_fn(name = "shuffle", return_raw, pure)]
    pub fn shuffle_with_options(dataset: &mut Dataset, options: Map) -> ScriptResult<Dataset> {
        let ShuffleOptions { seed, buffer_size } = options::read_table("shuffle", &options)?;
        Ok(match buffer_size {
            Some(rows) => dataset.shuffle_blocks(seed, rows)?,
            None => dataset.shuffle(seed)?,
        })
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
        Ok(dataset_rows::row_at(dataset, index)?)
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
        Ok(dataset_rows::rows_in(dataset, range.start, range.end)?)
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
        Ok(dataset_rows::rows_in(dataset, *range.start(), range.end().saturating_add(1))?)
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
        /// whether large files of the hub are fetched when their rows are read, one ahead, and removed then
        #[option(default = false)]
        pub streaming: bool,
    }
}

option_table! {
    /// The options of `shuffle`.
    #[derive(Debug)]
    pub(crate) struct ShuffleOptions {
        /// the seed of the order
        #[option(default = DEFAULT_SEED)]
        pub seed: u64,
        /// the rows of a block that are put in order at once, in memory; without it all rows are, by a copy
        /// on disk
        #[option(optional, range = 1..)]
        pub buffer_size: Option<u64>,
    }
}

/// The options of `dataset`, without the hub and the directory that paths start from.
fn open_options(map: &Map) -> Result<OpenOptions> {
    let OpenTable { split, revision, sample_by, streaming } = options::read_table("dataset", map)?;
    Ok(OpenOptions { split, revision, sample_by, streaming, ..OpenOptions::default() })
}

/// The source that a text names, and the options with what the host gives.
fn located(
    ctx: &NativeCallContext,
    spec: &str,
    options: OpenOptions,
) -> Result<(DataSource, OpenOptions)> {
    let host = host::of(ctx)?;
    let source = host.workspace.rights.source(spec)?;
    let stop = Some(Arc::new(host.stopper()) as _);
    let token_cache = caches::tokens(&host.workspace.rights.env);
    let hub = Some(Rc::new(host) as _);
    Ok((source, OpenOptions { hub, token_cache, stop, ..options }))
}

fn open(ctx: &NativeCallContext, spec: &str, options: OpenOptions) -> Result<data::Dataset> {
    let (source, options) = located(ctx, spec, options)?;
    data::Dataset::open(source, &options)
}

/// A row with what is trained of it.
fn previewed(i: usize, row: &PreviewRow, has_colours: bool) -> String {
    let [open, close] = if has_colours { ["\x1b[32m", "\x1b[0m"] } else { ["[[", "]]"] };
    let mut text = format!("row {i}: {} tokens, {} trained\n", row.tokens, row.trained);
    for (part, is_trained) in &row.parts {
        match is_trained {
            true => text.extend([open, part, close]),
            false => text.push_str(part),
        }
    }
    text
}

fn description(dataset: &data::Dataset) -> String {
    // A dataset that cannot be counted is reported when its rows are read.
    let rows = match dataset.num_rows() {
        Ok(Some(rows)) => format!("{rows} rows, "),
        _ => String::new(),
    };
    format!("Dataset({}; {rows}columns {})", dataset.describe(), dataset.columns().join(", "))
}
