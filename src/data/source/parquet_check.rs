//! The sizes in the metadata of a Parquet file, checked before anything of that size is allocated.
//!
//! parquet makes room for as many elements of a list as the list says it has. The metadata is Thrift
//! in its compact protocol, in which an element is a byte or more: no list, and no text, can be longer
//! than what follows it. Only this is looked at; the reader itself judges what the fields mean. The headers of
//! pages are the matter of `parquet_pages.rs`.

use std::io::{Read, Seek, SeekFrom};

use parquet::file::metadata::ParquetMetaData;

/// The end of a file: the length of its metadata and the magic bytes.
const TRAILER: u64 = 8;
const MAGIC: &[u8; 4] = b"PAR1";
/// Structs and lists within each other; the format has far fewer.
const MOST_LEVELS: usize = 32;

pub(super) type Checked<T> = Result<T, String>;

/// Checks the metadata of a file of `len` bytes.
pub(super) fn check_metadata(reader: &mut (impl Read + Seek), len: u64) -> Checked<()> {
    if len < 2 * TRAILER {
        return Err("it is shorter than its own end".to_owned());
    }
    let mut end = [0; TRAILER as usize];
    reader
        .seek(SeekFrom::Start(len - TRAILER))
        .and_then(|_| reader.read_exact(&mut end))
        .map_err(|e| format!("it cannot be read: {e}"))?;
    let [a, b, c, d, magic @ ..] = end;
    if magic != *MAGIC {
        // The reader knows the reason: no Parquet file, or one that is encrypted.
        return Ok(());
    }
    let size = u64::from(u32::from_le_bytes([a, b, c, d]));
    let Some(start) = (len - TRAILER).checked_sub(size) else {
        return Err(format!("its metadata of {size} bytes are longer than the file"));
    };
    let mut metadata = Vec::new();
    reader
        .seek(SeekFrom::Start(start))
        .and_then(|_| reader.by_ref().take(size).read_to_end(&mut metadata))
        .map_err(|e| format!("it cannot be read: {e}"))?;
    Thrift(&metadata).structure(0)
}

/// Checks that the pages of a file of `len` bytes lie in it.
pub(super) fn check_groups(metadata: &ParquetMetaData, len: u64) -> Checked<()> {
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let first = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let part = |n: i64| u64::try_from(n).ok();
        let end = part(first).zip(part(column.compressed_size())).map(|(a, b)| a.checked_add(b));
        if end.flatten().is_none_or(|end| end > len) {
            let name = column.column_path().string();
            return Err(format!("the pages of column {name:?} lie outside of the file"));
        }
    }
    Ok(())
}

/// The rest of a text in Thrift's compact protocol.
pub(super) struct Thrift<'a>(pub(super) &'a [u8]);

/// Takes a field of a structure by its number and kind; false leaves it.
type TakeField<'a> = &'a mut dyn FnMut(&mut Thrift<'_>, i64, u8) -> Checked<bool>;

impl Thrift<'_> {
    fn structure(&mut self, level: usize) -> Checked<()> {
        self.fields(level, &mut |_, _, _| Ok(false))
    }

    /// Gives each field of a structure to `take`, and skips those that it leaves.
    pub(super) fn fields(&mut self, level: usize, take: TakeField<'_>) -> Checked<()> {
        let mut field = 0i64;
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Ok(());
            }
            field = match header >> 4 {
                // The field's number is written out.
                0 => self.signed()?,
                further => field.saturating_add(i64::from(further)),
            };
            // A truth is in the header.
            if !take(self, field, header & 15)? && !matches!(header & 15, 1 | 2) {
                self.value(header & 15, level)?;
            }
        }
    }

    /// A signed number, whose sign is its last bit.
    pub(super) fn signed(&mut self) -> Checked<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn value(&mut self, kind: u8, level: usize) -> Checked<()> {
        if level > MOST_LEVELS {
            return Err("its metadata are nested too deeply".to_owned());
        }
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.number().map(drop),
            7 => self.skip(8),
            8 => {
                let len = self.number()?;
                self.skip(len)
            }
            9 | 10 => self.list(level),
            11 => Err("its metadata hold a map, of which the format has none".to_owned()),
            12 => self.structure(level + 1),
            13 => self.skip(16),
            _ => Err(format!("its metadata hold a value of the unknown kind {kind}")),
        }
    }

    fn list(&mut self, level: usize) -> Checked<()> {
        let header = self.byte()?;
        let len = match header >> 4 {
            15 => self.number()?,
            short => u64::from(short),
        };
        if len > self.0.len() as u64 {
            return Err(format!("its metadata hold a list of {len} elements, and end before them"));
        }
        (0..len).try_for_each(|_| self.value(header & 15, level + 1))
    }

    fn byte(&mut self) -> Checked<u8> {
        let (first, rest) = self.0.split_first().ok_or("its metadata end too early")?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Checked<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("its metadata hold a number without an end".to_owned())
    }

    fn skip(&mut self, len: u64) -> Checked<()> {
        let rest = usize::try_from(len).ok().and_then(|len| self.0.get(len..));
        self.0 = rest.ok_or("its metadata end too early")?;
        Ok(())
    }
}
