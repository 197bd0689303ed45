//! An engine: the progress of the training, and the uses of its memory.

use super::layout::{Card, Table, number};
use crate::{
    engine::Engine,
    error::Result,
    units::{Bytes, grouped},
};

pub(super) fn card(engine: &Engine) -> Result<Card> {
    let config = engine.config();
    let mut card = Card::new(format!(
        "Engine {} {}  micro_batch_size {} x gradient_accumulation_steps {}",
        config.precision.dtype.name(),
        config.optimizer.name(),
        config.micro_batch_size,
        config.gradient_accumulation_steps,
    ));
    let step = match engine.micro_step() {
        0 => grouped(engine.global_step()),
        micro => format!("{} + {micro} micro batches", grouped(engine.global_step())),
    };
    card.fact("step", step);
    if let Some(last) = engine.last_step() {
        card.fact("loss", number(last.loss));
        card.fact("grad_norm", number(last.grad_norm));
    }
    card.fact("lr", number(engine.lr()?));
    if let Some(scale) = engine.loss_scale() {
        card.fact("loss_scale", number(scale));
    }
    if engine.skipped_steps() > 0 {
        card.fact("skipped", engine.skipped_steps().to_string());
    }
    let memory = engine.memory();
    let kinds = memory.kinds().into_iter().chain([("peak", memory.peak())]);
    let rows = kinds.map(|(kind, bytes)| vec![kind.replace('_', " "), Bytes(bytes).to_string()]);
    card.table = Some(Table {
        head: vec!["memory".to_owned(), "at its peak".to_owned()],
        rows: rows.collect(),
    });
    Ok(card)
}
