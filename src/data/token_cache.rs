//! Tokens that are kept from one run to the next.
//!
//! A directory by the hash of data, tokenizer and options holds parts of the rows, each a file that
//! appears whole: Arrow's stream packed by Zstandard with its checksum. Its name says its rows,
//! `000000004096-1024.arrow.zst`; a part without rows says where the data ends. A run that ends in between
//! leaves what it has made, and the next goes on behind it. Several processes that read the same rows
//! share the work: one makes a part, under the lock of the directory, and the others take it.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, SystemTime},
};

use arrow::{
    array::RecordBatch,
    datatypes::SchemaRef,
    error::ArrowError,
    ipc::{reader::StreamReader, writer::StreamWriter},
};

use super::{stage::skip_rows, wanted::check_wanted};
use crate::{
    error::{Code, Error, IoContext, Result},
    fs::{self, File, Place, TryLockError},
    hash::sha256,
};

/// Behind a change of how tokens are made or kept, what was kept before is made anew.
const FORMAT: &str = "1";
const LOCK: &str = "lock";
const ENDING: &str = ".arrow.zst";
/// The time after which tokens that no run has used are removed.
const UNUSED: Duration = Duration::from_hours(30 * 24);
/// How often a process that waits for another's part looks.
const PATIENCE: Duration = Duration::from_millis(10);

/// The kept tokens of one dataset.
pub(super) struct TokenCache {
    dir: PathBuf,
    /// The parts that are known: the number of rows by the first row.
    parts: BTreeMap<u64, u64>,
}

/// A part of the rows.
pub(super) enum Part {
    /// Rows from the one on that was asked for.
    Rows(Vec<RecordBatch>),
    /// There is no such row.
    End,
}

impl TokenCache {
    /// The kept tokens of the rows that `identity` tells from all others.
    pub(super) fn open(all: &Path, identity: &str) -> Result<Self> {
        let version = env!("CARGO_PKG_VERSION");
        let dir = all.join(sha256(format!("{FORMAT} {version} {identity}")));
        if !dir.is_dir() {
            remove_unused(all);
            fs::create_dir_all(Place::unguarded(&dir))?;
        }
        let mut cache = Self { dir, parts: BTreeMap::new() };
        // Its time says when it was used.
        cache.lock_file()?.set_modified(SystemTime::now()).at("use", &cache.dir)?;
        cache.look()?;
        Ok(cache)
    }

    /// The part with a row, if it was made.
    ///
    /// A damaged part is removed, as if it had never been made.
    pub(super) fn read(&mut self, row: u64, schema: &SchemaRef) -> Result<Option<Part>> {
        let (first, rows) = match self.parts.range(..=row).next_back() {
            Some((_, 0)) => return Ok(Some(Part::End)),
            Some((&first, &rows)) if first.saturating_add(rows) > row => (first, rows),
            _ => return Ok(None),
        };
        let path = self.path(first, rows);
        match read(&path, schema, row - first, rows - (row - first)) {
            Ok(batches) => Ok(Some(Part::Rows(batches))),
            Err(e) => {
                tracing::warn!("{}: damaged, and made anew: {e}", path.display());
                self.parts.remove(&first);
                Place::unguarded(path).remove_file()?;
                Ok(None)
            }
        }
    }

    /// Looks for parts that others have made.
    pub(super) fn look(&mut self) -> Result<()> {
        for name in Place::unguarded(&self.dir).list()? {
            let part = name.to_str().and_then(|name| name.strip_suffix(ENDING)?.split_once('-'));
            let Some((first, rows)) = part else { continue };
            if let (Ok(first), Ok(rows)) = (first.parse(), rows.parse()) {
                let known = self.parts.entry(first).or_insert(rows);
                *known = rows.max(*known);
            }
        }
        Ok(())
    }

    /// Keeps rows from row `first` on; none where the data ends there.
    pub(super) fn write(
        &mut self,
        first: u64,
        batches: &[RecordBatch],
        schema: &SchemaRef,
    ) -> Result<()> {
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let place = Place::unguarded(self.path(first, rows));
        fs::write_atomic(place, &packed(batches, schema).map_err(internal)?)?;
        self.parts.insert(first, rows);
        Ok(())
    }

    /// Waits until this process alone makes a part; it does as long as the file is open.
    pub(super) fn lock(&self) -> Result<File> {
        let file = self.lock_file()?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    check_wanted()?;
                    sleep(PATIENCE);
                }
                Err(TryLockError::Error(e)) => return Err(e).at("lock", &self.dir),
            }
        }
    }

    fn lock_file(&self) -> Result<File> {
        Place::unguarded(self.dir.join(LOCK)).append()
    }

    fn path(&self, first: u64, rows: u64) -> PathBuf {
        self.dir.join(format!("{first:012}-{rows}{ENDING}"))
    }
}

/// A part's batches behind its first `skip` rows, which are `rows`.
fn read(path: &Path, schema: &SchemaRef, skip: u64, rows: u64) -> Result<Vec<RecordBatch>> {
    let damaged = |e: &dyn std::fmt::Display| Error::new(Code::Data, e.to_string());
    let mut bytes = Vec::new();
    let file = fs::open_file(Place::unguarded(path))?;
    let mut decoder = zstd::stream::read::Decoder::new(file).map_err(|e| damaged(&e))?;
    decoder.read_to_end(&mut bytes).map_err(|e| damaged(&e))?;
    let reader = StreamReader::try_new(Cursor::new(bytes), None).map_err(|e| damaged(&e))?;
    if reader.schema() != *schema {
        return Err(damaged(&"it has other columns"));
    }
    let batches = reader.map(move |batch| batch.map_err(|e| damaged(&e)));
    let batches = skip_rows(Box::new(batches), skip).collect::<Result<Vec<_>>>()?;
    let found: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    match found == rows {
        true => Ok(batches),
        false => Err(damaged(&"rows are missing")),
    }
}

fn packed(batches: &[RecordBatch], schema: &SchemaRef) -> std::result::Result<Vec<u8>, ArrowError> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
    encoder.include_checksum(true)?;
    let mut writer = StreamWriter::try_new(encoder, schema)?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.finish()?;
    Ok(writer.into_inner()?.finish()?)
}

fn internal(e: ArrowError) -> Error {
    Error::new(Code::Internal, format!("kept tokens: {e}")).caused_by(e)
}

/// Removes what no run has used for long. What cannot be removed stays.
fn remove_unused(all: &Path) {
    let all = Place::unguarded(all);
    for name in all.list().unwrap_or_default() {
        let dir = all.join(&name);
        let used = dir.join(LOCK).open().and_then(|file| {
            file.metadata().and_then(|metadata| metadata.modified()).at("read", dir.path())
        });
        let age = used.ok().and_then(|used| SystemTime::now().duration_since(used).ok());
        if age.is_some_and(|age| age > UNUSED)
            && let Err(e) = fs::remove_dir(dir)
        {
            tracing::warn!("unused tokens are not removed: {e}");
        }
    }
}
