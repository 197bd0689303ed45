//! What a value is like, as data: a title, facts, a table, some text.

mod data;
mod model;
mod plain;
mod tensor;
mod training;

use rhai::Dynamic;

use super::{Live, Value};
use crate::{
    data::{Batch, Dataset},
    error::Result,
    script::{
        Shared,
        api::{engine::Engine, loader::api::Loader, model::api::Model, tensor::Handle},
    },
};

/// A value as it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// What it is, in a line; empty where the text says it.
    pub title: String,
    /// Names with their values.
    pub facts: Vec<(String, String)>,
    /// Rows under a head.
    pub table: Option<Table>,
    /// Lines below.
    pub text: String,
}

/// A table of a card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The names of the columns.
    pub head: Vec<String>,
    /// The rows, each as long as the head.
    pub rows: Vec<Vec<String>>,
}

impl Card {
    fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.facts.push((name.to_owned(), value.into()));
    }
}

impl Live {
    /// What a value is like.
    pub fn card(&self, value: &Value) -> Card {
        let value = value.0.flatten_clone();
        let card = self.handle(&value).unwrap_or_else(|| Ok(self.plain(&value)));
        // What cannot be looked at says why.
        card.unwrap_or_else(|e| Card {
            title: self.described(&value),
            text: e.to_string(),
            ..Card::default()
        })
    }

    /// The value of a handle of dsr; `None` for any other.
    fn handle(&self, value: &Dynamic) -> Option<Result<Card>> {
        Some(if let Some(tensor) = value.clone().try_cast::<Handle>() {
            tensor::card(&tensor)
        } else if let Some(model) = value.clone().try_cast::<Model>() {
            model::card(&model, self.described(value))
        } else if let Some(dataset) = value.clone().try_cast::<Dataset>() {
            data::of_dataset(&dataset)
        } else if let Some(loader) = value.clone().try_cast::<Loader>() {
            data::of_loader(&loader)
        } else if let Some(batch) = value.clone().try_cast::<std::rc::Rc<Batch>>() {
            data::of_batch(&batch)
        } else if let Some(engine) = value.clone().try_cast::<Engine>() {
            Shared::read(&engine).and_then(|engine| training::card(&engine))
        } else {
            return None;
        })
    }

    /// The value as `print` shows it.
    pub(in crate::script::live) fn described(&self, value: &Dynamic) -> String {
        let text = self.engine.eval_fn_call::<Dynamic>("to_string", None, (value.clone(),));
        text.map_or_else(|_| value.to_string(), |text| text.to_string())
    }
}

/// A number in at most five digits.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => format!("{value}"),
        size if size != 0.0 && !(1e-3..1e5).contains(&size) => format!("{value:.3e}"),
        _ if value.fract() == 0.0 => format!("{value}"),
        _ => format!("{value:.4}"),
    }
}

/// A count with its thousands apart.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 1.0, 0.12345678, 1e-5, 123456.7, f64::NAN].map(number);
        assert_eq!(all, ["0", "1", "0.1235", "1.000e-5", "1.235e5", "NaN"]);
        assert_eq!([count(12), count(1234), count(1_234_567)], ["12", "1,234", "1,234,567"]);
    }
}
