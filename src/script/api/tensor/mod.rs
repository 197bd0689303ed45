//! `Tensor` in scripts: a handle to one of libtorch's, with PyTorch's names and rules.
//!
//! Copies of a handle are the same tensor, and so are views, as in PyTorch. Every mistake that
//! libtorch would refuse is looked for first (`check.rs`).

use std::rc::Rc;

use crate::tensor::{Device, Kind, Tensor};
use rhai::plugin::*;

use crate::{
    error::{Code, Error, Result},
    script::{error::ScriptResult, options::ScriptType},
};

pub mod autograd;
pub(crate) mod check;
pub mod create;
pub mod index;
pub mod math;
pub mod read;
pub mod reduce;
pub mod shape;
pub(crate) mod show;

/// A tensor as a script value; copies share the storage.
#[derive(Clone)]
pub struct Handle(Rc<Tensor>);

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
    fn item(&self) -> Result<Dynamic> {
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
            kind if check::is_floating(kind) => self.0.f_double_value(&at).map(Dynamic::from),
            _ => self.0.f_int64_value(&at).map(Dynamic::from),
        };
        value.map_err(|e| Error::new(Code::Torch, "cannot read the tensor's value").caused_by(e))
    }
}

/// Tensors.
#[export_module]
pub mod api {
    use rhai::Array;

    /// Numbers in some dimensions, as PyTorch's. Made by `tensor`, `zeros` and the like, and by what
    /// computes one, such as `engine.forward(batch)`.
    pub type Tensor = super::Handle;

    /// Returns the value of a tensor that holds one: a float, an int, or true or false, by its dtype.
    /// On a GPU this waits for the computation.
    ///
    /// ```rhai
    /// let loss = engine.forward(batch);
    /// print(loss.item());
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn item(tensor: &mut Tensor) -> ScriptResult<Dynamic> {
        Ok(super::Handle::item(tensor)?)
    }

    /// Returns the sizes of the tensor's dimensions.
    #[rhai_fn(get = "shape", pure)]
    pub fn shape(tensor: &mut Tensor) -> Array {
        tensor.tensor().size().into_iter().map(Dynamic::from).collect()
    }

    /// Returns the type of the tensor's elements under PyTorch's name, such as `"float32"`.
    #[rhai_fn(get = "dtype", pure)]
    pub fn dtype(tensor: &mut Tensor) -> String {
        dtype_name(tensor.tensor().kind())
    }

    /// Returns where the tensor is: `"cpu"` or `"cuda:0"`.
    #[rhai_fn(get = "device", pure)]
    pub fn device(tensor: &mut Tensor) -> String {
        device_name(tensor.tensor().device())
    }

    /// Returns whether every value of the tensor is finite. On a GPU this waits.
    #[rhai_fn(return_raw, pure)]
    pub fn is_finite(tensor: &mut Tensor) -> ScriptResult<bool> {
        let all = tensor.tensor().f_isfinite().and_then(|t| t.f_all()?.f_int64_value(&[]));
        let all = all.map_err(|e| {
            Error::new(Code::Torch, "cannot look at the tensor's values").caused_by(e)
        })?;
        Ok(all != 0)
    }

    /// Shows dtype, shape and device, and a corner of the numbers.
    #[rhai_fn(name = "to_string", pure)]
    pub fn describe(tensor: &mut Tensor) -> String {
        super::show::describe(tensor)
    }

    /// Describes the tensor.
    #[rhai_fn(name = "to_debug", pure)]
    pub fn describe_debug(tensor: &mut Tensor) -> String {
        super::show::describe(tensor)
    }
}

/// Dtype, shape and device.
pub(crate) fn describe_place(tensor: &Tensor) -> String {
    let (dtype, device) = (dtype_name(tensor.kind()), device_name(tensor.device()));
    format!("{dtype} {:?} on {device}", tensor.size())
}

/// PyTorch's name of an element type.
pub(crate) fn dtype_name(kind: Kind) -> String {
    let known = read::DTYPES.iter().find(|(_, known)| *known == kind);
    known.map_or_else(|| format!("{kind:?}").to_lowercase(), |(name, _)| (*name).to_owned())
}

/// PyTorch's name of a device.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
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
