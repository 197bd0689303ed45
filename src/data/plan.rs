//! `Dataset`: an immutable chain of stages, each of which can be read from any row of any epoch.
//!
//! Every stage answers the same few questions ([`Stage`]): its columns, how many rows if that is
//! known without reading, and its rows from a given one on. A stage that keeps rows one to one
//! hands the starting row down, so that a resumed run skips row groups of a Parquet file instead
//! of decoding them; the others read and drop.

use std::{fmt, rc::Rc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};

use super::{
    loader::{Loader, LoaderOptions},
    pack::Pack,
    rows::{Filter, Map, Row, RowMap, RowPredicate, Rows, to_rows},
    shuffle::Shuffle,
    source::{self, OpenOptions},
    spool::Spool,
    tokenize::{Tokenize, TokenizeOptions},
    tokenizer::Tokenizer,
    tokens,
    window::Window,
};
use crate::{
    config::suggest,
    error::{Code, Error, Result},
};

/// Rows as Arrow batches, in order.
pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch>>>;

/// One stage of a plan: a source, or an operation on another stage.
pub(super) trait Stage {
    /// The columns of every batch.
    fn schema(&self) -> SchemaRef;

    /// The number of rows, where it is known without reading them.
    fn num_rows(&self) -> Result<Option<u64>>;

    /// The rows of `epoch`, from row `from` on; empty when there are not that many.
    fn read(&self, epoch: u64, from: u64) -> Result<Batches>;

    /// The number of rows, by reading them where it must be.
    fn count(&self) -> Result<u64> {
        if let Some(rows) = self.num_rows()? {
            return Ok(rows);
        }
        self.read(0, 0)?.try_fold(0, |rows, batch| Ok(rows + batch?.num_rows() as u64))
    }

    /// Whether counting costs nothing extra, because reading has to pass over all rows anyway.
    fn is_spooled(&self) -> bool {
        false
    }

    /// What this stage does, in a few words, after its input's description.
    fn describe(&self) -> String;
}

/// A table of rows, described by where it comes from and what is done to it.
///
/// Cheap to clone; every operation returns a new dataset and leaves this one as it was. Nothing is
/// read before rows or batches are asked for, except what is needed to know the columns.
#[derive(Clone)]
pub struct Dataset {
    stage: Rc<dyn Stage>,
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dataset({})", self.describe())
    }
}

impl Dataset {
    /// Opens a dataset by path, glob, `dsr:NAME` or hub id `Owner/name[:config]`.
    ///
    /// # Errors
    /// A file that is missing, empty, damaged or of an unknown format; a split that does not exist.
    pub fn open(spec: &str, options: &OpenOptions) -> Result<Self> {
        Ok(Self::from_stage(source::open(spec, options)?))
    }

    pub(super) fn from_stage(stage: impl Stage + 'static) -> Self {
        Self { stage: Rc::new(stage) }
    }

    pub(super) fn stage(&self) -> &Rc<dyn Stage> {
        &self.stage
    }

    /// The columns with their types.
    pub fn schema(&self) -> SchemaRef {
        self.stage.schema()
    }

    /// The names of the columns.
    pub fn columns(&self) -> Vec<String> {
        self.schema().fields().iter().map(|f| f.name().clone()).collect()
    }

    /// The number of rows, where it is known without reading them.
    pub fn num_rows(&self) -> Result<Option<u64>> {
        self.stage.num_rows()
    }

    /// The number of rows, by reading all of them where it must be.
    pub fn count(&self) -> Result<u64> {
        self.stage.count()
    }

    /// Turns the text column into `input_ids`, on all cores.
    ///
    /// The result has the column `input_ids` (list of int32), and `attention_mask` when rows are
    /// padded; the other columns are dropped.
    ///
    /// # Errors
    /// A field that is not a text column, or options that contradict each other.
    pub fn tokenize(&self, tokenizer: Rc<Tokenizer>, options: TokenizeOptions) -> Result<Self> {
        Ok(Self::from_stage(Tokenize::new(self.stage.clone(), tokenizer, options)?))
    }

    /// Joins the tokens of all rows and cuts them into rows of exactly `seq_len` tokens; a shorter
    /// remainder at the end is dropped. Padding does not enter the rows.
    ///
    /// # Errors
    /// No token column, or `seq_len` 0.
    pub fn pack(&self, seq_len: usize) -> Result<Self> {
        Ok(Self::from_stage(Pack::new(self.stage.clone(), seq_len)?))
    }

    /// Keeps the rows for which `keep` says yes.
    pub fn filter(&self, keep: RowPredicate) -> Result<Self> {
        Ok(Self::from_stage(Filter::new(self.stage.clone(), keep)))
    }

    /// Replaces every row. The columns are those of the first rows that `change` returns, for which
    /// it is called once more, now.
    ///
    /// # Errors
    /// Whatever `change` fails with on the first rows.
    pub fn map(&self, change: RowMap) -> Result<Self> {
        Ok(Self::from_stage(Map::new(self.stage.clone(), change)?))
    }

    /// All rows in an order drawn from `seed`, another in every epoch. The rows are copied once to
    /// a temporary file on disk, so memory stays small; clones share the file.
    pub fn shuffle(&self, seed: u64) -> Result<Self> {
        Ok(Self::from_stage(Shuffle::new(self.stage.clone(), seed)))
    }

    /// Copies the rows once to a temporary file at the first use: later epochs read them from
    /// there instead of computing them again, and resuming seeks.
    pub fn cache(&self) -> Result<Self> {
        Ok(Self::from_stage(Spool::new(self.stage.clone())))
    }

    /// The first `n` rows.
    pub fn take(&self, n: u64) -> Result<Self> {
        Ok(Self::from_stage(Window::take(self.stage.clone(), n)))
    }

    /// All rows but the first `n`.
    pub fn skip(&self, n: u64) -> Result<Self> {
        Ok(Self::from_stage(Window::skip(self.stage.clone(), n)))
    }

    /// The rows of the first epoch as Arrow batches.
    pub fn batches(&self) -> Result<Batches> {
        self.stage.read(0, 0)
    }

    /// The rows of the first epoch as JSON objects.
    pub fn rows(&self) -> Result<Rows> {
        Ok(Rows::new(self.stage.read(0, 0)?))
    }

    /// Row `index` of the first epoch.
    ///
    /// # Errors
    /// There are not that many rows.
    pub fn row(&self, index: u64) -> Result<Row> {
        if let Some(batch) = skip_empty(self.stage.read(0, index)?).next().transpose()?
            && let Some(row) = to_rows(&batch.slice(0, 1))?.pop()
        {
            return Ok(row);
        }
        let rows = self.count()?;
        bail!(Code::Data, "no row {index}: the dataset has {rows} rows, counted from 0")
    }

    /// Micro batches for one rank.
    ///
    /// # Errors
    /// No column `input_ids` of token ids, or impossible options.
    pub fn loader(&self, options: LoaderOptions) -> Result<Loader> {
        Loader::new(self.clone(), options)
    }

    /// Where the rows come from and what is done to them, in one line.
    pub fn describe(&self) -> String {
        self.stage.describe()
    }
}

/// Refuses a column that does not exist, listing those that do.
pub(super) fn no_column(name: &str, schema: &SchemaRef) -> Error {
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let e = Error::new(
        Code::Data,
        format!("no column \"{name}\": the columns are {}", names.join(", ")),
    );
    match suggest::nearest(name, names) {
        Some(near) => e.hint(format!("did you mean \"{near}\"?")),
        None => e,
    }
}

/// Checks for a column of token ids, pointing to `tokenize` where there is text instead.
pub(super) fn require_tokens(schema: &SchemaRef, doing: &str) -> Result<()> {
    let Ok(field) = schema.field_with_name(tokens::INPUT_IDS) else {
        let e = no_column(tokens::INPUT_IDS, schema);
        let text = schema.fields().iter().find(|f| is_text(f.data_type()));
        return Err(match text {
            Some(f) if f.name() == "text" => {
                e.hint(format!("call .tokenize(tokenizer) before .{doing}"))
            }
            Some(f) => e.hint(format!(
                "call .tokenize(tokenizer, #{{ field: \"{}\" }}) before .{doing}",
                f.name()
            )),
            None => e,
        });
    };
    tokens::check_type(field)
}

/// Whether a column holds strings.
pub(super) fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Drops the first `n` rows of a stream.
pub(super) fn skip_rows(batches: Batches, n: u64) -> Batches {
    let mut left = n;
    Box::new(batches.filter_map(move |batch| {
        let batch = match batch {
            Ok(batch) if left > 0 => batch,
            other => return Some(other),
        };
        let rows = batch.num_rows() as u64;
        let drop = left.min(rows);
        left -= drop;
        (drop < rows).then(|| Ok(batch.slice(drop as usize, (rows - drop) as usize)))
    }))
}

/// Ends a stream after `n` rows, without reading further.
pub(super) fn limit_rows(mut batches: Batches, n: u64) -> Batches {
    let mut left = n;
    Box::new(std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let batch = batches.next()?;
        Some(batch.map(|batch| {
            let keep = left.min(batch.num_rows() as u64);
            left -= keep;
            batch.slice(0, keep as usize)
        }))
    }))
}

fn skip_empty(batches: Batches) -> impl Iterator<Item = Result<RecordBatch>> {
    batches.filter(|b| !matches!(b, Ok(batch) if batch.num_rows() == 0))
}
