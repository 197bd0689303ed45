//! The value, shape, dtype and device of a tensor.

use rhai::plugin::*;

use super::{handle::Handle, show};
use crate::{
    error::Error,
    recipe::error::ScriptResult,
    tensor::{device_name, dtype_name},
};

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
        Ok(all.map_err(Error::from)? != 0)
    }

    /// Shows dtype, shape and device, and a corner of the numbers.
    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn describe(tensor: &mut Tensor) -> String {
        show::describe(tensor)
    }
}
