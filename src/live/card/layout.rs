//! A card: a title, facts, a table, some text.

/// A value as it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// The title, in a line; empty if the text tells it.
    pub title: String,
    /// Names with their values.
    pub facts: Vec<(String, String)>,
    /// Rows under a head.
    pub table: Option<Table>,
    /// Lines below.
    pub text: String,
}

/// A table of a card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The names of the columns.
    pub head: Vec<String>,
    /// The rows, each as long as the head.
    pub rows: Vec<Vec<String>>,
}

impl Card {
    pub(super) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    pub(super) fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.facts.push((name.to_owned(), value.into()));
    }
}

/// A number in at most five digits.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => format!("{value}"),
        size if size != 0.0 && !(1e-3..1e5).contains(&size) => format!("{value:.3e}"),
        _ if value.fract() == 0.0 => format!("{value}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::grouped;

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 1.0, 0.12345678, 1e-5, 123456.7, f64::NAN].map(number);
        assert_eq!(all, ["0", "1", "0.1235", "1.000e-5", "1.235e5", "NaN"]);
        assert_eq!([grouped(12), grouped(1234), grouped(1_234_567)], ["12", "1,234", "1,234,567"]);
    }
}
