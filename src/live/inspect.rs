//! The variables of a session, their memory, and values as numbers.

use rhai::{Array, Dynamic};

use super::{
    complete::short,
    session::{Live, Value},
};
use crate::{
    engine, model,
    recipe::{translate::friendly, value::number},
    script::{Shared, api::tensor::Handle},
    tensor::{Kind, guard},
};

/// A variable of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The type of its value, as users write it.
    pub kind: String,
    /// Its value in a few words.
    pub shown: String,
    /// Bytes of the tensors that it holds.
    pub bytes: u64,
}

impl Live {
    /// The variables, by name.
    pub fn variables(&self) -> Vec<Variable> {
        let variable = |(name, is_constant, value): (&str, bool, &Dynamic)| {
            let kind = friendly(&self.engine, value.flatten_clone().type_name());
            let shown = self.in_a_line(value);
            Variable {
                name: name.to_owned(),
                kind: if is_constant { format!("const {kind}") } else { kind },
                shown,
                bytes: bytes(value),
            }
        };
        let mut all: Vec<_> = self.scope.iter_raw().map(variable).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The names and parameters of the functions that inputs have defined.
    pub fn functions(&self) -> Vec<String> {
        let own = self.functions.iter_functions();
        let own = own.filter(|f| rhai::is_valid_identifier(f.name));
        let mut all: Vec<_> = own.map(|f| format!("{}({})", f.name, f.params.join(", "))).collect();
        all.sort();
        all
    }

    /// The parameters: name, value and help.
    pub fn parameters(&self) -> Vec<(String, String, String)> {
        let all = self.parameters.iter();
        all.map(|p| (p.name.clone(), format!("{:?}", p.value), p.help.clone())).collect()
    }

    /// The type of a value, as users write it.
    pub fn type_of(&self, value: &Value) -> String {
        friendly(&self.engine, value.0.flatten_clone().type_name())
    }

    /// The numbers of an array or of a tensor of one dimension.
    pub fn numbers(&self, value: &Value) -> Option<Vec<f64>> {
        let value = value.0.flatten_clone();
        if let Some(tensor) = value.clone().try_cast::<Handle>() {
            let read = || {
                let flat = tensor.tensor().f_reshape([-1i64])?.f_to_kind(Kind::Double)?;
                Ok(Vec::<f64>::try_from(&flat.f_to_device(crate::tensor::Device::Cpu)?)?)
            };
            return guard("plot", read).ok();
        }
        value.read_lock::<Array>()?.iter().map(number).collect()
    }

    fn in_a_line(&self, value: &Dynamic) -> String {
        let value = value.flatten_clone();
        match crate::recipe::value::is_handle(&value) {
            true => self.described(&value).lines().next().unwrap_or_default().to_owned(),
            false if value.is_array() => self.card(&Value(value)).text.replace('\n', " "),
            false if value.is_map() => self.card(&Value(value)).text.replace('\n', " "),
            false => short(&value),
        }
    }
}

/// Bytes of the tensors of a value. A tensor that two variables share counts for both.
fn bytes(value: &Dynamic) -> u64 {
    let value = value.flatten_clone();
    if let Some(tensor) = value.clone().try_cast::<Handle>() {
        let tensor = tensor.tensor();
        return (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    }
    if let Some(model) = value.clone().try_cast::<crate::script::api::model::Handle>() {
        return model.get().units().iter().map(model::FlatUnit::bytes).sum();
    }
    let engine = value.try_cast::<Shared<engine::Engine>>();
    engine.and_then(|engine| Some(engine.read().ok()?.memory().peak())).unwrap_or(0)
}
