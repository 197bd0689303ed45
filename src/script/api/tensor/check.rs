//! Checks of tensors before libtorch sees them, so that an error has the recipe's words: the operation,
//! its arguments and its needs.

use std::fmt::Write;

use super::handle::Handle;
use crate::{
    error::{Code, Error, Result},
    recipe::error::ScriptResult,
    tensor::{
        Device, Kind, TchError, Tensor, bytes_of, check_memory, device_name, dtype_name, guard,
        is_floating,
    },
};

/// Results up to this size are made without a look at the free memory, which takes longer.
const SMALL_BYTES: u64 = 64 << 20;

/// A tensor as messages show it: `float32 [2, 3]`.
pub(crate) fn shown(tensor: &Tensor) -> String {
    format!("{} {:?}", dtype_name(tensor.kind()), tensor.size())
}

/// Runs the operation `name` on `inputs`; an error of libtorch is told with their shapes.
pub(crate) fn run<T>(
    name: &str,
    inputs: &[&Tensor],
    work: impl FnOnce() -> Result<T, TchError>,
) -> Result<T> {
    one_device(name, inputs)?;
    if let Some(largest) = inputs.iter().max_by_key(|t| t.numel()) {
        room(name, &largest.size(), largest.kind(), largest.device())?;
    }
    guard(name, || Ok(work()?)).map_err(|e| match e.code() {
        Code::Torch => {
            let mut message = format!("`{name}` cannot take ");
            for (i, input) in inputs.iter().enumerate() {
                let separator = if i == 0 { "" } else { " and " };
                let _ = write!(message, "{separator}{}", shown(input));
            }
            Error::new(Code::Shape, message).caused_by(e)
        }
        _ => e,
    })
}

/// As [`run`], for operations that make one tensor.
pub(crate) fn op(
    name: &str,
    inputs: &[&Tensor],
    work: impl FnOnce() -> Result<Tensor, TchError>,
) -> ScriptResult<Handle> {
    Ok(Handle::new(run(name, inputs, work)?))
}

/// Refuses tensors on several devices; a single number may be on the CPU.
fn one_device(name: &str, inputs: &[&Tensor]) -> Result<()> {
    let mut inputs = inputs.iter().filter(|t| t.dim() > 0);
    let Some(first) = inputs.next().map(|t| t.device()) else { return Ok(()) };
    match inputs.find(|t| t.device() != first) {
        None => Ok(()),
        Some(other) => {
            let (a, b) = (device_name(first), device_name(other.device()));
            let message = format!("`{name}` needs its tensors on one device, found {a} and {b}");
            Err(Error::new(Code::Shape, message).hint(format!("move one: t.to(\"{a}\")")))
        }
    }
}

/// The number of elements of a shape.
pub(crate) fn numel(name: &str, shape: &[i64]) -> Result<i64> {
    if let Some(negative) = shape.iter().find(|size| **size < 0) {
        bail!(Code::Shape, "`{name}` cannot have a dimension of {negative}, in shape {shape:?}");
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    let product = shape.iter().try_fold(1i64, |n, size| n.checked_mul(*size));
    // No element is larger than 16 bytes.
    product.filter(|n| *n < i64::MAX / 16).ok_or_else(|| {
        Error::new(Code::Memory, format!("`{name}` of shape {shape:?} is larger than any memory"))
    })
}

/// Refuses a result of this shape that does not fit into memory.
pub(crate) fn room(name: &str, shape: &[i64], kind: Kind, device: Device) -> Result<()> {
    let bytes = bytes_of(kind, numel(name, shape)?);
    if bytes <= SMALL_BYTES {
        return Ok(());
    }
    let what = format!("`{name}` of shape {shape:?}");
    check_memory(device, bytes, &what).map_err(|e| Error::new(Code::Memory, e.message()))
}

/// The shape that two tensors have together, by PyTorch's rule.
pub(crate) fn broadcast(name: &str, a: &Tensor, b: &Tensor) -> Result<Vec<i64>> {
    let shape = broadcast_shapes(name, &a.size(), &b.size())?;
    let kind = if a.kind().elt_size_in_bytes() < b.kind().elt_size_in_bytes() { b } else { a };
    room(name, &shape, kind.kind(), a.device())?;
    Ok(shape)
}

/// The shape that two shapes have together, by PyTorch's rule.
pub(crate) fn broadcast_shapes(name: &str, a: &[i64], b: &[i64]) -> Result<Vec<i64>> {
    let ndim = a.len().max(b.len());
    let size =
        |shape: &[i64], i: usize| (i + shape.len()).checked_sub(ndim).map_or(1, |at| shape[at]);
    (0..ndim)
        .map(|i| match (size(a, i), size(b, i)) {
            (x, y) if x == y || y == 1 => Ok(x),
            (1, y) => Ok(y),
            (x, y) => {
                let message = format!(
                    "`{name}` cannot combine shapes {a:?} and {b:?}: {x} and {y} in dimension {}",
                    i as i64 - ndim as i64
                );
                Err(Error::new(Code::Shape, message)
                    .hint("sizes must be equal, or one of them 1, counted from the last dimension"))
            }
        })
        .collect()
}

/// The dimension `dim`, counted from the front.
pub(crate) fn dim(name: &str, tensor: &Tensor, dim: i64) -> Result<i64> {
    dim_of(name, &tensor.size(), tensor.dim() as i64, dim)
}

/// The dimension `dim` of `ndim`, counted from the front, of a tensor of this shape.
pub(crate) fn dim_of(name: &str, shape: &[i64], ndim: i64, dim: i64) -> Result<i64> {
    let ndim = ndim.max(1);
    if (-ndim..ndim).contains(&dim) {
        return Ok(if dim < 0 { dim + ndim } else { dim });
    }
    let last = ndim - 1;
    bail!(
        Code::Shape,
        "`{name}` has no dimension {dim}: shape {shape:?} has dimensions {} to {last}",
        -ndim
    )
}

/// The index `index` of `size`, counted from the front.
pub(crate) fn index(name: &str, size: i64, dim: i64, index: i64) -> Result<i64> {
    if (-size..size).contains(&index) {
        return Ok(if index < 0 { index + size } else { index });
    }
    bail!(Code::BadValue, "`{name}`: index {index} is outside of dimension {dim} of size {size}")
}

/// Refuses whole numbers where an operation needs floating-point ones.
pub(crate) fn floating(name: &str, tensor: &Tensor) -> Result<()> {
    if is_floating(tensor.kind()) {
        return Ok(());
    }
    let found = dtype_name(tensor.kind());
    Err(Error::new(Code::WrongType, format!("`{name}` needs floating-point values, found {found}"))
        .hint("convert them: t.to(\"float32\")"))
}

/// Refuses tensors of two dtypes, where PyTorch does not convert.
pub(crate) fn one_dtype(name: &str, inputs: &[&Tensor]) -> Result<()> {
    let mut kinds = inputs.iter().map(|t| t.kind());
    let Some(first) = kinds.next() else { return Ok(()) };
    match kinds.find(|kind| *kind != first) {
        None => Ok(()),
        Some(other) => {
            let (a, b) = (dtype_name(first), dtype_name(other));
            let message = format!("`{name}` needs tensors of one dtype, found {a} and {b}");
            Err(Error::new(Code::WrongType, message).hint(format!("convert one: t.to(\"{a}\")")))
        }
    }
}

/// Refuses to change, outside of `no_grad`, a tensor whose gradient is asked for.
pub(crate) fn may_change(name: &str, tensor: &Tensor) -> Result<()> {
    if !tensor.requires_grad() || !guard(name, || Ok(tensor.f_is_leaf()?))? {
        return Ok(());
    }
    let grad_is_on = guard(name, || {
        let probe = Tensor::f_zeros([1i64], (Kind::Float, Device::Cpu))?;
        Ok(probe.f_set_requires_grad(true)?.f_add_scalar(1)?.requires_grad())
    })?;
    if grad_is_on {
        let message = format!("`{name}` would change a tensor whose gradient is asked for");
        return Err(Error::new(Code::CallOrder, message)
            .hint("change it in no_grad(|| ...), or make a new one: t = t + x"));
    }
    Ok(())
}

/// Refuses indices that are not int64, or not from 0 to below `limit`.
pub(crate) fn indices(name: &str, what: &str, index: &Tensor, limit: i64) -> Result<()> {
    indices_between(name, what, index, (0, limit - 1))
}

/// Refuses indices that are not int64, or not within the bounds, both included.
pub(super) fn indices_between(
    name: &str,
    what: &str,
    index: &Tensor,
    (first, last): (i64, i64),
) -> Result<()> {
    if index.kind() != Kind::Int64 {
        let found = dtype_name(index.kind());
        return Err(Error::new(
            Code::WrongType,
            format!("`{name}` needs int64 {what}, found {found}"),
        )
        .hint("convert them: t.to(\"int64\")"));
    }
    if index.numel() == 0 {
        return Ok(());
    }
    let (low, high) = guard(name, || {
        let flat = index.f_reshape([-1i64])?;
        Ok((flat.f_min()?.f_int64_value(&[])?, flat.f_max()?.f_int64_value(&[])?))
    })?;
    if low < first || high > last {
        let found = if low < first { low } else { high };
        bail!(Code::BadValue, "`{name}`: {what} must be from {first} to {last}, found {found}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_combined_from_the_last_dimension() {
        assert_eq!(broadcast_shapes("+", &[2, 1, 3], &[4, 1]).unwrap(), [2, 4, 3]);
        assert_eq!(broadcast_shapes("+", &[], &[5]).unwrap(), [5]);
        let e = broadcast_shapes("+", &[2, 3], &[2]).unwrap_err();
        assert_eq!(
            e.message(),
            "`+` cannot combine shapes [2, 3] and [2]: 3 and 2 in dimension -1"
        );
    }

    #[test]
    fn sizes_that_no_memory_has_are_refused() {
        assert_eq!(numel("zeros", &[i64::MAX, 0]).unwrap(), 0);
        assert_eq!(numel("zeros", &[1 << 40, 1 << 40]).unwrap_err().code(), Code::Memory);
        assert_eq!(numel("zeros", &[-1]).unwrap_err().code(), Code::Shape);
    }
}
