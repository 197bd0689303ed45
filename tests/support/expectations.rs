//! The expectations inside a recipe: read, compared and written again.
//!
//! An expectation is a comment on a line of its own, below the line that it is about: `//> text`
//! for a printed line, `//~ text` for a mistake.

use std::{collections::BTreeMap, fmt::Write, ops::RangeInclusive};

use similar::{ChangeTag, TextDiff};

/// Begins a printed line.
const PRINTED: &str = "//>";
/// Begins what is said of a mistake.
const SAID: &str = "//~";
/// Begins a setting of the runner.
const SETTING: &str = "//@ ";
/// Begins a recipe of its own in a file with several, with its title.
const TITLE: &str = "//# ";
/// Stands for any text in an expectation.
const ANY: &str = "...";

/// A recipe of a file: the head, which all recipes of the file begin with, and its own lines.
pub(crate) struct Section {
    title: String,
    /// The text to run. Lines of other recipes and expectations are blank, so that places are those
    /// in the file.
    pub(crate) text: String,
    printed: Vec<String>,
    /// What is said at which line.
    said: Vec<(usize, String)>,
    settings: Vec<(String, String)>,
    /// Lines of the head, which belong to all recipes of the file.
    head: usize,
    /// The last line of code, counted from 1.
    end: usize,
}

/// A mistake or a call on the way to it.
pub(crate) struct Said {
    /// Line and column in the lines of the recipe's own; elsewhere, it is said below its last line.
    pub(crate) place: Option<(usize, usize)>,
    pub(crate) text: String,
}

/// What a section did.
pub(crate) struct Found {
    pub(crate) printed: Vec<String>,
    pub(crate) faults: Vec<Said>,
}

impl Section {
    /// The values of a setting, `//@ name: value` or `//@ name`.
    pub(crate) fn settings<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.settings.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The lines from the first that is not of the head to the last line of code.
    pub(crate) fn own_lines(&self) -> RangeInclusive<usize> {
        self.head + 1..=self.end
    }
}

/// The recipes of a file.
pub(crate) fn sections(text: &str) -> Vec<Section> {
    let lines: Vec<&str> = text.lines().collect();
    let mut starts: Vec<usize> =
        (0..lines.len()).filter(|&i| lines[i].starts_with(TITLE)).collect();
    let head = *starts.first().unwrap_or(&0);
    if starts.is_empty() {
        starts.push(0);
    }
    let ends = starts[1..].iter().copied().chain([lines.len()]);
    starts.iter().zip(ends).map(|(&start, end)| section(&lines, head, start, end)).collect()
}

fn section(lines: &[&str], head: usize, start: usize, end: usize) -> Section {
    let title = lines[start].strip_prefix(TITLE).unwrap_or_default().to_owned();
    let mut section = Section {
        title,
        text: String::new(),
        printed: Vec::new(),
        said: Vec::new(),
        settings: Vec::new(),
        head,
        end: start + 1,
    };
    let mut at = 0;
    for (i, line) in lines[..end].iter().enumerate() {
        if i >= head && i < start {
            section.text.push('\n');
            continue;
        }
        let code = line.trim_start();
        if let Some(printed) = code.strip_prefix(PRINTED) {
            section.printed.push(printed.strip_prefix(' ').unwrap_or(printed).to_owned());
        } else if let Some(said) = code.strip_prefix(SAID) {
            section.said.push((at, said.trim().to_owned()));
        } else {
            section.text += line;
            at = i + 1;
            if let Some(setting) = code.strip_prefix(SETTING) {
                let (name, value) = setting.split_once(": ").unwrap_or((setting, ""));
                section.settings.push((name.to_owned(), value.to_owned()));
            }
            if !code.is_empty() {
                section.end = i + 1;
            }
        }
        section.text.push('\n');
    }
    section.text.truncate(section.text.trim_end().len());
    section.text.push('\n');
    section
}

/// The lines that are said and their lines in the file, in the order of their places. The order in
/// which mistakes are told is no part of an expectation.
fn ordered(section: &Section, faults: &[Said]) -> Vec<(usize, String)> {
    let place = |said: &&Said| said.place.unwrap_or((section.end, 0));
    let mut all: Vec<&Said> = faults.iter().collect();
    all.sort_by_key(place);
    let lines = |said: &Said| {
        let line = place(&said).0;
        said.text.lines().map(move |text| (line, text.to_owned())).collect::<Vec<_>>()
    };
    all.into_iter().flat_map(lines).collect()
}

/// How a section differs from what was found, as a diff, or nothing.
pub(crate) fn difference(section: &Section, found: &Found, file: &str) -> String {
    let title = match section.title.as_str() {
        "" => file.to_owned(),
        title => format!("{file}: {title}"),
    };
    let mut report = String::new();
    let printed = with_gaps(&section.printed, &found.printed);
    diff(&mut report, &section.printed, &printed, PRINTED);
    let at = |(line, text): &(usize, String)| format!("line {line}: {text}");
    let expected: Vec<String> = section.said.iter().map(at).collect();
    let said: Vec<String> = ordered(section, &found.faults).iter().map(at).collect();
    diff(&mut report, &expected, &with_gaps(&expected, &said), SAID);
    if report.is_empty() { report } else { format!("{title}\n{report}") }
}

/// The lines that were found, with an expected line in the place of each that it matches.
fn with_gaps(expected: &[String], found: &[String]) -> Vec<String> {
    let mut expected = expected.iter();
    let mut next = expected.next();
    let take = |line: &String| {
        let fits = next.filter(|pattern| matches(pattern, line));
        next = expected.next();
        fits.unwrap_or(line).clone()
    };
    found.iter().map(take).collect()
}

/// Whether a line is the expected one, in which `...` stands for any text.
fn matches(pattern: &str, line: &str) -> bool {
    let parts: Vec<&str> = pattern.split(ANY).collect();
    let [first, middle @ .., last] = parts.as_slice() else { return pattern == line };
    let Some(mut rest) = line.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else {
        return pattern == line;
    };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

fn diff(report: &mut String, expected: &[String], found: &[String], mark: &str) {
    if expected == found {
        return;
    }
    let whole = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let (expected, found) = (whole(expected), whole(found));
    for change in TextDiff::from_lines(&expected, &found).iter_all_changes() {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        let _ = writeln!(report, "{sign} {mark} {}", change.value().trim_end_matches('\n'));
    }
}

/// The file with what was found as its expectations. `print_lines` gives the line of the call
/// behind each printed line of a section.
pub(crate) fn rewritten(
    text: &str,
    sections: &[Section],
    found: &[Found],
    print_lines: impl Fn(&Section) -> Vec<usize>,
) -> String {
    let mut below: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (section, found) in sections.iter().zip(found) {
        let printed = with_gaps(&section.printed, &found.printed);
        let mut lines = print_lines(section);
        if lines.len() != printed.len() {
            lines = vec![section.end; printed.len()];
        }
        for line in &mut lines {
            if !section.own_lines().contains(line) {
                *line = section.end;
            }
        }
        in_order(&mut lines);
        for (line, text) in lines.iter().zip(printed) {
            below.entry(*line).or_default().push(format!("{PRINTED} {text}").trim_end().to_owned());
        }
        let said = ordered(section, &found.faults);
        let texts: Vec<String> = said.iter().map(|(_, text)| text.clone()).collect();
        let expected: Vec<String> = section.said.iter().map(|(_, text)| text.clone()).collect();
        for ((line, _), text) in said.iter().zip(with_gaps(&expected, &texts)) {
            below.entry(*line).or_default().push(format!("{SAID} {text}"));
        }
    }
    let mut whole = String::new();
    for (i, line) in text.lines().enumerate() {
        let code = line.trim_start();
        if code.starts_with(PRINTED) || code.starts_with(SAID) {
            continue;
        }
        let _ = writeln!(whole, "{line}");
        let indent = &line[..line.len() - code.len()];
        for expectation in below.get(&(i + 1)).into_iter().flatten() {
            let _ = writeln!(whole, "{indent}{expectation}");
        }
    }
    whole
}

/// Makes lines rise: those of calls that take turns all become that of the last of these calls.
fn in_order(lines: &mut [usize]) {
    let mut least = 0;
    let mut start = 0;
    while start < lines.len() {
        let mut end = start + 1;
        let mut i = start;
        while i < end {
            let last = lines.iter().rposition(|line| *line == lines[i]).unwrap_or(i);
            end = end.max(last + 1);
            i += 1;
        }
        least = lines[start..end].iter().copied().fold(least, usize::max);
        lines[start..end].fill(least);
        start = end;
    }
}

#[test]
fn a_gap_stands_for_any_text() {
    assert!(matches("a ... c", "a b c") && matches("a...", "a") && matches("...", ""));
    assert!(!matches("a ... c", "a b d") && !matches("a", "a b"));
}

#[test]
fn printed_lines_stand_below_the_last_of_the_calls_that_take_turns() {
    let mut lines = [1, 10, 11, 10, 11, 20, 3, 21, 22];
    in_order(&mut lines);
    assert_eq!(lines, [1, 11, 11, 11, 11, 20, 20, 21, 22]);
    let mut lines = [10, 11, 10, 11, 12];
    in_order(&mut lines);
    assert_eq!(lines, [11, 11, 11, 11, 12]);
}

#[test]
fn a_file_is_read_and_written_again() {
    let text =
        "//! Head.\nfn f() { 1 }\n//# one\n//@ args: -p a=1\nprint(f());\n//> 2\n//# two\ng();\n";
    let sections = sections(text);
    assert_eq!(sections[0].settings("args").collect::<Vec<_>>(), ["-p a=1"]);
    assert_eq!(sections[1].text, "//! Head.\nfn f() { 1 }\n\n\n\n\n//# two\ng();\n");
    let one = Found { printed: vec!["1".to_owned()], faults: Vec::new() };
    let said = Said { place: Some((8, 1)), text: "error[E110] 1: no g\nhelp: f".to_owned() };
    let two = Found { printed: Vec::new(), faults: vec![said] };
    assert_eq!(difference(&sections[0], &one, "a"), "a: one\n- //> 2\n+ //> 1\n");
    let lines = |section: &Section| if section.title == "one" { vec![5] } else { Vec::new() };
    assert_eq!(
        rewritten(text, &sections, &[one, two], lines),
        "//! Head.\nfn f() { 1 }\n//# one\n//@ args: -p a=1\nprint(f());\n//> 1\n//# two\ng();\n\
         //~ error[E110] 1: no g\n//~ help: f\n"
    );
}
