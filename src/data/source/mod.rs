//! Sources: from the name of a dataset to the rows of its files.
//!
//! `locate.rs` finds the files and their splits; `file.rs` opens one of them by its format. This
//! file puts a split expression on top: a list of row ranges over lists of files, read one after
//! another, a batch at a time. All files are looked at when the dataset is opened, so that what does
//! not fit together is refused then (`columns.rs`).

mod array;
mod bytes;
mod columns;
mod csv;
mod csv_records;
mod csv_values;
mod file;
mod in_turn;
mod ipc;
mod ipc_check;
mod jsonl;
mod locate;
mod parallel;
mod parquet;
mod parquet_check;
mod parquet_columns;
mod parquet_encodings;
mod parquet_pages;
mod parquet_repeats;
mod slices;
mod streamed;
mod text;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use arrow::datatypes::SchemaRef;

pub use self::locate::{DatasetFiles, OpenOptions, matches};
pub use self::text::SampleBy;
use self::{columns::common, file::DataFile, in_turn::FilesInTurn, locate::Splits};
use super::{
    source_name::DataSource,
    split::{SplitSlice, parse_split},
    stage::{Batches, Stage, in_turn, limit_rows, place_of},
    wanted::{ask, check_wanted},
};
use crate::error::{Code, Error, Result, StopWhen};

/// Opens a dataset.
pub(super) fn open(spec: &DataSource, options: &OpenOptions) -> Result<Source> {
    let splits = locate::locate(spec, options)?;
    let names: Vec<&str> = splits.names.iter().map(String::as_str).collect();
    let expression = match &options.split {
        Some(split) => split.as_str(),
        None if names.contains(&"train") => "train",
        None if names.len() == 1 => names[0],
        None => {
            let message = format!("{spec} has no split train: choose of {}", names.join(", "));
            let hint = format!("dataset(\"{spec}\", #{{ split: \"{}\" }})", names[0]);
            return Err(Error::new(Code::Data, message).hint(hint).option("split"));
        }
    };
    let slices = match names.contains(&expression) {
        true => vec![SplitSlice::whole(expression)],
        false => parse_split(expression, &names).map_err(|e| e.option("split"))?,
    };
    let parts = row_ranges(&slices, &splits)?;
    let mut files: Vec<&DataFile> = Vec::new();
    for file in parts.iter().flat_map(|part| part.files.iter()) {
        if !files.iter().any(|known| known.name() == file.name()) {
            files.push(file);
        }
    }
    // Streamed files are looked at when they are read; the first tells the columns.
    let is_streamed = files.iter().any(|file| file.as_streamed().is_some());
    let schema = common(if is_streamed { &files[..1] } else { &files })?;
    let (name, stop) = (format!("{spec} [{expression}]"), options.stop.clone());
    let token_cache = options.token_cache.as_deref().map(Arc::from);
    let source = Source { name, parts: parts.into(), schema, stop, token_cache };
    // Reading the first rows now shows a damaged or empty file where the dataset is named.
    let mut first = source.read(0, 0)?;
    while let Some(batch) = first.next().transpose()? {
        if batch.num_rows() > 0 {
            return Ok(source);
        }
    }
    bail!(Code::Data, "{spec}: split \"{expression}\" has no rows")
}

/// The rows of each slice, whose split is opened once.
fn row_ranges(slices: &[SplitSlice], splits: &Splits<'_>) -> Result<Vec<RowRange>> {
    let mut opened: BTreeMap<&str, Arc<[DataFile]>> = BTreeMap::new();
    for slice in slices {
        if !opened.contains_key(&*slice.split) {
            opened.insert(&slice.split, splits.files(&slice.split)?);
        }
    }
    slices.iter().map(|slice| RowRange::new(slice, opened[&*slice.split].clone())).collect()
}

/// The splits of a dataset, in order.
pub(super) fn splits(source: &DataSource, options: &OpenOptions) -> Result<Vec<String>> {
    Ok(locate::locate(source, options)?.names)
}

/// Row ranges of files.
#[derive(Clone)]
pub(super) struct Source {
    name: String,
    parts: Arc<[RowRange]>,
    schema: SchemaRef,
    stop: Option<StopWhen>,
    token_cache: Option<Arc<Path>>,
}

impl Source {
    /// The row ranges with what `tell` says of their files.
    fn of_files(&self, tell: impl Fn(&DataFile) -> Result<String>) -> Result<String> {
        let part = |part: &RowRange| {
            let files = part.files.iter().map(&tell).collect::<Result<Vec<_>>>()?;
            Ok(format!("{}..{:?} of {}", part.from, part.to, files.join("+")))
        };
        Ok(self.parts.iter().map(part).collect::<Result<Vec<_>>>()?.join("; "))
    }
}

impl Stage for Source {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn num_rows(&self) -> Result<Option<u64>> {
        let mut rows = 0;
        for part in self.parts.iter() {
            let mut total = 0;
            for file in part.files.iter() {
                let Some(rows) = file.known_rows()? else { return Ok(None) };
                total += rows;
            }
            rows += part.len_of(total);
        }
        Ok(Some(rows))
    }

    fn count(&self) -> Result<u64> {
        self.parts.iter().try_fold(0, |rows, part| Ok(rows + part.count()?))
    }

    fn read(&self, _epoch: u64, from: u64) -> Result<Batches> {
        let (parts, schema) = (self.parts.clone(), self.schema.clone());
        let place = place_of(from, parts.len(), |part| parts[part].count())?;
        let batches =
            in_turn(place, parts.len(), move |part, from| parts[part].read(from, &schema));
        let stop = self.stop.clone();
        Ok(Box::new(batches.map(move |batch| {
            ask(stop.as_ref());
            check_wanted().and(batch)
        })))
    }

    fn origin(&self) -> Result<String> {
        self.of_files(DataFile::fingerprint)
    }

    fn is_streamed(&self) -> bool {
        self.parts.iter().flat_map(|part| part.files.iter()).any(|f| f.as_streamed().is_some())
    }

    fn identity(&self) -> Result<Option<String>> {
        if self.is_streamed() {
            // There may be more of it than the disk can hold.
            return Ok(None);
        }
        Ok(Some(format!("{} as {:?}", self.of_files(DataFile::identity)?, self.schema)))
    }

    fn token_cache(&self) -> Option<&Path> {
        self.token_cache.as_deref()
    }

    fn describe(&self) -> String {
        self.name.clone()
    }
}

/// Rows `from..to` of files that follow each other.
struct RowRange {
    files: Arc<[DataFile]>,
    from: u64,
    to: Option<u64>,
}

impl RowRange {
    fn new(slice: &SplitSlice, files: Arc<[DataFile]>) -> Result<Self> {
        let (from, to) = slice.range(|| total(&files))?;
        Ok(Self { files, from, to })
    }

    /// The rows of this part where the files have `total` rows.
    fn len_of(&self, total: u64) -> u64 {
        self.to.unwrap_or(total).min(total).saturating_sub(self.from)
    }

    fn count(&self) -> Result<u64> {
        Ok(self.len_of(total(&self.files)?))
    }

    fn read(&self, from: u64, schema: &SchemaRef) -> Result<Batches> {
        let skip = self.from.saturating_add(from);
        let limit = self.to.map(|to| to.saturating_sub(skip));
        if limit == Some(0) {
            return Ok(Box::new(std::iter::empty()));
        }
        let (first, skip) = place_of(skip, self.files.len(), |file| self.files[file].num_rows())?;
        let files = self.files.iter().skip(first).cloned().collect();
        let batches: Batches = Box::new(FilesInTurn::new(files, skip, schema.clone()));
        Ok(match limit {
            Some(limit) => limit_rows(batches, limit),
            None => batches,
        })
    }
}

fn total(files: &[DataFile]) -> Result<u64> {
    files.iter().try_fold(0, |rows, file| Ok(rows + file.num_rows()?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int32Array, RecordBatch};

    use super::*;

    #[test]
    fn a_file_inside_the_binary_reads_from_any_row() {
        let column: ArrayRef = Arc::new(Int32Array::from_iter_values(0..50));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer =
            ::parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        for part in 0..5 {
            writer.write(&batch.slice(part * 10, 10)).unwrap();
            writer.flush().unwrap();
        }
        writer.close().unwrap();
        let file = DataFile::embedded("dsr:test".to_owned(), bytes.leak());
        assert_eq!(file.num_rows().unwrap(), 50);
        let schema = Arc::new(file.schema().unwrap());
        for from in [0, 9, 10, 25, 49, 50, 60] {
            let batches = file
                .read(from, &schema, |batch| Ok(batch.clone()))
                .unwrap()
                .collect::<Result<Vec<_>>>()
                .unwrap();
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(rows as u64, 50u64.saturating_sub(from));
            if let Some(first) = batches.first() {
                assert_eq!(first.slice(0, 1), batch.slice(from as usize, 1));
            }
        }
    }
}
