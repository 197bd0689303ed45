//! Option tables as arguments of the command line: each row is a flag with its help and default.

use std::{marker::PhantomData, str::FromStr};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::{
    config::options::{self, Kind, Map, OptionTable, Row, Value},
    error::Result,
};

/// The options of a table that were given.
#[derive(Debug)]
pub(super) struct TableArgs<T> {
    given: Map,
    table: PhantomData<T>,
}

impl<T: OptionTable> TableArgs<T> {
    /// The table; `owner` names it in errors.
    pub(super) fn read(&self, owner: &str) -> Result<T> {
        options::read(owner, &self.given, T::read)
    }
}

impl<T: OptionTable> Args for TableArgs<T> {
    fn augment_args(command: Command) -> Command {
        T::ROWS.iter().map(argument).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: OptionTable> FromArgMatches for TableArgs<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given =
            T::ROWS.iter().filter_map(|row| Some((row.name.to_owned(), value(row, matches)?)));
        Ok(Self { given: given.collect(), table: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument(row: &'static Row) -> Arg {
    let default = (row.default)().filter(|_| !is_flag(row));
    let default = default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
    let several = if takes_several(row) { "; give it again for each further one" } else { "" };
    let arg = Arg::new(row.name)
        .long(row.name.replace('_', "-"))
        .help(format!("{}{several}{default}", capital(&row.text())));
    match is_flag(row) {
        true => arg.action(ArgAction::SetTrue),
        false => arg.action(ArgAction::Append).value_name(shape(row)).allow_negative_numbers(true),
    }
}

/// Help begins with a capital letter on the command line.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn is_flag(row: &Row) -> bool {
    matches!((row.kind)(), Kind::Bool)
}

/// Whether it may be a list.
fn takes_several(row: &Row) -> bool {
    matches!((row.kind)(), Kind::Or(_, other) if matches!(*other, Kind::List))
}

fn shape(row: &Row) -> &'static str {
    match (row.kind)() {
        Kind::Whole | Kind::Number => "N",
        Kind::Or(one, _) if matches!(*one, Kind::Whole | Kind::Number) => "N",
        _ => "TEXT",
    }
}

/// The value of a row, as a recipe would have it: one that is given several times is a list.
fn value(row: &Row, matches: &ArgMatches) -> Option<Value> {
    if is_flag(row) {
        return matches.get_flag(row.name).then_some(Value::Bool(true));
    }
    let is_number = shape(row) == "N";
    let mut values: Vec<Value> =
        matches.get_many::<String>(row.name)?.map(|text| parsed(text, is_number)).collect();
    match values.len() {
        1 => values.pop(),
        _ => Some(Value::List(values)),
    }
}

fn parsed(text: &str, is_number: bool) -> Value {
    let int = || i64::from_str(text).ok().map(Value::Int);
    let number = || int().or_else(|| f64::from_str(text).ok().map(Value::Float));
    let number = if is_number { number() } else { None };
    number.unwrap_or_else(|| Value::Text(text.to_owned()))
}
