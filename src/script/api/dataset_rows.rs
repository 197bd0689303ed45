//! Rows of datasets as scripts see them: maps.

use rhai::{Array, Dynamic};

use crate::{
    data::{self, Row},
    error::{Code, Error, Result},
    recipe::value::{self, describe},
};

/// A row as scripts see it.
pub(super) fn row_to_map(row: Row) -> Dynamic {
    value::from_json(row.into())
}

/// A row that a function of the recipe has made.
pub(super) fn map_to_row(returned: &Dynamic) -> Result<Row> {
    match value::to_json(returned)? {
        serde_json::Value::Object(row) => Ok(row),
        _ => {
            let found = describe(returned);
            let message = format!("the function of `map` must return a map, found {found}");
            Err(Error::new(Code::WrongType, message).hint("for example: |row| #{ text: row.text }"))
        }
    }
}

/// Row `index`, from the end where it is negative.
pub(super) fn row_at(dataset: &data::Dataset, index: i64) -> Result<Dynamic> {
    let from_start = match u64::try_from(index) {
        Ok(index) => index,
        Err(_) => {
            let rows = dataset.count()?;
            rows.checked_sub(index.unsigned_abs()).ok_or_else(|| {
                Error::new(Code::Data, format!("no row {index}: the dataset has {rows} rows"))
            })?
        }
    };
    dataset.row(from_start).map(row_to_map)
}

/// The rows of a range that are there.
pub(super) fn rows_in(dataset: &data::Dataset, from: i64, to: i64) -> Result<Array> {
    let Ok(first) = u64::try_from(from) else {
        bail!(Code::BadValue, "a range of rows starts at 0 or later, found {from}..{to}");
    };
    let len = u64::try_from(to.saturating_sub(from)).unwrap_or(0);
    dataset.skip(first)?.take(len)?.rows()?.map(|row| row.map(row_to_map)).collect()
}
