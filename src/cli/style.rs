//! The styles of dsr's own words where there are colours. Each word says the same without its style.

use anstyle::{AnsiColor, Style};

/// A head, or a name.
pub(super) const STRONG: Style = Style::new().bold();
/// A good end.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// A warning.
pub(super) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// An error.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();

/// The style of a word for how a run stands.
pub(super) fn of_state(word: &str) -> Style {
    match word {
        "running" | "finished" => GOOD,
        "stopped" | "interrupted" | "unknown" => AnsiColor::Yellow.on_default(),
        "failed" | "killed" | "damaged" => AnsiColor::Red.on_default(),
        _ => Style::new(),
    }
}

/// A line that dsr tells, with the word in a style that says what kind of line it is.
pub(super) fn note(line: &str) -> String {
    let in_style = |word: &str, style: Style| line.replacen(word, &painted(word, style), 1);
    match line {
        _ if line.starts_with("warning:") => in_style("warning:", WARNING),
        _ if line.starts_with("done:") => in_style("done:", GOOD),
        _ if line.contains("  skipped: ") => in_style("skipped:", WARNING),
        _ => line.to_owned(),
    }
}

/// A text in a style.
pub(super) fn painted(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_known_by_its_word() {
        assert_eq!(note("done: runs/a"), "\u{1b}[32mdone:\u{1b}[0m runs/a");
        assert_eq!(note("warning: a"), "\u{1b}[1m\u{1b}[33mwarning:\u{1b}[0m a");
        assert_eq!(
            note("step 1  loss 1  skipped: it"),
            format!("step 1  loss 1  {}", painted("skipped:", WARNING) + " it")
        );
        assert_eq!(note("a warning: none"), "a warning: none");
    }
}
