//! Plain text, in the column `text`: a file is one document, or is cut into paragraphs or lines.
//!
//! A document and a paragraph keep their line breaks, as `\\n`, whichever a file has. Empty lines are
//! rows, as Hugging Face's text loader reads them; between paragraphs they are none.

use std::{iter::from_fn, sync::Arc};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use super::bytes::{FileBytes, Lines};
use crate::{
    config::options::option_words,
    data::stage::{BYTES_PER_BATCH, Batches, ROWS_PER_BATCH, skip_rows},
    error::{Error, Result},
};

/// The most bytes of a document or a paragraph.
const MOST_BYTES: usize = 1 << 30;

option_words! {
    /// What of a text file is a row.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum SampleBy {
        /// The whole file.
        Document = "document",
        /// What stands between empty lines.
        Paragraph = "paragraph",
        /// Each line.
        Line = "line",
    }
}

pub(super) fn schema() -> Schema {
    Schema::new(vec![Field::new("text", DataType::Utf8, true)])
}

pub(super) fn num_rows(file: &FileBytes, by: SampleBy) -> Result<u64> {
    texts(file, by)?.try_fold(0, |rows, text| text.map(|_| rows + 1))
}

pub(super) fn read(
    file: &FileBytes,
    from: u64,
    schema: &SchemaRef,
    by: SampleBy,
) -> Result<Batches> {
    let mut texts = texts(file, by)?;
    let (file, schema) = (file.clone(), schema.clone());
    let batches = from_fn(move || {
        let mut bytes = 0;
        let some: Result<Vec<String>> = from_fn(|| {
            let text = if bytes < BYTES_PER_BATCH { texts.next() } else { None };
            bytes += text.as_ref().map_or(0, |text| text.as_ref().map_or(0, String::len));
            text
        })
        .take(ROWS_PER_BATCH)
        .collect();
        let some = match some {
            Ok(some) if some.is_empty() => return None,
            Ok(some) => some,
            Err(e) => return Some(Err(e)),
        };
        let column = Arc::new(StringArray::from(some));
        Some(RecordBatch::try_new(schema.clone(), vec![column]).map_err(|e| file.error(e)))
    });
    Ok(skip_rows(Box::new(batches), from))
}

/// The texts of the rows.
fn texts(file: &FileBytes, by: SampleBy) -> Result<Box<dyn Iterator<Item = Result<String>>>> {
    let mut texts = Texts { lines: file.lines()?, file: file.clone(), by };
    Ok(Box::new(from_fn(move || texts.next_text().transpose())))
}

struct Texts {
    lines: Lines,
    file: FileBytes,
    by: SampleBy,
}

impl Texts {
    fn next_text(&mut self) -> Result<Option<String>> {
        let mut text: Option<String> = None;
        while let Some(line) = self.lines.next() {
            let (number, bytes) = line?;
            let line = String::from_utf8(bytes)
                .map_err(|_| self.file.error(format!("line {number} is not UTF-8 text")))?;
            match (self.by, &mut text) {
                (SampleBy::Line, _) => return Ok(Some(line)),
                (SampleBy::Paragraph, None) if line.trim().is_empty() => {}
                (SampleBy::Paragraph, Some(_)) if line.trim().is_empty() => break,
                (_, None) => text = Some(line),
                (_, Some(text)) => {
                    text.push('\n');
                    text.push_str(&line);
                    if text.len() > MOST_BYTES {
                        return Err(self.too_long());
                    }
                }
            }
        }
        // A document keeps the break at its end, as it keeps the others.
        if let (SampleBy::Document, Some(text), true) =
            (self.by, &mut text, self.lines.ended_in_break())
        {
            text.push('\n');
        }
        Ok(text)
    }

    fn too_long(&self) -> Error {
        self.file
            .error("the text is too long for one row")
            .hint("cut it into rows: dataset(..., #{ sample_by: \"paragraph\" })")
    }
}
