//! The elements of a JSON array, one after another, without the whole of it in memory.

use std::{io::BufRead, path::Path};

use super::bytes::{FileBytes, MOST_LINE_BYTES};
use crate::{
    data::wanted::check_wanted,
    error::{Error, IoContext, Result},
};

/// Cuts an array into the texts of its elements. Brackets and strings alone are looked at; whoever
/// parses an element finds what else is wrong with it.
pub(super) struct ArrayItems {
    stream: Box<dyn BufRead>,
    file: FileBytes,
    line: u64,
    /// Whether the array's end was seen, or a fault.
    ended: bool,
    is_first: bool,
}

impl ArrayItems {
    pub(super) fn new(stream: Box<dyn BufRead>, file: FileBytes) -> Self {
        Self { stream, file, line: 1, ended: false, is_first: true }
    }

    fn byte(&mut self) -> Result<Option<u8>> {
        let found =
            self.stream.fill_buf().at("read", Path::new(self.file.name()))?.first().copied();
        if let Some(byte) = found {
            self.stream.consume(1);
            self.line += u64::from(byte == b'\n');
        }
        Ok(found)
    }

    fn fault(&self, what: &str) -> Error {
        self.file.error(format!("line {}: {what}", self.line))
    }

    /// The next byte that is no space.
    fn visible(&mut self) -> Result<u8> {
        loop {
            match self.byte()? {
                Some(byte) if byte.is_ascii_whitespace() => {}
                Some(byte) => return Ok(byte),
                None => return Err(self.fault("the array does not end: the file is truncated")),
            }
        }
    }

    fn element(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        check_wanted()?;
        if self.is_first {
            self.visible()?;
        }
        let mut byte = self.visible()?;
        match (byte, self.is_first) {
            (b']', _) => return self.end().map(|()| None),
            (_, true) => {}
            (b',', false) => byte = self.visible()?,
            _ => return Err(self.fault("expected , or ] after an element of the array")),
        }
        self.is_first = false;
        let line = self.line;
        if byte != b'{' {
            return Err(self.fault("an element of the array is no JSON object"));
        }
        let mut text = vec![byte];
        let (mut depth, mut in_string, mut escaped) = (1usize, false, false);
        while depth > 0 {
            let Some(byte) = self.byte()? else {
                return Err(self.fault("the array does not end: the file is truncated"));
            };
            text.push(byte);
            if text.len() as u64 > MOST_LINE_BYTES {
                return Err(self.fault("an element of the array is too long"));
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth -= 1,
                _ => {}
            }
        }
        Ok(Some((line, text)))
    }

    /// Refuses what follows the array.
    fn end(&mut self) -> Result<()> {
        while let Some(byte) = self.byte()? {
            if !byte.is_ascii_whitespace() {
                return Err(self.fault("something follows the end of the array"));
            }
        }
        Ok(())
    }
}

impl Iterator for ArrayItems {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let element = self.element().transpose();
        self.ended = !matches!(element, Some(Ok(_)));
        element
    }
}
