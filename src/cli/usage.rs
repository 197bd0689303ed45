//! The command line as clap reads it, and its mistakes and help as clap tells them.

use std::{ffi::OsString, process::ExitCode};

use clap::{
    ColorChoice, CommandFactory, FromArgMatches, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::args::Cli;
use crate::foreign::{self, Foreign};

/// Reads the command line.
pub(super) fn read(words: &[OsString]) -> Result<Cli, clap::Error> {
    let mut matches = Cli::command().color(asked_colours(words)).try_get_matches_from(words)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut Cli::command()))
}

/// The value of `--color` in `words`: clap's own messages go by it too.
fn asked_colours(words: &[OsString]) -> ColorChoice {
    let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
    let values = words.iter().enumerate().filter_map(|(i, word)| match *word {
        "--color" => words.get(i + 1).copied(),
        word => word.strip_prefix("--color="),
    });
    values
        .filter_map(|value| ColorChoice::from_str(value, false).ok())
        .next_back()
        .unwrap_or_default()
}

/// Shows clap's message about `words`: help and version are no errors.
pub(super) fn show(error: clap::Error, words: &[OsString]) -> ExitCode {
    let error = escaped(with_parameter_hint(error, words));
    // Nothing can be done when standard error is closed.
    let _ = error.print();
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The error, with what it quotes escaped: a word may be the name of a stranger's file.
fn escaped(mut error: clap::Error) -> clap::Error {
    let of = |(kind, value): (ContextKind, &ContextValue)| {
        let value = match value {
            ContextValue::String(text) => ContextValue::String(Foreign(text).to_string()),
            ContextValue::StyledStrs(texts) => {
                let shown =
                    texts.iter().map(|text| foreign::styled(&text.ansi().to_string()).into());
                ContextValue::StyledStrs(shown.collect())
            }
            _ => return None,
        };
        Some((kind, value))
    };
    let values: Vec<_> = error.context().filter_map(of).collect();
    for (kind, value) in values {
        error.insert(kind, value);
    }
    error
}

/// The error, with the form of a parameter's value where an unknown flag of a command that takes
/// parameters was given: `-p steps=5` for `--steps 5`.
fn with_parameter_hint(mut error: clap::Error, words: &[OsString]) -> clap::Error {
    let command = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let takes_parameters = Cli::command()
        .find_subcommand(command)
        .is_some_and(|command| command.get_arguments().any(|arg| arg.get_id() == "param"));
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return error };
    let Some(name) = flag.strip_prefix("--").filter(|_| takes_parameters) else { return error };
    let name = name.replace('-', "_");
    let values = words.iter().filter_map(|word| word.to_str()).skip_while(|word| word != flag);
    let value = values.skip(1).find(|word| !word.starts_with('-')).unwrap_or("VALUE");
    let hint = format!("a parameter of the recipe is given by -p {name}={value}");
    let is_unknown = error.kind() == ErrorKind::UnknownArgument;
    if is_unknown && error.get(ContextKind::SuggestedArg).is_none() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn colours_are_asked_for_before_the_words_are_read() {
        let asked =
            |words: &[&str]| asked_colours(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(asked(&["dsr", "runs"]), ColorChoice::Auto);
        assert_eq!(asked(&["dsr", "--color", "never", "runs"]), ColorChoice::Never);
        assert_eq!(asked(&["dsr", "runs", "--color=always", "--color"]), ColorChoice::Always);
    }

    #[test]
    fn what_is_quoted_orders_no_terminal() {
        let orders = "\u{9b}2J\r\u{202e}x";
        for words in [
            vec!["check", "--ORDERS"],
            vec!["run", "r.rhai", "--ORDERS", "ORDERS"],
            vec!["completions", "ORDERS"],
            vec!["ORDERS"],
            vec!["run", "r.rhai", "--max-hours=ORDERS"],
        ] {
            let words = words.iter().map(|word| word.replace("ORDERS", orders));
            let words: Vec<_> = ["dsr".to_owned()].into_iter().chain(words).collect();
            let error = Cli::try_parse_from(&words).unwrap_err();
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            let said = escaped(with_parameter_hint(error, &words)).to_string();
            assert!(said.contains("\\u{9b}2J") && said.contains("x"), "{said}");
            assert!(!said.contains(['\u{9b}', '\r', '\u{202e}']), "{said}");
        }
    }

    #[test]
    fn a_flag_of_a_recipe_is_shown_as_a_parameter() {
        let said = |words: &[&str]| {
            let words: Vec<_> = ["dsr"].iter().chain(words).map(OsString::from).collect();
            let error = Cli::try_parse_from(&words).unwrap_err();
            with_parameter_hint(error, &words).to_string()
        };
        let hinted = said(&["run", "r.rhai", "--batch-size", "5", "--no-prompt"]);
        assert!(hinted.contains("tip: a parameter of the recipe is given by -p batch_size=5"));
        assert!(said(&["plan", "r.rhai", "--steps"]).contains("-p steps=VALUE"));
        assert!(said(&["run", "r.rhai", "--resum", "auto"]).contains("'--resume'"));
        assert!(!said(&["score", "--steps", "5"]).contains("-p steps"));
    }
}
