//! Values as data: a title, facts, a table, some text.

mod data;
mod layout;
mod model;
mod plain;
mod tensor;
mod training;

use std::rc::Rc;

use rhai::Dynamic;

pub use self::layout::{Card, Table};
use super::session::{Live, Value};
use crate::{
    data::{Batch, Dataset},
    error::Result,
    script::{
        Shared,
        api::{engine::Engine, loader::api::Loader, model::api::Model, tensor::Handle},
    },
};

impl Live {
    /// The card of a value.
    pub fn card(&self, value: &Value) -> Card {
        let value = value.0.flatten_clone();
        let card = self.handle(&value).unwrap_or_else(|| Ok(self.plain(&value)));
        // A value that cannot be read shows its error.
        card.unwrap_or_else(|e| Card {
            title: self.described(&value),
            text: e.to_string(),
            ..Card::default()
        })
    }

    /// The card of a handle of dsr; `None` for any other value.
    fn handle(&self, value: &Dynamic) -> Option<Result<Card>> {
        Some(if let Some(tensor) = value.clone().try_cast::<Handle>() {
            tensor::card(&tensor)
        } else if let Some(model) = value.clone().try_cast::<Model>() {
            model::card(&model.get(), self.described(value))
        } else if let Some(dataset) = value.clone().try_cast::<Dataset>() {
            data::of_dataset(&dataset)
        } else if let Some(loader) = value.clone().try_cast::<Loader>() {
            data::of_loader(&loader)
        } else if let Some(batch) = value.clone().try_cast::<Rc<Batch>>() {
            data::of_batch(&batch)
        } else if let Some(engine) = value.clone().try_cast::<Engine>() {
            Shared::read(&engine).and_then(|engine| training::card(&engine))
        } else {
            return None;
        })
    }
}
