//! Faults and notes of a file, with their places.

use std::fmt;

use crate::error::Error;

/// A place in the file: line and column in characters, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// Something wrong with a file, or with what the recipe says beside it.
#[derive(Debug)]
pub struct Fault {
    /// Where it is in the file; `None` is at the option of the recipe that the error names.
    pub at: Option<Position>,
    /// The error.
    pub error: Error,
}

/// A note to the user about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Where the key or its value is.
    pub at: Position,
    /// One sentence without a full stop.
    pub text: String,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}
