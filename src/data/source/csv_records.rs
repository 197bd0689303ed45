//! The records of a CSV file in groups that end where a record ends, so that each core can parse one.
//!
//! Where a record ends depends on all before it: a line break between quotes is a part of a value. The
//! file is therefore looked through by one core, which jumps from one quote, delimiter or line break to
//! the next. The rules are those of the `csv` crate; [`csv_values`](super::csv_values) reads the groups.

use std::io::BufRead;

use memchr::{memchr, memchr_iter, memchr3};

use super::bytes::{FileBytes, MOST_LINE_BYTES};
use crate::{
    data::{
        stage::{BYTES_PER_BATCH, ROWS_PER_BATCH},
        wanted::check_wanted,
    },
    error::Result,
    units::Bytes,
};

/// Some records that follow each other.
pub(super) struct Group {
    pub bytes: Vec<u8>,
    /// The number of the first of them, from 0.
    pub first: u64,
    /// The line on which the first of them begins, from 1.
    pub line: u64,
    /// The number of records.
    pub records: usize,
}

/// The groups of a file.
pub(super) struct Groups {
    stream: Box<dyn BufRead>,
    file: FileBytes,
    ends: RecordEnds,
    /// The number of the next record.
    next: u64,
    /// The line on which it begins.
    line: u64,
}

/// The bytes after which a group ends: what fits into a core's cache is parsed faster.
const BYTES_PER_GROUP: usize = 512 << 10;

impl Groups {
    pub(super) fn of(file: &FileBytes, delimiter: u8) -> Result<Self> {
        let ends = RecordEnds { delimiter, within: Within::RecordStart };
        Ok(Self { stream: file.stream()?, file: file.clone(), ends, next: 0, line: 1 })
    }

    /// The next records, at most so many, of `bytes` bytes or a little more; none at the end.
    pub(super) fn take(&mut self, records: usize, bytes: usize) -> Result<Option<Group>> {
        check_wanted()?;
        let mut group = Group { bytes: Vec::new(), first: self.next, line: self.line, records: 0 };
        let is_full = |group: &Group| group.records == records || group.bytes.len() >= bytes;
        while self.ends.within != Within::RecordStart || group.records == 0 || !is_full(&group) {
            let read = self.stream.fill_buf();
            let part = read.map_err(|e| self.file.error(format!("cannot be read: {e}")))?;
            if part.is_empty() {
                return self.last(group);
            }
            let least = bytes.saturating_sub(group.bytes.len());
            let (len, found) = self.ends.find(part, records - group.records, least);
            group.bytes.extend_from_slice(&part[..len]);
            group.records += found;
            self.stream.consume(len);
            if group.bytes.len() as u64 > MOST_LINE_BYTES + bytes as u64 {
                let most = Bytes(MOST_LINE_BYTES);
                return Err(self.error(&group, &format!("a record is longer than {most}")));
            }
        }
        self.next += group.records as u64;
        self.line += memchr_iter(b'\n', &group.bytes).count() as u64;
        Ok(Some(group))
    }

    /// The next records for one core.
    pub(super) fn take_some(&mut self) -> Result<Option<Group>> {
        self.take(ROWS_PER_BATCH, BYTES_PER_GROUP)
    }

    /// Passes over so many records.
    pub(super) fn skip(&mut self, records: u64) -> Result<()> {
        let mut left = records;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(ROWS_PER_BATCH);
            let Some(group) = self.take(most, BYTES_PER_BATCH)? else { break };
            left -= group.records as u64;
        }
        Ok(())
    }

    /// The group that the end of the file ends.
    fn last(&mut self, mut group: Group) -> Result<Option<Group>> {
        match std::mem::replace(&mut self.ends.within, Within::RecordStart) {
            Within::Quoted => {
                return Err(self
                    .error(&group, "a quote is opened and not closed")
                    .hint("within quotes a quote is written twice: \"\""));
            }
            Within::RecordStart => {}
            Within::ValueStart | Within::Unquoted | Within::QuoteInQuotes => group.records += 1,
        }
        Ok((group.records > 0).then_some(group))
    }

    /// An error about the record that is not complete at the end of a group.
    fn error(&self, group: &Group, what: &str) -> crate::error::Error {
        let mut ends = RecordEnds { delimiter: self.ends.delimiter, within: Within::RecordStart };
        let (complete, _) = ends.find(&group.bytes, group.records, usize::MAX);
        let complete = if group.records == 0 { 0 } else { complete };
        let lines = memchr_iter(b'\n', &group.bytes[..complete]).count() as u64;
        self.file.error(format!("line {}: {what}", group.line + lines))
    }
}

/// Finds where records end, in bytes that come in parts.
struct RecordEnds {
    delimiter: u8,
    within: Within,
}

/// The place of the next byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    RecordStart,
    ValueStart,
    Unquoted,
    Quoted,
    /// After a quote within quotes: the end of these, or half of a quote that is meant.
    QuoteInQuotes,
}

impl RecordEnds {
    /// Reads on until `records` have ended, or one has after `least` bytes, or the part is over: the
    /// bytes read and the records that ended. A blank line is no record.
    fn find(&mut self, part: &[u8], records: usize, least: usize) -> (usize, usize) {
        let mut at = 0;
        let mut found = 0;
        while at < part.len() {
            match self.within {
                Within::Quoted => match memchr(b'"', &part[at..]) {
                    Some(to) => {
                        at += to + 1;
                        self.within = Within::QuoteInQuotes;
                        continue;
                    }
                    None => return (part.len(), found),
                },
                Within::Unquoted => match memchr3(self.delimiter, b'\n', b'\r', &part[at..]) {
                    Some(to) => at += to,
                    None => return (part.len(), found),
                },
                Within::RecordStart | Within::ValueStart | Within::QuoteInQuotes => {}
            }
            let was = self.within;
            self.within = self.after(part[at]);
            at += 1;
            if self.within == Within::RecordStart && was != Within::RecordStart {
                found += 1;
                if found == records || at >= least {
                    break;
                }
            }
        }
        (at, found)
    }

    /// The place after a byte.
    fn after(&self, byte: u8) -> Within {
        match (self.within, byte) {
            (Within::QuoteInQuotes | Within::RecordStart | Within::ValueStart, b'"') => {
                Within::Quoted
            }
            (_, byte) if byte == self.delimiter => Within::ValueStart,
            (_, b'\n' | b'\r') => Within::RecordStart,
            _ => Within::Unquoted,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{BufReader, Cursor};

    use proptest::prelude::*;

    use super::*;
    use crate::data::source::bytes::{Compression, FileLocation};

    /// The records of `bytes` by the csv crate, values and all.
    pub(in crate::data::source) fn parsed(bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
        let values = |record: csv::ByteRecord| record.iter().map(<[u8]>::to_vec).collect();
        reader.into_byte_records().map(|record| values(record.unwrap())).collect()
    }

    proptest! {
        /// Quotes in any place, of any number, with every kind of line end: the groups have the records
        /// of the whole, however the bytes arrive.
        #[test]
        fn groups_have_the_records_of_the_whole(
            text in "[a\",\n\r]{0,60}",
            part in 1_usize..8,
            most in 1_usize..4,
            least in 0_usize..20,
        ) {
            let stream = BufReader::with_capacity(part, Cursor::new(text.clone()));
            let place = FileLocation::Embedded(b"");
            let mut groups = Groups {
                stream: Box::new(stream),
                file: FileBytes::new("a.csv".to_owned(), place, Compression::None),
                ends: RecordEnds { delimiter: b',', within: Within::RecordStart },
                next: 0,
                line: 1,
            };
            let whole = parsed(text.as_bytes());
            let mut joined = Vec::new();
            let end = loop {
                let group = match groups.take(most, least) {
                    Ok(Some(group)) => group,
                    end => break end,
                };
                let records = parsed(&group.bytes);
                prop_assert!(records.len() == group.records && group.records <= most);
                joined.extend(records);
            };
            match end {
                Ok(_) => prop_assert_eq!(joined, whole),
                Err(_) => prop_assert!(joined.len() < whole.len() && whole.starts_with(&joined)),
            }
        }
    }
}
