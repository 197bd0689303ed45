//! A model: its layers with their parameters and memory.

use super::layout::{Card, Table};
use crate::{
    error::Result,
    model::{FlatUnit, Model},
    tensor::{device_name, dtype_name},
    units::{Bytes, grouped},
};

pub(super) fn card(model: &Model, title: String) -> Result<Card> {
    let mut card = Card::new(title);
    let bytes: u64 =
        model.units().iter().map(|unit| unit.numel() as u64 * element_bytes(unit)).sum();
    card.fact("parameters", grouped(model.num_params()));
    if model.num_trainable_params() < model.num_params() {
        card.fact("trainable", grouped(model.num_trainable_params()));
    }
    card.fact("memory", Bytes(bytes).to_string());
    if let Some(unit) = model.units().first() {
        card.fact("dtype", dtype_name(unit.kind()));
    }
    card.fact("device", device_name(model.device()));
    let mut table = Table {
        head: ["layer", "parameters", "tensors"].map(str::to_owned).to_vec(),
        ..Table::default()
    };
    let mut last: Option<(Vec<Vec<i64>>, usize)> = None;
    let (units, prefix) = (model.units(), prefix(model));
    for (i, unit) in units.iter().enumerate() {
        let shapes: Vec<_> = unit.specs().iter().map(|spec| spec.shape.clone()).collect();
        if let Some((known, first)) = &last
            && *known == shapes
        {
            // Layers of the same shape are one row.
            let names = format!("{} .. {}", layer(&units[*first], &prefix), layer(unit, &prefix));
            let many = (i - first + 1) as u64;
            table.rows.pop();
            table.rows.push(row(&names, unit, many, &prefix));
            continue;
        }
        table.rows.push(row(&layer(unit, &prefix), unit, 1, &prefix));
        last = Some((shapes, i));
    }
    card.table = Some(table);
    Ok(card)
}

fn element_bytes(unit: &FlatUnit) -> u64 {
    unit.kind().elt_size_in_bytes() as u64
}

fn row(name: &str, unit: &FlatUnit, many: u64, prefix: &str) -> Vec<String> {
    let parameters = grouped(unit.numel() as u64);
    let parameters = if many > 1 { format!("{many} x {parameters}") } else { parameters };
    let within = layer(unit, prefix);
    let tensors: Vec<_> = unit
        .specs()
        .iter()
        .filter(|spec| !spec.name.ends_with(".bias"))
        .map(|spec| {
            let name = spec.name.strip_prefix(prefix).unwrap_or(&spec.name);
            let name = name.strip_prefix(&within).unwrap_or(name).trim_start_matches('.');
            format!("{} {:?}", name.trim_end_matches(".weight"), spec.shape)
        })
        .collect();
    vec![name.to_owned(), parameters, tensors.join("  ")]
}

/// The first word of all names, with its dot, where it is the same.
fn prefix(model: &Model) -> String {
    let mut names = model.units().iter().flat_map(FlatUnit::names);
    let first = names.next().and_then(|name| name.split_once('.'));
    let prefix = first.map_or(String::new(), |(word, _)| format!("{word}."));
    if names.all(|name| name.starts_with(&prefix)) { prefix } else { String::new() }
}

/// The common start of the names of the unit's parameters, up to a dot, or else their first words.
fn layer(unit: &FlatUnit, prefix: &str) -> String {
    let names: Vec<_> =
        unit.names().map(|name| name.strip_prefix(prefix).unwrap_or(name)).collect();
    let first = names.first().copied().unwrap_or_default();
    let shared = names.iter().fold(first.len(), |shared, name| {
        let same = first.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        shared.min(same)
    });
    match first[..shared].rsplit_once('.') {
        Some((layer, _)) => layer.to_owned(),
        None => {
            let words = names.iter().map(|name| name.split('.').next().unwrap_or(name));
            words.collect::<Vec<_>>().join(", ")
        }
    }
}
