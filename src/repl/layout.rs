//! Cards as text: wrapped to the width of the terminal, with its colours.

use anstyle::Style;

use crate::{
    columns::{self, Cell, cut, fitted, width},
    live::card::{Card, Table},
};

/// A title.
pub(super) const TITLE: Style = Style::new().bold();
/// Text beside the point.
pub(super) const FAINT: Style = Style::new().dimmed();

/// Where text is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Columns.
    pub(super) width: usize,
    /// Whether there are colours.
    pub(super) color: bool,
}

impl Layout {
    /// A text in a style.
    pub(super) fn styled(self, style: Style, text: &str) -> String {
        if self.color && !text.is_empty() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    /// A card, without the last line's end.
    pub(super) fn card(self, card: &Card) -> String {
        let mut lines = Vec::new();
        if !card.title.is_empty() {
            let title = wrapped(&card.title, self.width);
            lines.extend(title.iter().map(|line| self.styled(TITLE, line)));
        }
        let facts = self.facts(&card.facts);
        // The words of a text come before what is said of it.
        let is_plain = card.title.is_empty();
        if !is_plain {
            lines.extend(facts.iter().cloned());
        }
        if let Some(table) = &card.table {
            lines.extend(self.table(table));
        }
        if !card.text.is_empty() {
            lines.extend(card.text.lines().map(str::to_owned));
        }
        if is_plain {
            lines.extend(facts);
        }
        lines.join("\n")
    }

    /// Names and values in lines.
    fn facts(self, facts: &[(String, String)]) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut room = 0;
        for (name, value) in facts {
            let length = width(name) + width(value) + 4;
            let fact = format!("{} {value}", self.styled(FAINT, name));
            match lines.last_mut() {
                Some(line) if room >= length => {
                    line.push_str("   ");
                    line.push_str(&fact);
                    room -= length;
                }
                _ => {
                    lines.push(format!("  {fact}"));
                    room = self.width.saturating_sub(length);
                }
            }
        }
        lines
    }

    /// Rows in columns; what is too wide is cut at the end of its line.
    pub(super) fn table(self, table: &Table) -> Vec<String> {
        let line = |row: &Vec<Cell>| {
            let cells = row.iter().map(|cell| cell.to_the_left() + "  ");
            cut(format!("  {}", cells.collect::<String>()).trim_end(), self.width)
        };
        let rows = fitted(std::iter::once(&table.head).chain(&table.rows));
        let mut lines = Vec::new();
        if table.head.iter().any(|name| !name.is_empty()) {
            lines.push(self.styled(FAINT, &line(&rows[0])));
        }
        lines.extend(rows[1..].iter().map(line));
        lines
    }
}

/// A text in lines, cut between words.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if columns::width(line) + 1 + columns::width(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_card_keeps_to_its_width() {
        let table = Table {
            head: vec!["layer".to_owned(), "parameters".to_owned()],
            rows: vec![vec!["h.0".to_owned(), "a very long line of words".to_owned()]],
        };
        let card = Card {
            title: "Model of many words here".to_owned(),
            facts: vec![fact("min", "0"), fact("mean", "1.5"), fact("max", "3")],
            table: Some(table),
            text: "[1, 2]".to_owned(),
        };
        let shown = Layout { width: 20, color: false }.card(&card);
        let expected = "Model of many words\n  here\n  min 0   mean 1.5\n  max 3\n  layer  parameters\n  h.0    a very l...\n[1, 2]";
        assert_eq!(shown, expected);
    }
}
