//! `output.log`: the lines that a recipe prints, as text. A run that goes on appends to it.

use crate::{
    error::{IoContext, Result},
    foreign,
    fs::{File, Place, append_whole},
};

/// A log of printed lines.
#[derive(Debug)]
pub struct OutputLog {
    place: Place,
    /// Opened by the first line.
    file: Option<File>,
}

impl OutputLog {
    /// The log at `place`, which is made when there is a line for it.
    pub fn at(place: Place) -> Self {
        Self { place, file: None }
    }

    /// Appends a line, or several. What a terminal would take for orders is escaped, and colours are left
    /// out: whoever looks at the file may look with any program.
    pub fn append(&mut self, line: &str) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.place.append()?),
        };
        let line = foreign::unstyled(line) + "\n";
        append_whole(file, line.as_bytes()).at("write", self.place.path())
    }
}
