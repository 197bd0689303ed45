//! Checks of one row that is trained on: its ids, labels and mask, by the row's number.

use crate::{
    error::{Code, Error, Result},
    tensor::IGNORE_INDEX,
};

pub(super) fn check_ids(ids: &[i64], row: u64) -> Result<&[i64]> {
    match ids.iter().position(|&id| id < 0) {
        Some(at) => bail!(
            Code::TokenId,
            "row {row}: input_ids[{at}] is {}; a token id is 0 or more",
            ids[at]
        ),
        None => Ok(ids),
    }
}

/// Refuses a mask that is more than a mask, such as the numbers of joined documents.
pub(super) fn check_mask(mask: &[i64], row: u64) -> Result<()> {
    let Some(other) = mask.iter().find(|&&value| value != 0 && value != 1) else { return Ok(()) };
    let message = format!("row {row}: attention_mask holds {other}; expected 0 and 1 alone");
    Err(Error::new(Code::Data, message).hint(
        "numbers of joined documents are not supported: make them 1, or leave the column out",
    ))
}

/// Refuses a negative label that is not the one without a target.
pub(super) fn check_labels(labels: &[i64], row: u64) -> Result<()> {
    let Some(label) = labels.iter().find(|&&id| id < 0 && id != IGNORE_INDEX) else {
        return Ok(());
    };
    let message =
        format!("row {row}: {label} is no label: a label is a token id, or {IGNORE_INDEX}");
    Err(Error::new(Code::TokenId, message)
        .hint(format!("write {IGNORE_INDEX} where there is no target")))
}

pub(super) fn same_length<'a>(
    other: &'a [i64],
    ids: &[i64],
    name: &str,
    row: u64,
) -> Result<&'a [i64]> {
    if other.len() != ids.len() {
        bail!(
            Code::Data,
            "row {row}: {name} has {} entries and input_ids {}; expected the same number",
            other.len(),
            ids.len()
        );
    }
    Ok(other)
}
