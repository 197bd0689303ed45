//! Draws a failure: the sentence, the line of the recipe with the fault marked, the remedy.
//!
//! The only renderer of errors.

use std::{error::Error as _, fmt::Write};

use anstyle::{AnsiColor, Style};
use ariadne::{CharSet, Color, Config, Label, Report, ReportKind};

use super::console;
use crate::{
    error::{Code, Error},
    foreign::{Foreign, lines},
    recipe::{Failure, diagnostics::Fault, sources::Location},
};

/// A hint up to this many characters stands beside the mark instead of below it.
const BESIDE_THE_MARK: usize = 60;
/// A longer line is not drawn: nobody would find the mark, and a file may be one line.
const LONGEST_LINE: usize = 400;
/// A longer line of a message or a hint is shown by its ends: a name may be the whole of a file.
const LONGEST_SHOWN: usize = 4_000;
/// The characters that are shown of each end.
const SHOWN_END: usize = 1_000;
/// Where ariadne ends a line; a recipe's lines end with the line feed only.
const LINE_ENDS: [char; 7] = ['\r', '\n', '\x0B', '\x0C', '\u{85}', '\u{2028}', '\u{2029}'];

/// Shows every fault on standard error, with the causes below if `verbose`.
pub fn show(failure: &Failure, verbose: bool) {
    console::err(&text(failure, verbose, console::colors()));
}

/// The lines that are shown of a failure: its faults, with the causes below if `verbose`.
pub fn text(failure: &Failure, verbose: bool, color: bool) -> String {
    if failure.code() == Code::Interrupted {
        return interruption(failure);
    }
    let mut text = String::new();
    for (i, fault) in failure.faults.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        text.push_str(&self::fault(fault, color));
        if i == 0 {
            for call in &failure.calls {
                let what = match call.callee.as_str() {
                    "" => "called".to_owned(),
                    name if name.starts_with("anon$") => "in a function called".to_owned(),
                    name if name.starts_with("import ") => format!("in {name}"),
                    name => format!("in `{name}`, called"),
                };
                let what = ends(&Foreign(&what).to_string());
                let _ = writeln!(text, "   {what} at {}", position(&call.place));
            }
        }
        if verbose {
            text.push_str(&causes(&fault.error));
        }
    }
    text
}

/// A text of errors, escaped, with lines that a reader can take in.
fn shown(text: &str) -> String {
    let text = lines(text);
    if text.lines().all(|line| line.len() <= LONGEST_SHOWN) {
        return text;
    }
    let mut lines = text.lines().map(ends);
    let first = lines.next().unwrap_or_default();
    lines.fold(first, |text, line| text + "\n" + line.as_str())
}

/// The beginning and the end of a long line, and the number of characters between them.
fn ends(line: &str) -> String {
    let len = line.chars().count();
    if len <= LONGEST_SHOWN {
        return line.to_owned();
    }
    let at = |n: usize| line.char_indices().nth(n).map_or(line.len(), |(at, _)| at);
    let (begin, end) = (&line[..at(SHOWN_END)], &line[at(len - SHOWN_END)..]);
    format!("{begin} ... ({} more characters) ... {end}", len - 2 * SHOWN_END)
}

/// An interruption by the user is no error, and has no place in the recipe.
fn interruption(failure: &Failure) -> String {
    let mut text = String::new();
    for error in failure.faults.iter().map(|fault| &fault.error) {
        let _ = writeln!(text, "{}", shown(error.message()));
        for hint in error.hints() {
            let _ = writeln!(text, "{}", shown(hint));
        }
    }
    text
}

fn fault(fault: &Fault, color: bool) -> String {
    let error = &fault.error;
    let mut text = header(error, color);
    let mut hints = error.hints().iter();
    if let Some(place) = &fault.place {
        let beside = error.hints().first().filter(|hint| hint.len() <= BESIDE_THE_MARK);
        if beside.is_some() {
            hints.next();
        }
        text.push_str(&excerpt(place, beside.map(String::as_str), color));
    }
    for hint in hints {
        let _ = writeln!(text, "   = {}", shown(hint));
    }
    text
}

fn header(error: &Error, color: bool) -> String {
    let code = error.code().number();
    // The other faults have headers of their own.
    let message = shown(error.message());
    let (red, bold) = match color {
        true => (AnsiColor::Red.on_default().bold(), Style::new().bold()),
        false => (Style::new(), Style::new()),
    };
    format!("{red}error[{code}]{red:#}{bold}: {message}{bold:#}\n")
}

/// The line with a mark under the fault, drawn by ariadne below a header of ours.
fn excerpt(place: &Location, beside: Option<&str>, color: bool) -> String {
    let line = place.line_text();
    if line.chars().count() > LONGEST_LINE {
        return unmarked(place);
    }
    let name = Foreign(&place.source.name).to_string();
    let name = name.as_str();
    // Of the text only this line is drawn; the others keep their number.
    let before = place.line.saturating_sub(1);
    let text = format!("{}{}\n", "\n".repeat(before), seen(line));
    let start = before + place.column.saturating_sub(1);
    let span = start..start + place.length();
    // ariadne marks nothing for a label that has no words: without any, its line is left out below.
    let label = Label::new((name, span.clone()))
        .with_color(Color::Red)
        .with_message(Foreign(beside.unwrap_or("_")));
    let config = Config::new().with_color(color).with_char_set(char_set(color));
    let report = Report::build(ReportKind::Error, (name, span))
        .with_config(config)
        .with_label(label)
        .finish();
    let mut drawn = Vec::new();
    let cache = (name, ariadne::Source::from(text.as_str()));
    if report.write(cache, &mut drawn).is_err() {
        return unmarked(place);
    }
    let drawn = String::from_utf8_lossy(&drawn);
    // Its own header is replaced by ours, and its closing rule is left out.
    let drawn: Vec<_> = drawn.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    let mut shown = drawn.get(1..drawn.len().saturating_sub(1)).unwrap_or_default().to_vec();
    let mark;
    if beside.is_none() {
        shown.pop();
        mark = shown.pop().map(without_a_label).unwrap_or_default();
        shown.push(&mark);
    }
    shown.iter().fold(String::new(), |text, line| text + *line + "\n")
}

/// A line of ariadne's marks, without the bar that leads to the label.
fn without_a_label(marks: &str) -> String {
    let mut marks = marks.to_owned();
    for (bar, line) in [("|", "^"), ("┬", "─")] {
        // The first bar is the margin's.
        if let Some(at) = marks.rfind(bar).filter(|at| marks[..*at].contains(['|', '│'])) {
            marks.replace_range(at..at + bar.len(), line);
        }
    }
    marks
}

/// The characters of the marks: rules where a terminal draws them.
fn char_set(is_terminal: bool) -> CharSet {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let is_utf8 = locale.to_uppercase().replace('-', "").ends_with("UTF8");
    if is_terminal && is_utf8 { CharSet::Unicode } else { CharSet::Ascii }
}

/// A line with each character that is not seen as itself replaced by a mark, so that the columns stay.
fn seen(line: &str) -> String {
    let line = line.replace(LINE_ENDS, " ");
    let shown = |c: char| match c == '\t' || Foreign(c.encode_utf8(&mut [0; 4])).is_as_it_is() {
        true => c,
        false => '\u{fffd}',
    };
    line.chars().map(shown).collect()
}

fn unmarked(place: &Location) -> String {
    format!("  --> {}\n", position(place))
}

fn position(place: &Location) -> String {
    format!("{}:{}:{}", Foreign(&place.source.name), place.line, place.column)
}

fn causes(error: &Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(e) = cause {
        let _ = writeln!(text, "   caused by: {}", shown(&e.to_string()));
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::recipe::sources::Source;

    fn drawn(text: &str, line: usize, column: usize) -> String {
        let source = Rc::new(Source { name: "r.rhai".to_owned(), text: text.to_owned() });
        excerpt(&Location { source, line, column }, None, false)
    }

    #[test]
    fn a_line_ends_with_a_line_feed_only() {
        let found = drawn("// \u{2028}\r\x0C\nlet x = \u{2028} y;\n", 2, 11);
        assert!(found.contains("[ r.rhai:2:11 ]"), "{found}");
        assert!(found.contains("2 | let x =   y;"), "{found}");
    }

    #[test]
    fn a_fault_without_words_is_underlined() {
        let found = drawn("let x = y;\n", 1, 9);
        assert!(found.contains(" 1 | let x = y;\n   |         ^\n"), "{found}");
        assert!(!found.contains('_'), "{found}");
        assert_eq!(without_a_label("   │ ──┬──"), "   │ ─────");
        assert_eq!(without_a_label("   |"), "   |");
    }

    #[test]
    fn a_name_of_a_megabyte_is_shown_by_its_ends() {
        let name = format!("{}\u{1b}{}", "ä".repeat(600_000), "z".repeat(400_000));
        let error = Error::new(Code::BadValue, format!("no option\n{name}")).hint(&name);
        let text = fault(&Fault { error, place: None }, false);
        assert!(text.starts_with("error[E103]: no option\nää"), "{text}");
        assert!(text.contains("ä ... (998006 more characters) ... z"), "{text}");
        assert!(text.len() < 3 * LONGEST_SHOWN, "{} bytes", text.len());
        let short = "a line\n\nof a message\n";
        assert_eq!(shown(short), short);
    }

    #[test]
    fn many_faults_of_one_long_line_do_not_draw_it_each_time() {
        let long = format!("{}f();\n", " ".repeat(LONGEST_LINE));
        assert_eq!(drawn(&long, 1, 401), "  --> r.rhai:1:401\n");
    }
}
