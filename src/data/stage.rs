//! A stage of a plan: a source, or an operation on another stage.
//!
//! Every stage answers the same few questions: its columns, how many rows if that is known without
//! reading, and its rows from a given one on. A stage that keeps rows one to one hands the starting
//! row down, so that a resumed run skips row groups of a Parquet file instead of decoding them; the
//! others read and drop.

use std::{path::Path, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};

use super::tokenizer::Tokenizer;
use crate::{
    config::suggest,
    error::{Code, Error, Result},
};

/// Rows as Arrow batches, in order.
pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch>>>;

/// Rows of the batches that a source reads.
pub(super) const ROWS_PER_BATCH: usize = 1024;
/// Bytes of text after which a batch ends before it has so many rows.
pub(super) const BYTES_PER_BATCH: usize = 64 << 20;

/// One stage of a plan: a source, or an operation on another stage.
pub(super) trait Stage: Send + Sync {
    /// The stage that it has a row for each row of, in the order of that or another.
    fn one_to_one(&self) -> Option<&dyn Stage> {
        None
    }

    /// The stages whose rows it has; none for a source.
    fn inputs(&self) -> Vec<&dyn Stage> {
        self.one_to_one().into_iter().collect()
    }

    /// The columns of every batch.
    fn schema(&self) -> SchemaRef;

    /// The number of rows, where it is known without reading them.
    fn num_rows(&self) -> Result<Option<u64>> {
        self.one_to_one().map_or(Ok(None), Stage::num_rows)
    }

    /// The rows of `epoch`, from row `from` on; empty when there are not that many.
    fn read(&self, epoch: u64, from: u64) -> Result<Batches>;

    /// The number of rows, by reading them where it must be.
    fn count(&self) -> Result<u64> {
        if let Some(input) = self.one_to_one() {
            return input.count();
        }
        if let Some(rows) = self.num_rows()? {
            return Ok(rows);
        }
        self.read(0, 0)?.try_fold(0, |rows, batch| Ok(rows + batch?.num_rows() as u64))
    }

    /// Whether counting costs nothing extra, because reading has to pass over all rows anyway.
    fn is_spooled(&self) -> bool {
        self.one_to_one().is_some_and(Stage::is_spooled)
    }

    /// Whether files are fetched while they are read: there may be more rows than the disk can hold.
    fn is_streamed(&self) -> bool {
        self.inputs().into_iter().any(Stage::is_streamed)
    }

    /// Whether the rows can be read in the thread alone that made this stage or one before it.
    fn is_local(&self) -> bool {
        self.inputs().into_iter().any(Stage::is_local)
    }

    /// The tokenizer that made the tokens of the rows, if one did.
    fn tokenizer(&self) -> Option<Arc<Tokenizer>> {
        self.inputs().first()?.tokenizer()
    }

    /// The tokens of each row, where all have as many.
    fn row_tokens(&self) -> Option<usize> {
        None
    }

    /// What tells the content of the files from that of others; it does not say where they lie.
    fn origin(&self) -> Result<String> {
        let inputs = self.inputs();
        if inputs.is_empty() {
            bail!(Code::Internal, "{} has no origin", self.describe());
        }
        origin_of(&inputs)
    }

    /// A text that no other rows have, in this run and the next; `None` where they may be others in
    /// another epoch or run.
    fn identity(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// The directory where tokens are kept from one run to the next.
    fn token_cache(&self) -> Option<&Path> {
        self.inputs().into_iter().find_map(Stage::token_cache)
    }

    /// This stage in a few words, after its input's description.
    fn describe(&self) -> String;
}

/// The origin of stages together.
pub(super) fn origin_of(inputs: &[&dyn Stage]) -> Result<String> {
    let origins = inputs.iter().map(|input| input.origin()).collect::<Result<Vec<_>>>()?;
    Ok(origins.join(" and "))
}

/// The identity of rows that are made of those of stages in one way, which `how` tells.
pub(super) fn identity_of(inputs: &[&dyn Stage], how: &str) -> Result<Option<String>> {
    let identities = inputs.iter().map(|input| input.identity()).collect::<Result<Vec<_>>>()?;
    let identities: Option<Vec<String>> = identities.into_iter().collect();
    Ok(identities.map(|all| format!("({}) -> {how}", all.join(" and "))))
}

/// The batches that `change` makes of each batch and the number of its first row; the first of all is
/// row `from`. Rows stay one to one.
pub(super) fn changed(
    batches: Batches,
    from: u64,
    mut change: impl FnMut(&RecordBatch, u64) -> Result<RecordBatch> + 'static,
) -> Batches {
    let mut first_row = from;
    Box::new(batches.map(move |batch| {
        let batch = batch?;
        let made = change(&batch, first_row)?;
        first_row += batch.num_rows() as u64;
        Ok(made)
    }))
}

/// Refuses a column that does not exist, listing those that do.
pub(super) fn no_column(name: &str, schema: &SchemaRef) -> Error {
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let message = format!("no column \"{name}\": the columns are {}", names.join(", "));
    let near = suggest::nearest(name, names);
    Error::new(Code::Data, message).hint_if(near.map(|near| format!("did you mean \"{near}\"?")))
}

/// The error of a dataset without rows, by its description.
pub(super) fn no_rows(description: &str) -> Error {
    Error::new(Code::Data, format!("the dataset has no rows: {description}"))
}

/// Whether a column holds strings.
pub(super) fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether a column holds bytes, which may be text.
pub(super) fn is_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
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

/// Batches of any size, handed out by numbers of rows.
pub(super) struct RowFeed {
    batches: Batches,
    /// The rows of the last batch that come next.
    rest: Option<RecordBatch>,
}

impl RowFeed {
    pub(super) fn new(batches: Batches) -> Self {
        Self { batches, rest: None }
    }

    /// The next `n` rows, fewer at the end, none after it.
    pub(super) fn next_rows(&mut self, n: usize) -> Result<Vec<RecordBatch>> {
        let (mut parts, mut missing) = (Vec::new(), n);
        while missing > 0 {
            let next = self.rest.take().map(Ok).or_else(|| self.batches.next());
            let Some(batch) = next.transpose()? else { break };
            let taken = missing.min(batch.num_rows());
            if taken < batch.num_rows() {
                self.rest = Some(batch.slice(taken, batch.num_rows() - taken));
            }
            if taken > 0 {
                parts.push(batch.slice(0, taken));
                missing -= taken;
            }
        }
        Ok(parts)
    }
}

/// The place of a row in parts that follow each other: the part, and the row's number in it.
///
/// Only a part with a successor needs to be counted; the last one simply ends.
pub(super) fn place_of(
    row: u64,
    parts: usize,
    count: impl Fn(usize) -> Result<u64>,
) -> Result<(usize, u64)> {
    let (mut part, mut row) = (0, row);
    while row > 0 && part + 1 < parts {
        let rows = count(part)?;
        if rows > row {
            break;
        }
        row -= rows;
        part += 1;
    }
    Ok((part, row))
}

/// The rows of parts from a place on. `open` reads a part from a row on, when the one before has ended.
pub(super) fn in_turn(
    (first, row): (usize, u64),
    parts: usize,
    open: impl Fn(usize, u64) -> Result<Batches> + 'static,
) -> Batches {
    Box::new((first..parts).flat_map(move |part| {
        open(part, if part == first { row } else { 0 })
            .unwrap_or_else(|e| Box::new(std::iter::once(Err(e))))
    }))
}
