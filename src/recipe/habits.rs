//! Habits of other languages, Python's above all, that end in a syntax error: each is answered with one
//! sentence and the right form.

use std::rc::Rc;

use super::sources::Location;
use crate::error::{Code, Error};

/// What Rhai says where a statement is not at its end.
const NO_SEMICOLON: &str = "expecting ';'";

/// The error with the right form, where its line shows a habit, and its place.
pub(super) fn answered(error: Error, place: Option<Location>) -> (Error, Option<Location>) {
    let Some(place) = place else { return (error, None) };
    if error.code() == Code::UnknownFunction {
        return (of_closure(error, &place), Some(place));
    }
    if error.code() != Code::Syntax {
        return (error, Some(place));
    }
    if let Some(form) = form(&place) {
        return (error.hint(form), Some(place));
    }
    match end_of_statement(error.message(), &place) {
        Some(end) => {
            let error = Error::new(Code::Syntax, "this statement has no `;` at its end");
            let hint = match is_division(end.line_text()) {
                true => "// begins a comment: the quotient of whole numbers, a / b, is whole",
                false => "write ; behind it",
            };
            (error.hint(hint), Some(end))
        }
        None => (error, Some(place)),
    }
}

/// Whether a syntax error is the habit of another language.
pub(super) fn is_habit(error: &Error, place: &Location) -> bool {
    form(place).is_some()
        || !error.hints().is_empty()
        || end_of_statement(error.message(), place).is_some()
}

/// The end of the statement whose `;` is missing, where that is the error at `place`.
pub(super) fn end_of_statement(message: &str, place: &Location) -> Option<Location> {
    before(place).filter(|_| message.starts_with(NO_SEMICOLON) && form(place).is_none())
}

/// The answer to a call of a variable that holds a function.
fn of_closure(error: Error, place: &Location) -> Error {
    let name = error.message().split('`').nth(1).unwrap_or_default().to_owned();
    let text = &place.source.text;
    let is_closure =
        ["= |", "= ||", "= Fn("].iter().any(|value| text.contains(&format!("let {name} {value}")));
    match is_closure {
        true => {
            error.hint(format!("`{name}` is a variable with a function: write {name}.call(...)"))
        }
        false => error,
    }
}

/// The right form for a habit that the line shows.
fn form(place: &Location) -> Option<&'static str> {
    let line = place.line_text();
    let from = line.char_indices().nth(place.column.saturating_sub(1)).map_or(line.len(), |c| c.0);
    let (before, here) = line.split_at(from);
    let starts = line.trim_start();
    let word_before = before.trim_end().rsplit(|c: char| !is_word(c)).next().unwrap_or_default();
    let first = |words: &[&str]| words.iter().any(|word| starts.starts_with(word));
    Some(match () {
        () if here.starts_with('#') && !here.starts_with("#{") => "a comment begins with //",
        () if first(&["def "]) => "a function is fn name(x) { ... }",
        () if first(&["from "]) => "a module is imported by import \"dsr:trainer\" as trainer;",
        () if first(&["elif ", "} elif "]) => "write else if condition { ... }",
        () if first(&["class ", "with ", "async "]) => {
            "there is no such statement: a recipe has let, fn, if, for, while and import"
        }
        () if here.starts_with('\'') => "text stands in double quotes: \"text\"",
        () if matches!(word_before, "f" | "r" | "b") && here.starts_with(['"', '\'']) => {
            "values in text stand in backquotes: `${x}`"
        }
        () if word_before == "and" || here.starts_with("and ") => "write a && b",
        () if word_before == "or" || here.starts_with("or ") => "write a || b",
        () if word_before == "not" || here.starts_with("not ") => "write !x",
        () if word_before == "lambda" => "a function is a closure: |x| x + 1",
        () if here.starts_with("eval") && before.ends_with('.') => {
            "leave it out: engine.evaluate(dataset) evaluates without dropout"
        }
        () if here.starts_with(':') && in_index(before) => {
            "a part is a range: a[1..2], and a text in a tensor: t[\"1:2\"]"
        }
        () if here.starts_with(':') && in_braces(before) => "a map is #{ key: value }",
        () if here.starts_with(':') && first(&["if ", "for ", "while ", "else", "try"]) => {
            "a block stands in braces: if condition { ... }"
        }
        () => return None,
    })
}

/// Whether a comment on the line reads as the rest of a division: `a // 2;`.
fn is_division(line: &str) -> bool {
    line.split_once("//").is_some_and(|(before, behind)| {
        behind.trim_end().ends_with(';') && before.trim_end().ends_with(|c| is_word(c) || c == ')')
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the last open bracket is one of an index.
fn in_index(before: &str) -> bool {
    before.rfind('[').is_some_and(|at| !before[at..].contains(']'))
}

/// Whether the last open brace has no `#` before it.
fn in_braces(before: &str) -> bool {
    before.rfind('{').is_some_and(|at| !before[..at].ends_with('#') && !before[at..].contains('}'))
}

/// The end of the line with text before `place`, where nothing but space stands between.
fn before(place: &Location) -> Option<Location> {
    let line = place.line_text();
    if line.chars().take(place.column.saturating_sub(1)).any(|c| !c.is_whitespace()) {
        return None;
    }
    let lines: Vec<&str> =
        place.source.text.split('\n').take(place.line.saturating_sub(1)).collect();
    let at = lines.iter().rposition(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("//")
    })?;
    let column = lines[at].trim_end().chars().count().max(1);
    Some(Location { source: Rc::clone(&place.source), line: at + 1, column })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::sources::Source;

    fn at(text: &str, line: usize, column: usize) -> Location {
        let source = Rc::new(Source { name: "r.rhai".into(), text: text.to_owned() });
        Location { source, line, column }
    }

    #[test]
    fn the_line_shows_the_habit() {
        let table = [
            ("let x = 'hi';", 9, "double quotes"),
            ("# words", 1, "//"),
            ("def f(x) { x }", 5, "fn name"),
            ("xs[1:2]", 5, "range"),
            ("let m = {\"a\": 1};", 13, "#{"),
            ("if a and b { 1 }", 6, "&&"),
            ("let a = f\"x\";", 10, "backquotes"),
            ("model.eval()", 7, "evaluate"),
            ("if a:", 5, "braces"),
        ];
        for (text, column, expected) in table {
            let form = form(&at(text, 1, column)).unwrap_or_default();
            assert!(form.contains(expected), "{text}: {form}");
        }
        assert_eq!(form(&at("let x = 1 2;", 1, 11)), None);
    }

    #[test]
    fn a_missing_semicolon_is_told_where_it_is_missing() {
        let error = Error::new(Code::Syntax, "expecting ';' to terminate this statement");
        let text = "let a = 1\n\n// words\nlet b = 2;";
        let (error, place) = answered(error, Some(at(text, 4, 1)));
        let place = place.unwrap();
        assert_eq!((place.line, place.column), (1, 9));
        assert_eq!(error.message(), "this statement has no `;` at its end");
    }
}
