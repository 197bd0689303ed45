//! A picture as SVG, from the one place that makes its text and the one that writes it.

use std::path::Path;

use crate::{
    error::{Code, Error, Result},
    foreign,
    fs::{Place, write_atomic, write_over_own},
};

/// The ending of a picture's name.
const ENDING: &str = "svg";

/// The end of a picture that may be replaced.
const MARK: &str = "<!-- drawn by dsr -->\n";

/// A picture as SVG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture(String);

impl Picture {
    /// The picture of this text. Names in it may be of anybody: a character that XML does not have would
    /// leave nothing to show, and is there as its escape.
    pub(super) fn of(svg: &str) -> Self {
        let is_none = |c: char| matches!(c, '\u{fffe}' | '\u{ffff}');
        Self(foreign::lines(svg).replace(is_none, "\u{fffd}"))
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Refuses a file whose name is one of another kind of picture: its content would be no such picture.
    pub fn check_name(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let ending = path.extension().unwrap_or_default();
        if ending.eq_ignore_ascii_case(ENDING) {
            return Ok(());
        }
        let message =
            format!("a picture is an SVG file, and {} has another ending", path.display());
        Err(Error::new(Code::BadValue, message).hint("end its name with .svg"))
    }

    /// Writes it where there is nothing, or a picture that this has written: the user's own stay.
    ///
    /// # Errors
    /// As [`Picture::write`], and where another file is there.
    pub fn write_over_own(&self, place: &Place) -> Result<()> {
        Self::check_name(place.path())?;
        let is_own = |content: &[u8]| content.ends_with(MARK.as_bytes());
        let text = format!("{}{MARK}", self.0);
        write_over_own(place, text.as_bytes(), ("picture that dsr has drawn", is_own))
    }

    /// Writes it.
    ///
    /// # Errors
    /// As [`Picture::check_name`]; it cannot be written.
    pub fn write(&self, place: impl Into<Place>) -> Result<()> {
        let place = place.into();
        Self::check_name(place.path())?;
        write_atomic(place, self.0.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_xml_does_not_have_are_escaped() {
        let picture = Picture::of("<text>\n\u{1b}[31m\u{ffff}漢</text>");
        assert_eq!(picture.text(), "<text>\n\\u{1b}[31m\u{fffd}漢</text>");
    }

    #[test]
    fn a_name_of_another_kind_is_refused() {
        for name in ["x.svg", "runs/X.SVG"] {
            Picture::check_name(name).unwrap();
        }
        for name in ["x.png", "svg", "x", "x.svg.gz"] {
            let e = Picture::check_name(name).unwrap_err();
            assert_eq!(e.hints(), ["end its name with .svg"], "{name}");
        }
    }
}
