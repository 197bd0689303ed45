//! Arrow IPC, both its file format (Feather version 2) and its stream format (what Hugging Face's
//! `save_to_disk` writes); the first bytes tell which.

use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};

use arrow::{
    array::RecordBatch,
    datatypes::Schema,
    error::ArrowError,
    ipc::reader::{FileReader, StreamReader},
};

use super::{
    bytes::{FileBytes, Opened},
    ipc_check::{check_file, check_stream},
};
use crate::{
    data::stage::{Batches, skip_rows},
    error::{Error, Result},
};

/// The first bytes of the file format.
const MAGIC: &[u8] = b"ARROW1";
/// The first bytes of version 1 of Feather, which is another format.
const FEATHER_1: &[u8] = b"FEA1";

pub(super) fn schema(file: &FileBytes) -> Result<Schema> {
    Ok(open(file, None)?.0)
}

pub(super) fn num_rows(file: &FileBytes) -> Result<u64> {
    // Neither format stores the number; without columns to decode, counting is cheap.
    let (_, batches) = open(file, Some(Vec::new()))?;
    batches.into_iter().try_fold(0, |rows, batch| Ok(rows + batch?.num_rows() as u64))
}

pub(super) fn read(file: &FileBytes, from: u64) -> Result<Batches> {
    Ok(skip_rows(open(file, None)?.1, from))
}

fn open(file: &FileBytes, columns: Option<Vec<usize>>) -> Result<(Schema, Batches)> {
    match file.open()? {
        Opened::File(opened) => read_either(BufReader::new(opened), file, columns),
        Opened::Embedded(bytes) => read_either(Cursor::new(bytes), file, columns),
    }
}

fn read_either<R: BufRead + Seek + 'static>(
    mut reader: R,
    file: &FileBytes,
    columns: Option<Vec<usize>>,
) -> Result<(Schema, Batches)> {
    let mut start = Vec::new();
    let looked = reader.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start);
    looked.and_then(|_| reader.rewind()).map_err(|e| damaged(file, e.into()))?;
    if start.starts_with(FEATHER_1) {
        return Err(file
            .error("Feather version 1 is not supported")
            .hint("write it again as Parquet or Feather version 2"));
    }
    let sized = reader.seek(SeekFrom::End(0)).map_err(|e| e.to_string());
    let check = match start == MAGIC {
        true => sized.and_then(|len| check_file(&mut reader, len)),
        false => sized.and_then(|len| check_stream(&mut reader, len)),
    };
    check.map_err(|e| file.error(format!("damaged or truncated Arrow file: {e}")))?;
    reader.rewind().map_err(|e| damaged(file, e.into()))?;
    if start == MAGIC {
        let reader = FileReader::try_new(reader, columns).map_err(|e| damaged(file, e))?;
        return Ok((reader.schema().as_ref().clone(), named(reader, file)));
    }
    let reader = StreamReader::try_new(reader, columns).map_err(|e| damaged(file, e))?;
    Ok((reader.schema().as_ref().clone(), named(reader, file)))
}

fn named(
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>> + 'static,
    file: &FileBytes,
) -> Batches {
    let file = file.clone();
    Box::new(batches.map(move |batch| batch.map_err(|e| damaged(&file, e))))
}

fn damaged(file: &FileBytes, e: ArrowError) -> Error {
    file.error(format!("damaged or truncated Arrow file: {e}")).caused_by(e)
}
