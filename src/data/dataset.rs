//! `Dataset`: an immutable chain of stages ([`Stage`]), each of which can be read from any row of
//! any epoch.

use std::{fmt, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};

use super::{
    batcher::LoaderOptions,
    chat::{ChatOptions, PreviewRow, chat, preview},
    columns::Columns,
    concat::Concat,
    loader::Loader,
    mix::{Mix, MixOptions},
    order::{Ordered, Rule},
    pack::Pack,
    pack_documents::PackDocuments,
    rows::{Filter, Map, RowMap, RowPredicate, Rows},
    shuffle::Shuffle,
    shuffle_buffer::ShuffleBuffer,
    source::{self, OpenOptions},
    source_name::DataSource,
    spool::Spool,
    stage::{Batches, Stage},
    tokenize::{TokenizeOptions, tokenize},
    tokenizer::Tokenizer,
    values::{Row, to_rows},
    window::Window,
};
use crate::error::{Code, Error, Result};

/// A table of rows, described by where it comes from and what is done to it.
///
/// Cheap to clone; every operation returns a new dataset and leaves this one as it was. Nothing is
/// read before rows or batches are asked for, except what is needed to know the columns.
#[derive(Clone)]
pub struct Dataset {
    stage: Arc<dyn Stage>,
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dataset({})", self.describe())
    }
}

impl Dataset {
    /// Opens a dataset by path, glob, `dsr:NAME` or hub id `Owner/name[:config]`.
    pub fn open(source: impl Into<DataSource>, options: &OpenOptions) -> Result<Self> {
        Ok(Self::from_stage(source::open(&source.into(), options)?))
    }

    /// The names of the splits of a dataset, in order.
    pub fn splits(source: impl Into<DataSource>, options: &OpenOptions) -> Result<Vec<String>> {
        source::splits(&source.into(), options)
    }

    pub(super) fn from_stage(stage: impl Stage + 'static) -> Self {
        Self { stage: Arc::new(stage) }
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
    /// padded, and `labels` where there is a `text_target`; the other columns are dropped.
    pub fn tokenize(&self, tokenizer: Arc<Tokenizer>, options: TokenizeOptions) -> Result<Self> {
        Ok(Self::from_stage(tokenize(self.stage.clone(), tokenizer, options)?))
    }

    /// Turns conversations into `input_ids` and `labels`, which are -100 but for what the assistant wrote.
    pub fn chat(&self, tokenizer: Arc<Tokenizer>, options: ChatOptions) -> Result<Self> {
        Ok(Self::from_stage(chat(self.stage.clone(), tokenizer, options)?))
    }

    /// The first `n` rows of tokens as text, with what is trained of them.
    pub fn preview(&self, n: usize) -> Result<Vec<PreviewRow>> {
        preview(&self.stage, n)
    }

    /// Joins the tokens of all rows and cuts them into rows of exactly `seq_len` tokens; a shorter
    /// remainder at the end is dropped. Padding does not enter the rows.
    pub fn pack(&self, seq_len: usize) -> Result<Self> {
        Ok(Self::from_stage(Pack::new(self.stage.clone(), seq_len)?))
    }

    /// Puts whole texts into rows of at most `seq_len` tokens, in which no token sees another text.
    pub fn pack_documents(&self, seq_len: usize) -> Result<Self> {
        Ok(Self::from_stage(PackDocuments::new(self.stage.clone(), seq_len)?))
    }

    /// Keeps the rows for which `keep` says yes.
    pub fn filter(&self, keep: RowPredicate) -> Result<Self> {
        Ok(Self::from_stage(Filter::new(self.stage.clone(), keep)))
    }

    /// Replaces every row. The columns are those of the first rows that `change` returns, for which
    /// it is called once more, now.
    pub fn map(&self, change: RowMap) -> Result<Self> {
        Ok(Self::from_stage(Map::new(self.stage.clone(), change)?))
    }

    /// All rows in an order drawn from `seed`, another in every epoch. The rows are copied once to
    /// a temporary file on disk, so memory stays small; clones share the file.
    pub fn shuffle(&self, seed: u64) -> Result<Self> {
        self.check_copied(
            "shuffle()",
            Some("shuffle(#{ buffer_size: 10000 }) shuffles in memory"),
        )?;
        Ok(Self::from_stage(Shuffle::new(self.stage.clone(), seed)))
    }

    /// The rows of each block of so many in an order drawn from `seed`, another in every epoch. A block
    /// is held in memory.
    pub fn shuffle_blocks(&self, seed: u64, rows: u64) -> Result<Self> {
        Ok(Self::from_stage(ShuffleBuffer::new(self.stage.clone(), seed, rows)))
    }

    /// Refuses a copy of data of which there may be more than the disk can hold.
    fn check_copied(&self, what: &str, instead: Option<&str>) -> Result<()> {
        if !self.stage.is_streamed() {
            return Ok(());
        }
        let message =
            format!("{what} would copy all rows to the disk, of a dataset that is streamed");
        let e = Error::new(Code::Data, message).hint("open it without streaming: true");
        Err(e.hint_if(instead))
    }

    /// Copies the rows once to a temporary file at the first use: later epochs read them from
    /// there instead of computing them again, and resuming seeks.
    pub fn cache(&self) -> Result<Self> {
        self.check_copied("cache()", None)?;
        Ok(Self::from_stage(Spool::new(self.stage.clone())))
    }

    /// The columns `names`, in this order.
    pub fn select(&self, names: &[String]) -> Result<Self> {
        Ok(Self::from_stage(Columns::select(self.stage.clone(), names)?))
    }

    /// All columns but `names`.
    pub fn remove(&self, names: &[String]) -> Result<Self> {
        Ok(Self::from_stage(Columns::remove(self.stage.clone(), names)?))
    }

    /// All columns, some under another name: pairs of the old and the new one.
    pub fn rename(&self, names: &[(String, String)]) -> Result<Self> {
        Ok(Self::from_stage(Columns::rename(self.stage.clone(), names)?))
    }

    /// The fields of nested columns as columns of their own, `outer.inner`.
    pub fn flatten(&self) -> Result<Self> {
        Ok(Self::from_stage(Columns::flatten(self.stage.clone())?))
    }

    /// The rows of this dataset, and then those of another with the same columns.
    pub fn concat(&self, other: &Self) -> Result<Self> {
        Ok(Self::from_stage(Concat::new(vec![self.stage.clone(), other.stage.clone()])?))
    }

    /// The rows of datasets with the same columns among each other, by weight.
    pub fn mix(datasets: &[Self], options: MixOptions) -> Result<Self> {
        let parts = datasets.iter().map(|dataset| dataset.stage.clone()).collect();
        Ok(Self::from_stage(Mix::new(parts, options)?))
    }

    /// The rows by the values of a column; equal ones keep their order, and nulls come last. The rows
    /// are copied once to a temporary file.
    pub fn sort(&self, column: &str, descending: bool) -> Result<Self> {
        self.check_copied("sort()", None)?;
        let rule = Rule::Sorted { descending };
        Ok(Self::from_stage(Ordered::new(self.stage.clone(), column, rule)?))
    }

    /// The first row of each value of a column.
    pub fn unique(&self, column: &str) -> Result<Self> {
        Ok(Self::from_stage(Ordered::new(self.stage.clone(), column, Rule::Unique)?))
    }

    /// The rows in two parts, of which the second has `test_size` rows; shuffled before where there is
    /// a seed.
    pub fn split_at_end(&self, test_size: u64, seed: Option<u64>) -> Result<(Self, Self)> {
        let rows = self.count()?;
        if test_size == 0 || test_size >= rows {
            let message =
                format!("a part of {test_size} of {rows} rows leaves one of the parts empty");
            return Err(Error::new(Code::BadValue, message).option("test_size"));
        }
        let all = match seed {
            Some(seed) => Self::from_stage(Shuffle::fixed(self.stage.clone(), seed)),
            None => self.clone(),
        };
        Ok((all.take(rows - test_size)?, all.skip(rows - test_size)?))
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
    pub fn row(&self, index: u64) -> Result<Row> {
        if let Some(batch) = skip_empty(self.stage.read(0, index)?).next().transpose()?
            && let Some(row) = to_rows(&batch.slice(0, 1), index)?.pop()
        {
            return Ok(row);
        }
        let rows = self.count()?;
        bail!(Code::Data, "no row {index}: the dataset has {rows} rows, counted from 0")
    }

    /// Micro batches for one rank.
    pub fn loader(&self, options: LoaderOptions) -> Result<Loader> {
        Loader::new(self.stage.clone(), options)
    }

    /// Where the rows come from and what is done to them, in one line.
    pub fn describe(&self) -> String {
        self.stage.describe()
    }
}

fn skip_empty(batches: Batches) -> impl Iterator<Item = Result<RecordBatch>> {
    batches.filter(|b| !matches!(b, Ok(batch) if batch.num_rows() == 0))
}
