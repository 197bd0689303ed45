//! The values of some CSV records, by the rules by which [`csv_records`](super::csv_records) finds their
//! ends: one reading jumps from delimiter to delimiter, and a value is a part of the bytes unless quotes
//! stand inside it.

use std::borrow::Cow;

use memchr::{memchr, memchr3};

/// The values of records that follow each other.
pub(super) struct Values<'a> {
    bytes: &'a [u8],
    delimiter: u8,
    /// The place of the next value, or of the end of the record before.
    at: usize,
}

/// A value as it is meant, without the quotes around it.
pub(super) struct Value<'a> {
    pub bytes: Cow<'a, [u8]>,
    /// Whether the record ends with it.
    pub is_last: bool,
}

impl<'a> Values<'a> {
    pub(super) fn of(bytes: &'a [u8], delimiter: u8) -> Self {
        Self { bytes, delimiter, at: 0 }
    }

    /// Goes to the next record and returns its place; none at the end. A blank line is no record.
    pub(super) fn next_record(&mut self) -> Option<usize> {
        let rest = &self.bytes[self.at..];
        self.at += rest.iter().position(|byte| !matches!(byte, b'\n' | b'\r'))?;
        Some(self.at)
    }

    /// The next value of the record.
    pub(super) fn next_value(&mut self) -> Value<'a> {
        let bytes = match self.bytes.get(self.at) {
            Some(b'"') => self.quoted(),
            _ => Cow::Borrowed(self.unquoted()),
        };
        let is_last = self.bytes.get(self.at) != Some(&self.delimiter);
        // A line end stays, and is passed over as a blank line is.
        self.at += usize::from(!is_last);
        Value { bytes, is_last }
    }

    /// The bytes up to the next delimiter or line end.
    fn unquoted(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        let len = memchr3(self.delimiter, b'\n', b'\r', rest).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// The bytes between quotes. Two quotes in them are one that is meant; behind the closing one the
    /// value goes on without quotes.
    fn quoted(&mut self) -> Cow<'a, [u8]> {
        let mut value = Cow::Borrowed(&[][..]);
        loop {
            let rest = &self.bytes[self.at + 1..];
            let len = memchr(b'"', rest).unwrap_or(rest.len());
            self.at = (self.at + len + 2).min(self.bytes.len());
            append(&mut value, &rest[..len]);
            if self.bytes.get(self.at) != Some(&b'"') {
                break;
            }
            append(&mut value, b"\"");
        }
        append(&mut value, self.unquoted());
        value
    }
}

/// Adds a part of the bytes to a value; the first one is not copied.
fn append<'a>(value: &mut Cow<'a, [u8]>, part: &'a [u8]) {
    match (value.is_empty(), part.is_empty()) {
        (_, true) => {}
        (true, false) => *value = Cow::Borrowed(part),
        (false, false) => value.to_mut().extend_from_slice(part),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::source::csv_records::tests::parsed;

    fn records(bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let mut values = Values::of(bytes, b',');
        let mut records = Vec::new();
        while values.next_record().is_some() {
            let mut record = Vec::new();
            loop {
                let value = values.next_value();
                record.push(value.bytes.into_owned());
                if value.is_last {
                    break;
                }
            }
            records.push(record);
        }
        records
    }

    #[test]
    fn a_value_is_copied_only_for_quotes_inside_it() {
        let mut values = Values::of(b"plain,\"in, quotes\",\"a \"\"word\"\"\"\r\n", b',');
        values.next_record();
        assert!(matches!(values.next_value().bytes, Cow::Borrowed(b"plain")));
        assert!(matches!(values.next_value().bytes, Cow::Borrowed(b"in, quotes")));
        let last = values.next_value();
        assert!(last.is_last && &*last.bytes == b"a \"word\"");
        assert_eq!(values.next_record(), None);
    }

    proptest! {
        /// Quotes in any place, of any number, with every kind of line end: the values are those of the
        /// csv crate.
        #[test]
        fn values_are_those_of_the_csv_crate(text in "[ab\",\n\r]{0,60}") {
            prop_assert_eq!(records(text.as_bytes()), parsed(text.as_bytes()));
        }
    }
}
