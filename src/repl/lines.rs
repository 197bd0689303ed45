//! Lines that a user types at a prompt, with the keys of a shell and a history.

use rustyline::{DefaultEditor, error::ReadlineError};

use crate::error::{Code, Error, Result};

/// The lines of a terminal.
pub struct Lines(DefaultEditor);

impl Lines {
    /// An editor without a history yet.
    pub fn new() -> Result<Self> {
        DefaultEditor::new().map(Self).map_err(failed)
    }

    /// The next line; `None` at the end, Ctrl-D. Ctrl-C takes a line back.
    pub fn next(&mut self, prompt: &str) -> Result<Option<String>> {
        loop {
            match self.0.readline(prompt) {
                Ok(line) => {
                    // A history that is full has no room; the line counts all the same.
                    let _ = self.0.add_history_entry(&line);
                    return Ok(Some(line));
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(None),
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

fn failed(e: ReadlineError) -> Error {
    Error::new(Code::Io, "cannot read lines from the terminal").caused_by(e)
}
