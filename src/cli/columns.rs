//! Tables on the terminal.

use anstyle::Style;

use super::{
    console,
    style::{STRONG, painted},
};
use crate::columns::{Cell, fitted};

/// Lines of columns, all to the left.
pub(super) fn table(head: &[String], rows: &[Vec<String>]) -> String {
    laid_out(head, rows, Style::new(), |_, _| Style::new())
}

/// As [`table`], for standard output: where that has colours, with a bold head, and each cell in the style
/// that `style` gives for its column and its text.
pub(super) fn coloured(
    head: &[String],
    rows: &[Vec<String>],
    style: impl Fn(usize, &str) -> Style,
) -> String {
    match console::has_colours() {
        true => laid_out(head, rows, STRONG, style),
        false => table(head, rows),
    }
}

fn laid_out(
    head: &[String],
    rows: &[Vec<String>],
    of_head: Style,
    style: impl Fn(usize, &str) -> Style,
) -> String {
    let all = std::iter::once(head).chain(rows.iter().map(Vec::as_slice));
    let line = |(number, row): (usize, &Vec<Cell>)| {
        let cells = row.iter().enumerate().map(|(i, cell)| {
            let style = if number == 0 { of_head } else { style(i, &cell.text) };
            format!("{}{}", painted(&cell.text, style), " ".repeat(cell.room))
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    fitted(all).iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_style_takes_no_column() {
        let words = |words: [&str; 2]| words.map(str::to_owned).to_vec();
        let rows = [words(["aa", "b"]), words(["c", ""])];
        let head = words(["A", "LAST"]);
        assert_eq!(table(&head, &rows), "A   LAST\naa  b\nc\n");
        let styled =
            laid_out(&head, &rows, Style::new(), |i, _| if i == 0 { STRONG } else { Style::new() });
        assert_eq!(styled, "A   LAST\n\u{1b}[1maa\u{1b}[0m  b\n\u{1b}[1mc\u{1b}[0m\n");
    }
}
