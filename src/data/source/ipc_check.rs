//! The sizes that an Arrow file speaks of, checked before anything of that size is allocated.
//!
//! arrow believes the lengths of blocks and of decompressed buffers. Each message's header is read here
//! first: what it promises must lie in the file, and what is decompressed must fit into the memory.

use std::io::{Read, Seek, SeekFrom};

use arrow::ipc::{Block, CompressionType, Message, root_as_footer, root_as_message};

use crate::{tensor::available_bytes, units::Bytes};

/// The end of the file format: the footer's length and the magic bytes.
const TRAILER: u64 = 10;
/// The marker before a message's length, and that length.
const PREFIX: u64 = 8;
const CONTINUATION: [u8; 4] = [0xff; 4];

type Checked<T> = Result<T, String>;

/// Checks a file of the file format, of `len` bytes.
pub(super) fn check_file(reader: &mut (impl Read + Seek), len: u64) -> Checked<()> {
    if len < TRAILER {
        return Err("it is shorter than its own end".to_owned());
    }
    let trailer = bytes(reader, len - TRAILER, 4)?;
    let footer_len =
        u64::from(u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]));
    let Some(start) = (len - TRAILER).checked_sub(footer_len) else {
        return Err(format!("its footer of {footer_len} bytes is longer than the file"));
    };
    let footer = bytes(reader, start, footer_len)?;
    let footer = root_as_footer(&footer).map_err(|e| format!("its footer is damaged: {e}"))?;
    let blocks = [footer.dictionaries(), footer.recordBatches()].into_iter().flatten().flatten();
    blocks.into_iter().try_for_each(|block| check_block(reader, block, len))
}

/// Checks one message that the footer names.
fn check_block(reader: &mut (impl Read + Seek), block: &Block, len: u64) -> Checked<()> {
    let outside = || format!("a block lies outside of the file of {len} bytes");
    let part = |n: i64| u64::try_from(n).map_err(|_| outside());
    let (start, body) = (part(block.offset())?, part(block.bodyLength())?);
    let metadata = part(block.metaDataLength().into())?;
    let end = start.checked_add(metadata).and_then(|at| at.checked_add(body));
    if metadata < PREFIX || end.is_none_or(|end| end > len) {
        return Err(outside());
    }
    let message = bytes(reader, start, metadata)?;
    let skipped = if message.starts_with(&CONTINUATION) { 8 } else { 4 };
    let message = root_as_message(&message[skipped..])
        .map_err(|e| format!("the header of a block is damaged: {e}"))?;
    check_body(reader, message, start + metadata, body)
}

/// Checks the messages of the stream format, from the start to `len`.
pub(super) fn check_stream(reader: &mut (impl Read + Seek), len: u64) -> Checked<()> {
    let mut at = 0;
    while len - at >= 4 {
        let mut prefix = bytes(reader, at, 4)?;
        at += 4;
        if prefix == CONTINUATION {
            if len - at < 4 {
                return Err("it ends inside of a message".to_owned());
            }
            prefix = bytes(reader, at, 4)?;
            at += 4;
        }
        let size = u64::from(u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]));
        if size == 0 {
            return Ok(());
        }
        if size > len - at {
            return Err(format!("a message of {size} bytes is longer than the file"));
        }
        let message = bytes(reader, at, size)?;
        at += size;
        let message =
            root_as_message(&message).map_err(|e| format!("a message is damaged: {e}"))?;
        let body = u64::try_from(message.bodyLength()).unwrap_or(u64::MAX);
        if body > len - at {
            return Err(format!("a body of {body} bytes is longer than the file"));
        }
        check_body(reader, message, at, body)?;
        at += body;
    }
    Ok(())
}

/// Checks the buffers of a message whose body is the `len` bytes at `start`.
fn check_body(
    reader: &mut (impl Read + Seek),
    message: Message<'_>,
    start: u64,
    len: u64,
) -> Checked<()> {
    let batch = message
        .header_as_record_batch()
        .or_else(|| message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()));
    let Some(batch) = batch else { return Ok(()) };
    let is_compressed = batch.compression().is_some_and(|compression| {
        matches!(compression.codec(), CompressionType::LZ4_FRAME | CompressionType::ZSTD)
    });
    let mut needed = 0u64;
    for buffer in batch.buffers().into_iter().flatten() {
        let part = |n: i64| u64::try_from(n).ok();
        let place = part(buffer.offset()).zip(part(buffer.length()));
        let fits = |(offset, length): &(u64, u64)| {
            offset.checked_add(*length).is_some_and(|end| end <= len)
        };
        let Some((offset, length)) = place.filter(fits) else {
            return Err(format!("a buffer lies outside of its body of {len} bytes"));
        };
        if is_compressed && length >= PREFIX {
            let size = bytes(reader, start + offset, PREFIX)?;
            let size = size.try_into().map_or(0, i64::from_le_bytes);
            // -1 marks a buffer that is stored as it is.
            needed = needed.saturating_add(u64::try_from(size).unwrap_or(0));
        }
    }
    match available_bytes() {
        Some(available) if needed > available => {
            let (needed, available) = (Bytes(needed), Bytes(available));
            Err(format!("a batch of it needs {needed} of memory, and {available} are available"))
        }
        _ => Ok(()),
    }
}

/// `len` bytes from `start` on, which are in the file.
fn bytes(reader: &mut (impl Read + Seek), start: u64, len: u64) -> Checked<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = reader
        .seek(SeekFrom::Start(start))
        .and_then(|_| reader.by_ref().take(len).read_to_end(&mut bytes));
    match read {
        Ok(n) if n as u64 == len => Ok(bytes),
        Ok(_) => Err("it ends too early".to_owned()),
        Err(e) => Err(format!("it cannot be read: {e}")),
    }
}
