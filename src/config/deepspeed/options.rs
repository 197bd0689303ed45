//! Keys that are options of dsr as they are, from the rows of the options.

use super::key::{Fate, Key, Kind};
use crate::config::options::{self, Limits, Row};

/// The keys `own` and those that the rows of `tables` name, which become the options below `path`. A
/// key of `own` stands for the row of its name. Called once for each table: what it makes stays.
pub(super) fn with_options(own: &[Key], tables: &[&'static [Row]], path: &str) -> &'static [Key] {
    let rows = tables.iter().flat_map(|rows| rows.iter());
    let keys = rows.filter_map(|row| key_of(row, path));
    let is_other = |key: &Key| own.iter().all(|own| own.name != key.name);
    keys.filter(is_other).chain(own.iter().copied()).collect::<Vec<_>>().leak()
}

fn key_of(row: &'static Row, path: &str) -> Option<Key> {
    let name = row.deepspeed?;
    let option = if path.is_empty() { row.name.to_owned() } else { format!("{path}.{}", row.name) };
    let fate = Fate::Becomes(option.leak());
    let kind = kind_of(row)?;
    let is_open = !row.is_required && (row.default)().is_none();
    let kind = if is_open { Kind::OrNull(Box::leak(Box::new(kind))) } else { kind };
    Some(Key { name, kind, fate })
}

/// The kind of a row's values; `None` for maps, whose keys are written out.
fn kind_of(row: &Row) -> Option<Kind> {
    let limits = (row.limits)();
    let (least, most) = limits.map_or((0.0, f64::MAX), |Limits { least, most, .. }| (least, most));
    Some(match (row.kind)() {
        options::Kind::Bool => Kind::Bool,
        options::Kind::Text => Kind::Text,
        options::Kind::Words(words) => Kind::Word(words.leak()),
        options::Kind::Number => Kind::Number(least, most),
        options::Kind::Whole if most == f64::MAX => Kind::Whole(least as i64),
        options::Kind::Whole => Kind::Between(least as i64, most as i64),
        _ => return None,
    })
}
