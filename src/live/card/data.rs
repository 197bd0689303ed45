//! Datasets, loaders and batches.

use serde_json::Value;

use super::layout::{Card, Table};
use crate::{
    data::{Batch, Dataset, LoaderState},
    error::Result,
    script::api::{loader::api::Loader, tensor::Handle},
    tensor::describe_place,
    units::grouped,
};

/// The number of records that are shown, and of characters of each value.
const RECORDS: u64 = 3;
const MOST_CHARACTERS: usize = 60;

/// Stages that read all rows before the first.
const READ_ALL: [&str; 2] = ["-> shuffle(", "-> cache("];

pub(super) fn of_dataset(dataset: &Dataset) -> Result<Card> {
    let plan = dataset.describe();
    let mut card = Card::new(format!("Dataset {plan}"));
    card.fact(
        "rows",
        match dataset.num_rows()? {
            Some(rows) => grouped(rows),
            None => "known when they are read: .count()".to_owned(),
        },
    );
    let schema = dataset.schema();
    let columns: Vec<_> = schema
        .fields()
        .iter()
        .map(|f| format!("{}: {}", f.name(), type_name(&f.data_type().to_string())))
        .collect();
    card.fact("columns", columns.join(", "));
    if READ_ALL.iter().any(|stage| plan.contains(stage)) {
        card.text = "The first records are not read: all others would be too. ds[0..3] shows them."
            .to_owned();
        return Ok(card);
    }
    let mut rows = Vec::new();
    for (i, row) in dataset.take(RECORDS)?.rows()?.enumerate() {
        let values = row?.values().map(shortened).collect::<Vec<_>>();
        rows.push(std::iter::once(i.to_string()).chain(values).collect());
    }
    let head = std::iter::once(String::new()).chain(dataset.columns()).collect();
    card.table = Some(Table { head, rows });
    Ok(card)
}

/// A type as users of other tools know it: `List(Int32)` is `list<int32>`.
fn type_name(arrow: &str) -> String {
    let name = arrow.split(", field:").next().unwrap_or(arrow).to_lowercase();
    match name.as_str() {
        "utf8" | "largeutf8" | "utf8view" => "string".to_owned(),
        other => other.replace("non-null ", ""),
    }
}

/// A value on one line, cut.
fn shortened(value: &Value) -> String {
    let text = match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => {
            let shown: Vec<_> = items.iter().take(8).map(ToString::to_string).collect();
            let more = items.len() - shown.len();
            match more {
                0 => format!("[{}]", shown.join(", ")),
                more => format!("[{}, ... {more} more]", shown.join(", ")),
            }
        }
        other => other.to_string(),
    };
    if text.chars().count() <= MOST_CHARACTERS {
        return text;
    }
    let cut: String = text.chars().take(MOST_CHARACTERS - 3).collect();
    format!("{cut}...")
}

pub(super) fn of_loader(loader: &Loader) -> Result<Card> {
    let loader = loader.read()?;
    let LoaderState { epoch, row } = loader.state();
    let mut card = Card::new(format!("Loader {}", loader.describe()));
    card.fact("micro_batch_size", loader.options().micro_batch_size.to_string());
    card.fact("epochs", loader.options().epochs.map_or("endless".to_owned(), |n| n.to_string()));
    card.fact("next", format!("row {row} of epoch {epoch}"));
    Ok(card)
}

pub(super) fn of_batch(batch: &Batch) -> Result<Card> {
    let mut card = Card::new(format!("Batch {:?}", batch.input_ids().size()));
    card.fact("from", format!("row {} of epoch {}", batch.first_row, batch.epoch));
    card.fact("input_ids", describe_place(batch.input_ids()));
    card.text = crate::tensor::guard("show", || {
        crate::script::api::tensor::show::corner(
            Handle::new(batch.input_ids().shallow_clone()).tensor(),
        )
    })?;
    Ok(card)
}
