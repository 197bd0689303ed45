//! Shapes and parts of tensors, dtypes and devices, and numbers out of tensors.

use rhai::{Array, plugin::*};

use super::{
    Handle, check,
    read::{self, ints, tensors},
};
use crate::{
    error::{Code, Error, Result},
    recipe::{error::ScriptResult, value::argument},
    tensor::{DTYPES, Device, Kind, Tensor, check_memory, dtype, is_floating},
};

/// Bytes that a number takes in a script's array, with some for the array.
const SCRIPT_BYTES: u64 = 24;

/// Another view or copy of the same numbers.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// Returns the number of dimensions.
    #[rhai_fn(get = "ndim", pure)]
    pub fn ndim(tensor: &mut Tensor) -> i64 {
        tensor.tensor().dim() as i64
    }

    /// Returns the number of elements.
    #[rhai_fn(pure)]
    pub fn numel(tensor: &mut Tensor) -> i64 {
        tensor.tensor().numel() as i64
    }

    /// Returns the number of dimensions.
    #[rhai_fn(pure)]
    pub fn dim(tensor: &mut Tensor) -> i64 {
        tensor.tensor().dim() as i64
    }

    /// Returns the size of one dimension.
    #[rhai_fn(return_raw, pure)]
    pub fn size(tensor: &mut Tensor, dim: Dynamic) -> ScriptResult<i64> {
        let dim = check::dim("size", tensor.tensor(), argument("dim", &dim)?)?;
        Ok(tensor.tensor().size().get(dim as usize).copied().unwrap_or(1))
    }

    /// Returns the size of the first dimension.
    #[rhai_fn(return_raw, pure)]
    pub fn len(tensor: &mut Tensor) -> ScriptResult<i64> {
        Ok(super::first_size(tensor)?)
    }

    /// Returns the numbers as nested arrays, or as one number where there are no dimensions.
    ///
    /// ```rhai
    /// print(tensor([[1, 2], [3, 4]]).to_array());      // [[1, 2], [3, 4]]
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn to_array(tensor: &mut Tensor) -> ScriptResult<Dynamic> {
        Ok(super::to_array(tensor.tensor())?)
    }

    /// Returns the tensor as another dtype or on another device.
    ///
    /// ```rhai
    /// let t = tensor([1, 2]).to("float32").to("cpu");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn to(ctx: NativeCallContext, tensor: Tensor, place: &str) -> ScriptResult<Tensor> {
        let t = tensor.tensor();
        if let Some(kind) = dtype(place) {
            check::room("to", &t.size(), kind, t.device())?;
            return check::op("to", &[t], || t.f_to_kind(kind));
        }
        let device = read::device(&ctx, place).map_err(|e| {
            let names: Vec<_> = DTYPES.iter().map(|(name, _)| *name).collect();
            e.hint(format!("or a dtype: {}", names.join(", ")))
        })?;
        check::room("to", &t.size(), t.kind(), device)?;
        check::op("to", &[t], || t.f_to_device(device))
    }

    /// Returns the tensor with another shape of as many elements; one size may be -1.
    ///
    /// ```rhai
    /// let t = arange(6).reshape([2, -1]);              // [2, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn reshape(tensor: Tensor, shape: Dynamic) -> ScriptResult<Tensor> {
        super::reshape("reshape", &tensor, &shape)
    }

    /// Returns the tensor with another shape, as `reshape`.
    #[rhai_fn(return_raw)]
    pub fn view(tensor: Tensor, shape: Dynamic) -> ScriptResult<Tensor> {
        super::reshape("view", &tensor, &shape)
    }

    /// Returns the tensor with all its elements in one dimension.
    #[rhai_fn(return_raw)]
    pub fn flatten(tensor: Tensor) -> ScriptResult<Tensor> {
        check::op("flatten", &[tensor.tensor()], || tensor.tensor().f_flatten(0, -1))
    }

    /// Returns the tensor with the dimensions from `start` to `end` made one.
    #[rhai_fn(name = "flatten", return_raw)]
    pub fn flatten_some(tensor: Tensor, start: Dynamic, end: Dynamic) -> ScriptResult<Tensor> {
        let t = tensor.tensor();
        let start = check::dim("flatten", t, argument("start", &start)?)?;
        let end = check::dim("flatten", t, argument("end", &end)?)?;
        if start > end {
            let message = format!("`flatten`: dimension {start} is behind dimension {end}");
            return Err(Error::new(Code::Shape, message).into());
        }
        check::op("flatten", &[t], || t.f_flatten(start, end))
    }

    /// Exchanges two dimensions.
    ///
    /// ```rhai
    /// let q = randn([2, 8, 4, 16]).transpose(1, 2);    // [2, 4, 8, 16]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn transpose(tensor: Tensor, a: Dynamic, b: Dynamic) -> ScriptResult<Tensor> {
        let t = tensor.tensor();
        let a = check::dim("transpose", t, argument("a", &a)?)?;
        let b = check::dim("transpose", t, argument("b", &b)?)?;
        check::op("transpose", &[t], || t.f_transpose(a, b))
    }

    /// Transposes a matrix.
    #[rhai_fn(return_raw)]
    pub fn t(tensor: Tensor) -> ScriptResult<Tensor> {
        super::transposed(&tensor)
    }

    /// The transposed matrix.
    #[rhai_fn(get = "T", return_raw, pure)]
    pub fn transposed(tensor: &mut Tensor) -> ScriptResult<Tensor> {
        super::transposed(tensor)
    }

    /// Puts the dimensions into another order.
    ///
    /// ```rhai
    /// let t = randn([2, 3, 4]).permute([2, 0, 1]);     // [4, 2, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn permute(tensor: Tensor, dims: Dynamic) -> ScriptResult<Tensor> {
        let (t, dims) = (tensor.tensor(), ints("dims", &dims)?);
        let mut order = Vec::new();
        for &dim in &dims {
            order.push(check::dim("permute", t, dim)?);
        }
        order.sort_unstable();
        if order != (0..t.dim() as i64).collect::<Vec<_>>() {
            let message = format!(
                "`permute` needs each dimension of shape {:?} once, found {dims:?}",
                t.size()
            );
            return Err(Error::new(Code::Shape, message).into());
        }
        check::op("permute", &[t], || t.f_permute(&dims))
    }

    /// Removes all dimensions of size 1.
    #[rhai_fn(return_raw)]
    pub fn squeeze(tensor: Tensor) -> ScriptResult<Tensor> {
        check::op("squeeze", &[tensor.tensor()], || tensor.tensor().f_squeeze())
    }

    /// Removes a dimension if its size is 1.
    #[rhai_fn(name = "squeeze", return_raw)]
    pub fn squeeze_one(tensor: Tensor, dim: Dynamic) -> ScriptResult<Tensor> {
        let dim = check::dim("squeeze", tensor.tensor(), argument("dim", &dim)?)?;
        check::op("squeeze", &[tensor.tensor()], || tensor.tensor().f_squeeze_dim(dim))
    }

    /// Adds a dimension of size 1 before the dimension `dim`.
    #[rhai_fn(return_raw)]
    pub fn unsqueeze(tensor: Tensor, dim: Dynamic) -> ScriptResult<Tensor> {
        let t = tensor.tensor();
        let ndim = t.dim() as i64 + 1;
        let dim = check::dim_of("unsqueeze", &t.size(), ndim, argument("dim", &dim)?)?;
        check::op("unsqueeze", &[t], || t.f_unsqueeze(dim))
    }

    /// Repeats dimensions of size 1 without copying; a size of -1 stays as it is.
    #[rhai_fn(return_raw)]
    pub fn expand(tensor: Tensor, shape: Dynamic) -> ScriptResult<Tensor> {
        super::expand(tensor.tensor(), &ints("shape", &shape)?)
    }

    /// Repeats the tensor so often in each dimension.
    #[rhai_fn(return_raw)]
    pub fn repeat(tensor: Tensor, times: Dynamic) -> ScriptResult<Tensor> {
        super::repeat(tensor.tensor(), &ints("times", &times)?)
    }

    /// Returns the tensor with its elements in a row in memory.
    #[rhai_fn(return_raw)]
    pub fn contiguous(tensor: Tensor) -> ScriptResult<Tensor> {
        check::op("contiguous", &[tensor.tensor()], || tensor.tensor().f_contiguous())
    }

    /// Copies the tensor; the gradient flows through.
    #[rhai_fn(name = "clone", return_raw)]
    pub fn copy(tensor: Tensor) -> ScriptResult<Tensor> {
        check::op("clone", &[tensor.tensor()], || tensor.tensor().f_alias_copy())
    }

    /// Joins tensors along the first dimension.
    ///
    /// ```rhai
    /// let t = cat([zeros([1, 3]), ones([2, 3])]);      // [3, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn cat(parts: Dynamic) -> ScriptResult<Tensor> {
        super::cat(&parts, 0)
    }

    /// Joins tensors along a dimension.
    #[rhai_fn(name = "cat", return_raw)]
    pub fn cat_along(parts: Dynamic, dim: Dynamic) -> ScriptResult<Tensor> {
        super::cat(&parts, argument("dim", &dim)?)
    }

    /// Joins tensors of one shape along a new first dimension.
    #[rhai_fn(return_raw)]
    pub fn stack(parts: Dynamic) -> ScriptResult<Tensor> {
        super::stack(&parts, 0)
    }

    /// Joins tensors of one shape along a new dimension.
    #[rhai_fn(name = "stack", return_raw)]
    pub fn stack_along(parts: Dynamic, dim: Dynamic) -> ScriptResult<Tensor> {
        super::stack(&parts, argument("dim", &dim)?)
    }

    /// Cuts the tensor along a dimension into parts of this size, or of these sizes.
    ///
    /// ```rhai
    /// let parts = randn([2, 12]).split(4, -1);         // three of [2, 4]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn split(tensor: Tensor, size: Dynamic, dim: Dynamic) -> ScriptResult<Array> {
        super::split(tensor.tensor(), &size, argument("dim", &dim)?)
    }

    /// Cuts the tensor along a dimension into so many parts.
    ///
    /// ```rhai
    /// let parts = randn([2, 12]).chunk(3, -1);         // three of [2, 4]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn chunk(tensor: Tensor, chunks: Dynamic, dim: Dynamic) -> ScriptResult<Array> {
        let t = tensor.tensor();
        let chunks: i64 = argument("chunks", &chunks)?;
        let dim = super::real_dim("chunk", t, argument("dim", &dim)?)?;
        if chunks < 1 {
            let message = format!("`chunk` needs 1 part or more, found {chunks}");
            return Err(Error::new(Code::BadValue, message).into());
        }
        Ok(super::handles(check::run("chunk", &[t], || t.f_chunk(chunks, dim))?))
    }

    /// Returns the tensor with 0 above the diagonal.
    #[rhai_fn(return_raw)]
    pub fn tril(tensor: Tensor) -> ScriptResult<Tensor> {
        super::triangle("tril", &tensor, 0)
    }

    /// Returns the tensor with 0 above the `k`-th diagonal.
    #[rhai_fn(name = "tril", return_raw)]
    pub fn tril_from(tensor: Tensor, k: Dynamic) -> ScriptResult<Tensor> {
        super::triangle("tril", &tensor, argument("k", &k)?)
    }

    /// Returns the tensor with 0 below the diagonal.
    #[rhai_fn(return_raw)]
    pub fn triu(tensor: Tensor) -> ScriptResult<Tensor> {
        super::triangle("triu", &tensor, 0)
    }

    /// Returns the tensor with 0 below the `k`-th diagonal.
    #[rhai_fn(name = "triu", return_raw)]
    pub fn triu_from(tensor: Tensor, k: Dynamic) -> ScriptResult<Tensor> {
        super::triangle("triu", &tensor, argument("k", &k)?)
    }
}

fn handles(tensors: Vec<Tensor>) -> Array {
    tensors.into_iter().map(|t| Dynamic::from(Handle::new(t))).collect()
}

/// The size of the first dimension, which there must be.
pub(super) fn first_size(tensor: &Handle) -> Result<i64> {
    tensor.0.size().first().copied().ok_or_else(|| {
        Error::new(Code::Shape, "a tensor without dimensions has no length")
            .hint("t.item() is its number")
    })
}

/// A dimension of a tensor that has some.
pub(super) fn real_dim(name: &str, t: &Tensor, dim: i64) -> Result<i64> {
    if t.dim() == 0 {
        bail!(Code::Shape, "`{name}` needs a tensor with dimensions, found shape []");
    }
    check::dim(name, t, dim)
}

fn to_array(t: &Tensor) -> Result<Dynamic> {
    check_memory(Device::Cpu, t.numel() as u64 * SCRIPT_BYTES, "`to_array`")?;
    let is_float = is_floating(t.kind());
    let kind = if is_float { Kind::Double } else { Kind::Int64 };
    let flat = check::run("to_array", &[t], || {
        t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_reshape([-1i64])
    })?;
    let values: Vec<Dynamic> = match (is_float, t.kind()) {
        (true, _) => Vec::<f64>::try_from(&flat)?.into_iter().map(Dynamic::from).collect(),
        (false, Kind::Bool) => {
            Vec::<i64>::try_from(&flat)?.into_iter().map(|i| Dynamic::from(i != 0)).collect()
        }
        (false, _) => Vec::<i64>::try_from(&flat)?.into_iter().map(Dynamic::from).collect(),
    };
    Ok(nest(&t.size(), &mut values.into_iter()))
}

fn nest(shape: &[i64], values: &mut impl Iterator<Item = Dynamic>) -> Dynamic {
    match shape.split_first() {
        None => values.next().unwrap_or(Dynamic::UNIT),
        Some((&size, inner)) => {
            Dynamic::from_array((0..size).map(|_| nest(inner, values)).collect())
        }
    }
}

fn reshape(name: &str, tensor: &Handle, shape: &Dynamic) -> ScriptResult<Handle> {
    let (t, shape) = (&tensor.0, ints("shape", shape)?);
    let numel = t.numel() as i64;
    let free = shape.iter().filter(|size| **size == -1).count();
    let known = shape.iter().filter(|size| **size != -1).copied().collect::<Vec<_>>();
    let known = check::numel(name, &known)?;
    let fits = match free {
        0 => known == numel,
        1 => known > 0 && numel % known == 0,
        _ => false,
    };
    if !fits {
        let message = format!(
            "`{name}` cannot give shape {:?} ({numel} elements) the shape {shape:?}",
            t.size()
        );
        let error = Error::new(Code::Shape, message);
        return Err(if free > 1 { error.hint("only one size may be -1") } else { error }.into());
    }
    check::op(name, &[t], || t.f_reshape(&shape))
}

fn transposed(tensor: &Handle) -> ScriptResult<Handle> {
    let t = &tensor.0;
    if t.dim() > 2 {
        let message = format!("`t` needs a matrix, found shape {:?}", t.size());
        return Err(Error::new(Code::Shape, message).hint("write t.transpose(a, b)").into());
    }
    check::op("t", &[t], || t.f_numpy_t())
}

fn expand(t: &Tensor, shape: &[i64]) -> ScriptResult<Handle> {
    let size = t.size();
    let new = shape.len().checked_sub(size.len());
    let fits = new.is_some_and(|new| {
        shape.iter().enumerate().all(|(i, &to)| match i.checked_sub(new).map(|at| size[at]) {
            Some(from) => to == -1 || from == to || (from == 1 && to >= 0),
            None => to >= 0,
        })
    });
    if !fits {
        let message = format!("`expand` cannot give shape {size:?} the shape {shape:?}");
        return Err(Error::new(Code::Shape, message)
            .hint("only dimensions of size 1 can be repeated, and new ones added in front")
            .into());
    }
    check::op("expand", &[t], || t.f_expand(shape, false))
}

fn repeat(t: &Tensor, times: &[i64]) -> ScriptResult<Handle> {
    let size = t.size();
    let Some(new) = times.len().checked_sub(size.len()).filter(|_| times.iter().all(|n| *n >= 0))
    else {
        let message = format!(
            "`repeat` needs a number for each dimension of shape {size:?}, found {times:?}"
        );
        return Err(Error::new(Code::Shape, message).into());
    };
    let of = |(i, &n): (usize, &i64)| match i.checked_sub(new) {
        Some(at) => size[at].saturating_mul(n),
        None => n,
    };
    let shape: Vec<i64> = times.iter().enumerate().map(of).collect();
    check::room("repeat", &shape, t.kind(), t.device())?;
    check::op("repeat", &[t], || t.f_repeat(times))
}

fn cat(parts: &Dynamic, dim: i64) -> ScriptResult<Handle> {
    let parts = tensors("parts", parts)?;
    let parts: Vec<&Tensor> = parts.iter().map(Handle::tensor).collect();
    let Some(first) = parts.first() else { return Err(no_parts("cat").into()) };
    let dim = real_dim("cat", first, dim)?;
    let mut shape = first.size();
    for part in &parts[1..] {
        let size = part.size();
        let differs = size.len() != shape.len()
            || size.iter().zip(&shape).enumerate().any(|(i, (a, b))| i as i64 != dim && a != b);
        if differs {
            let message = format!(
                "`cat` along dimension {dim} cannot join shapes {:?} and {size:?}",
                first.size()
            );
            return Err(Error::new(Code::Shape, message)
                .hint("all other dimensions must be of one size")
                .into());
        }
        shape[dim as usize] += size[dim as usize];
    }
    check::room("cat", &shape, first.kind(), first.device())?;
    check::op("cat", &parts, || Tensor::f_cat(&parts, dim))
}

fn stack(parts: &Dynamic, dim: i64) -> ScriptResult<Handle> {
    let parts = tensors("parts", parts)?;
    let parts: Vec<&Tensor> = parts.iter().map(Handle::tensor).collect();
    let Some(first) = parts.first() else { return Err(no_parts("stack").into()) };
    let size = first.size();
    let dim = check::dim_of("stack", &size, size.len() as i64 + 1, dim)?;
    if let Some(other) = parts.iter().find(|part| part.size() != size) {
        let message =
            format!("`stack` needs tensors of one shape, found {size:?} and {:?}", other.size());
        return Err(Error::new(Code::Shape, message).into());
    }
    let mut shape = size;
    shape.insert(dim as usize, parts.len() as i64);
    check::room("stack", &shape, first.kind(), first.device())?;
    check::op("stack", &parts, || Tensor::f_stack(&parts, dim))
}

fn no_parts(name: &str) -> Error {
    Error::new(Code::Shape, format!("`{name}` needs at least one tensor"))
}

fn split(t: &Tensor, size: &Dynamic, dim: i64) -> ScriptResult<Array> {
    let sizes = ints("size", size)?;
    let dim = real_dim("split", t, dim)?;
    let whole = t.size()[dim as usize];
    let fits = match (size.is_array(), sizes.as_slice()) {
        (true, sizes) => {
            sizes.iter().all(|n| *n >= 0)
                && sizes.iter().try_fold(0i64, |sum, n| sum.checked_add(*n)) == Some(whole)
        }
        (false, sizes) => sizes[0] > 0,
    };
    if !fits {
        let message = format!("`split` cannot cut {whole} in dimension {dim} into {sizes:?}");
        return Err(Error::new(Code::Shape, message)
            .hint("sizes are above 0, and a list of them adds up to the whole")
            .into());
    }
    let parts = check::run("split", &[t], || match size.is_array() {
        true => t.f_split_with_sizes(&sizes, dim),
        false => t.f_split(sizes[0], dim),
    });
    Ok(handles(parts?))
}

fn triangle(name: &'static str, tensor: &Handle, k: i64) -> ScriptResult<Handle> {
    let t = &tensor.0;
    if t.dim() < 2 {
        let message = format!("`{name}` needs a matrix, found shape {:?}", t.size());
        return Err(Error::new(Code::Shape, message).into());
    }
    check::op(name, &[t], || if name == "tril" { t.f_tril(k) } else { t.f_triu(k) })
}
