//! The handle of a tensor.

use std::rc::Rc;

use rhai::Dynamic;

use crate::{
    error::{Code, Error, Result},
    recipe::options::ScriptType,
    tensor::{Kind, Tensor, is_floating},
};

/// A tensor as a script value; copies share the storage.
#[derive(Clone)]
pub struct Handle(pub(super) Rc<Tensor>);

impl ScriptType for Handle {
    const EXPECTED: &'static str = "a tensor";
}

impl Handle {
    /// Wraps a tensor for a script.
    pub fn new(tensor: Tensor) -> Self {
        Self(Rc::new(tensor))
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// The one value of the tensor, as its dtype has it.
    pub(super) fn item(&self) -> Result<Dynamic> {
        let shape = self.0.size();
        if shape.iter().product::<i64>() != 1 {
            return Err(Error::new(
                Code::Shape,
                format!("`item` needs a tensor with one value, found shape {shape:?}"),
            ));
        }
        let at = vec![0; shape.len()];
        let value = match self.0.kind() {
            Kind::Bool => self.0.f_int64_value(&at).map(|i| Dynamic::from(i != 0)),
            kind if is_floating(kind) => self.0.f_double_value(&at).map(Dynamic::from),
            _ => self.0.f_int64_value(&at).map(Dynamic::from),
        };
        Ok(value?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scalar_is_read_and_anything_larger_is_refused() {
        let scalar = Handle::new(Tensor::from_slice(&[2.5f32]));
        assert_eq!(scalar.item().unwrap().as_float(), Ok(2.5));
        let error = Handle::new(Tensor::from_slice(&[1i64, 2])).item().unwrap_err();
        assert_eq!(error.message(), "`item` needs a tensor with one value, found shape [2]");
    }
}
