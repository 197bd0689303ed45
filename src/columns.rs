//! Tables of text. A cell is the text of others: it is escaped first, so that it stays in its line, and then
//! measured by the columns that it takes on a terminal, of which a wide character takes two.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::foreign::Foreign;

/// A cell of a table, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Its text, in one line.
    pub text: String,
    /// The columns that it leaves empty in its column of the table.
    pub room: usize,
}

impl Cell {
    /// With its text at the left.
    pub fn to_the_left(&self) -> String {
        format!("{}{}", self.text, " ".repeat(self.room))
    }

    /// With its text at the right.
    pub fn to_the_right(&self) -> String {
        format!("{}{}", " ".repeat(self.room), self.text)
    }
}

/// The rows of a table, with columns as wide as their widest cell.
pub fn fitted<R: AsRef<[String]>>(rows: impl IntoIterator<Item = R>) -> Vec<Vec<Cell>> {
    let shown = |text: &String| Cell { text: Foreign(text).to_string(), room: 0 };
    let mut rows: Vec<Vec<Cell>> =
        rows.into_iter().map(|row| row.as_ref().iter().map(shown).collect()).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    for i in 0..count {
        let widest = rows.iter().filter_map(|row| row.get(i)).map(|cell| width(&cell.text)).max();
        for cell in rows.iter_mut().filter_map(|row| row.get_mut(i)) {
            cell.room = widest.unwrap_or(0) - width(&cell.text);
        }
    }
    rows
}

/// The columns that a text of one line takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text, or as much of it as fits into so many columns.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut room = columns.saturating_sub(3);
    let fits = |c: &char| {
        let taken = c.width().unwrap_or(0);
        let has_room = taken <= room;
        room = room.saturating_sub(taken);
        has_room
    };
    let shown: String = text.chars().take_while(fits).collect();
    format!("{}...", shown.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rows: &[[&str; 2]]) -> Vec<String> {
        let rows = rows.iter().map(|row| row.map(str::to_owned));
        let line = |row: &Vec<Cell>| format!("{}|{}", row[0].to_the_left(), row[1].to_the_right());
        fitted(rows).iter().map(line).collect()
    }

    #[test]
    fn columns_are_as_wide_as_what_is_seen() {
        let shown = lines(&[["RUN", "LOSS"], ["漢字", "1"], ["a\nb", "\u{1b}[2J"]]);
        assert_eq!(shown, ["RUN |     LOSS", "漢字|        1", "a\\nb|\\u{1b}[2J"]);
        assert!(shown.iter().all(|line| width(line) == width(&shown[0])));
    }

    #[test]
    fn a_text_is_cut_by_columns() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abc...");
        assert_eq!(cut("漢字漢字", 7), "漢字...");
        assert_eq!(cut("漢字漢字", 6), "漢...");
    }
}
