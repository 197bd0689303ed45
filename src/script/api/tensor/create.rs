//! New tensors, under the names of PyTorch's functions.

use rhai::{Map, plugin::*};

use super::{
    Handle, check,
    read::{Making, Nested, Number, ints, number},
};
use crate::{
    error::{Code, Error, Result},
    recipe::{error::ScriptResult, value::argument},
    tensor::{Device, Kind, TchError, Tensor, dtype_name, guard, is_floating, manual_seed},
};

/// Tensors from numbers, patterns and chance.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// Makes a tensor of a number or of nested arrays: int64 of ints, float32 where there is a float,
    /// bool of true and false.
    ///
    /// ```rhai
    /// let ids = tensor([[1, 2], [3, 4]]);              // int64 [2, 2]
    /// let w = tensor([0.5, 1.5]);                      // float32 [2]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn tensor(ctx: NativeCallContext, data: Dynamic) -> ScriptResult<Tensor> {
        tensor_with(ctx, data, Map::new())
    }

    /// Makes a tensor with a `dtype`, a `device` ("cpu"; "cuda", "cuda:0") and `requires_grad`
    /// (false), as all functions that make one take them.
    ///
    /// ```rhai
    /// let w = tensor([1, 2], #{ dtype: "float32", device: "cpu", requires_grad: true });
    /// ```
    #[rhai_fn(name = "tensor", return_raw)]
    pub fn tensor_with(
        ctx: NativeCallContext,
        data: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        Ok(super::from_data(&Making::read(&ctx, "tensor", &options)?, &data)?)
    }

    /// Makes a tensor of zeros.
    ///
    /// * `shape` - an array of sizes, or one size
    ///
    /// ```rhai
    /// let b = zeros([3]);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn zeros(ctx: NativeCallContext, shape: Dynamic) -> ScriptResult<Tensor> {
        zeros_with(ctx, shape, Map::new())
    }

    /// Makes a tensor of zeros, with options as `tensor` has them.
    ///
    /// ```rhai
    /// let b = zeros([3], #{ requires_grad: true });
    /// ```
    #[rhai_fn(name = "zeros", return_raw)]
    pub fn zeros_with(
        ctx: NativeCallContext,
        shape: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        super::filled(&ctx, "zeros", &shape, super::Number::Int(0), &options)
    }

    /// Makes a tensor of ones.
    #[rhai_fn(return_raw)]
    pub fn ones(ctx: NativeCallContext, shape: Dynamic) -> ScriptResult<Tensor> {
        ones_with(ctx, shape, Map::new())
    }

    /// Makes a tensor of ones, with options as `tensor` has them.
    #[rhai_fn(name = "ones", return_raw)]
    pub fn ones_with(ctx: NativeCallContext, shape: Dynamic, options: Map) -> ScriptResult<Tensor> {
        super::filled(&ctx, "ones", &shape, super::Number::Int(1), &options)
    }

    /// Makes a tensor of one value: int64 of an int, float32 of a float.
    ///
    /// ```rhai
    /// let t = full([2, 3], 0.5);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn full(ctx: NativeCallContext, shape: Dynamic, value: Dynamic) -> ScriptResult<Tensor> {
        full_with(ctx, shape, value, Map::new())
    }

    /// Makes a tensor of one value, with options as `tensor` has them.
    #[rhai_fn(name = "full", return_raw)]
    pub fn full_with(
        ctx: NativeCallContext,
        shape: Dynamic,
        value: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        let making = Making::read(&ctx, "full", &options)?;
        let value_kind = if value.is_int() { Kind::Int64 } else { Kind::Float };
        let value = number("value", &value)?;
        super::make("full", &making, &ints("shape", &shape)?, value_kind, |shape, place| {
            crate::tensor::Tensor::f_full(shape, value, place)
        })
    }

    /// Makes the numbers from 0 to below `end`.
    ///
    /// ```rhai
    /// let t = arange(5);                               // int64: 0, 1, 2, 3, 4
    /// ```
    #[rhai_fn(return_raw)]
    pub fn arange(ctx: NativeCallContext, end: Dynamic) -> ScriptResult<Tensor> {
        super::range(&ctx, &[0.into(), end, 1.into()], &Map::new())
    }

    /// Makes the numbers from 0 to below `end`, with options as `tensor` has them.
    #[rhai_fn(name = "arange", return_raw)]
    pub fn arange_with(ctx: NativeCallContext, end: Dynamic, options: Map) -> ScriptResult<Tensor> {
        super::range(&ctx, &[0.into(), end, 1.into()], &options)
    }

    /// Makes the numbers from `start` to below `end`.
    #[rhai_fn(name = "arange", return_raw)]
    pub fn arange_from(
        ctx: NativeCallContext,
        start: Dynamic,
        end: Dynamic,
    ) -> ScriptResult<Tensor> {
        super::range(&ctx, &[start, end, 1.into()], &Map::new())
    }

    /// Makes the numbers from `start` to below `end` in steps.
    ///
    /// ```rhai
    /// let t = arange(0, 1, 0.25);                      // float32: 0, 0.25, 0.5, 0.75
    /// ```
    #[rhai_fn(name = "arange", return_raw)]
    pub fn arange_by(
        ctx: NativeCallContext,
        start: Dynamic,
        end: Dynamic,
        step: Dynamic,
    ) -> ScriptResult<Tensor> {
        super::range(&ctx, &[start, end, step], &Map::new())
    }

    /// Makes the numbers from `start` to below `end` in steps, with options as `tensor` has them.
    #[rhai_fn(name = "arange", return_raw)]
    pub fn arange_by_with(
        ctx: NativeCallContext,
        start: Dynamic,
        end: Dynamic,
        step: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        super::range(&ctx, &[start, end, step], &options)
    }

    /// Makes `steps` numbers from `start` to `end`, both among them, at equal distances.
    ///
    /// ```rhai
    /// let x = linspace(-1, 1, 5);                      // -1, -0.5, 0, 0.5, 1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn linspace(
        ctx: NativeCallContext,
        start: Dynamic,
        end: Dynamic,
        steps: Dynamic,
    ) -> ScriptResult<Tensor> {
        linspace_with(ctx, start, end, steps, Map::new())
    }

    /// Makes `steps` numbers at equal distances, with options as `tensor` has them.
    #[rhai_fn(name = "linspace", return_raw)]
    pub fn linspace_with(
        ctx: NativeCallContext,
        start: Dynamic,
        end: Dynamic,
        steps: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        let making = Making::read(&ctx, "linspace", &options)?;
        let (start, end) = (number("start", &start)?, number("end", &end)?);
        let steps: i64 = argument("steps", &steps)?;
        super::make("linspace", &making, &[steps], Kind::Float, |_, place| {
            crate::tensor::Tensor::f_linspace(start, end, steps, place)
        })
    }

    /// Makes a matrix with ones on its diagonal.
    #[rhai_fn(return_raw)]
    pub fn eye(ctx: NativeCallContext, n: Dynamic) -> ScriptResult<Tensor> {
        eye_with(ctx, n, Map::new())
    }

    /// Makes a matrix with ones on its diagonal, with options as `tensor` has them.
    #[rhai_fn(name = "eye", return_raw)]
    pub fn eye_with(ctx: NativeCallContext, n: Dynamic, options: Map) -> ScriptResult<Tensor> {
        let making = Making::read(&ctx, "eye", &options)?;
        let n: i64 = argument("n", &n)?;
        super::make("eye", &making, &[n, n], Kind::Float, |_, place| {
            crate::tensor::Tensor::f_eye(n, place)
        })
    }

    /// Draws numbers from the normal distribution of mean 0 and variance 1. `manual_seed` sets where
    /// chance begins.
    ///
    /// ```rhai
    /// manual_seed(1);
    /// let w = randn([2, 3]) * 0.02;
    /// ```
    #[rhai_fn(return_raw)]
    pub fn randn(ctx: NativeCallContext, shape: Dynamic) -> ScriptResult<Tensor> {
        randn_with(ctx, shape, Map::new())
    }

    /// Draws numbers from the normal distribution, with options as `tensor` has them.
    #[rhai_fn(name = "randn", return_raw)]
    pub fn randn_with(
        ctx: NativeCallContext,
        shape: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        super::drawn(&ctx, "randn", &shape, &options, |shape, place| {
            crate::tensor::Tensor::f_randn(shape, place)
        })
    }

    /// Draws numbers from 0 to below 1.
    #[rhai_fn(return_raw)]
    pub fn rand(ctx: NativeCallContext, shape: Dynamic) -> ScriptResult<Tensor> {
        rand_with(ctx, shape, Map::new())
    }

    /// Draws numbers from 0 to below 1, with options as `tensor` has them.
    #[rhai_fn(name = "rand", return_raw)]
    pub fn rand_with(ctx: NativeCallContext, shape: Dynamic, options: Map) -> ScriptResult<Tensor> {
        super::drawn(&ctx, "rand", &shape, &options, |shape, place| {
            crate::tensor::Tensor::f_rand(shape, place)
        })
    }

    /// Draws whole numbers from `low` to below `high`, int64.
    ///
    /// ```rhai
    /// let ids = randint(0, 50257, [4, 64]);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn randint(
        ctx: NativeCallContext,
        low: Dynamic,
        high: Dynamic,
        shape: Dynamic,
    ) -> ScriptResult<Tensor> {
        randint_with(ctx, low, high, shape, Map::new())
    }

    /// Draws whole numbers from `low` to below `high`, with options as `tensor` has them.
    #[rhai_fn(name = "randint", return_raw)]
    pub fn randint_with(
        ctx: NativeCallContext,
        low: Dynamic,
        high: Dynamic,
        shape: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        let making = Making::read(&ctx, "randint", &options)?;
        let (low, high): (i64, i64) = (argument("low", &low)?, argument("high", &high)?);
        if low >= high {
            let message = format!("`high` must be above `low`, found {low} and {high}");
            return Err(Error::new(Code::BadValue, message).into());
        }
        super::make("randint", &making, &ints("shape", &shape)?, Kind::Int64, |shape, place| {
            crate::tensor::Tensor::f_randint_low(low, high, shape, place)
        })
    }

    /// Makes a tensor of zeros with the shape, dtype and device of another.
    #[rhai_fn(return_raw)]
    pub fn zeros_like(like: Tensor) -> ScriptResult<Tensor> {
        check::op("zeros_like", &[like.tensor()], || like.tensor().f_zeros_like())
    }

    /// Makes a tensor of ones with the shape, dtype and device of another.
    #[rhai_fn(return_raw)]
    pub fn ones_like(like: Tensor) -> ScriptResult<Tensor> {
        check::op("ones_like", &[like.tensor()], || like.tensor().f_ones_like())
    }

    /// Draws a tensor from the normal distribution with the shape, dtype and device of another.
    #[rhai_fn(return_raw)]
    pub fn randn_like(like: Tensor) -> ScriptResult<Tensor> {
        check::floating("randn_like", like.tensor())?;
        check::op("randn_like", &[like.tensor()], || like.tensor().f_randn_like())
    }

    /// Sets where the chance of `randn`, `rand`, `randint` and `nn::dropout` begins. A training
    /// engine has its own seed and sets it before every layer, whatever a recipe draws in between.
    ///
    /// ```rhai
    /// manual_seed(42);
    /// ```
    #[rhai_fn(name = "manual_seed", return_raw)]
    pub fn seed(n: Dynamic) -> ScriptResult<()> {
        let n: u64 = argument("n", &n)?;
        Ok(guard("manual_seed", || {
            manual_seed(n);
            Ok(())
        })?)
    }
}

/// Makes a tensor of a checked size.
fn make(
    name: &str,
    making: &Making,
    shape: &[i64],
    usual: Kind,
    work: impl FnOnce(&[i64], (Kind, Device)) -> Result<Tensor, TchError>,
) -> ScriptResult<Handle> {
    let kind = making.kind.unwrap_or(usual);
    check::room(name, shape, kind, making.device)?;
    let tensor = check::run(name, &[], || work(shape, (kind, making.device)));
    let tensor = tensor.map_err(|e| match e.code() {
        Code::Shape => Error::new(
            Code::BadValue,
            format!("`{name}` cannot make {} {shape:?} of these", dtype_name(kind)),
        )
        .caused_by(e),
        _ => e,
    })?;
    Ok(making.finish(name, tensor)?)
}

fn filled(
    ctx: &NativeCallContext,
    name: &str,
    shape: &Dynamic,
    value: Number,
    options: &Map,
) -> ScriptResult<Handle> {
    let making = Making::read(ctx, name, options)?;
    make(name, &making, &ints("shape", shape)?, Kind::Float, |shape, place| {
        Tensor::f_full(shape, value, place)
    })
}

/// Draws a tensor of a shape, dtype and device.
type Draw = fn(&[i64], (Kind, Device)) -> Result<Tensor, TchError>;

fn drawn(
    ctx: &NativeCallContext,
    name: &str,
    shape: &Dynamic,
    options: &Map,
    work: Draw,
) -> ScriptResult<Handle> {
    let making = Making::read(ctx, name, options)?;
    if let Some(kind) = making.kind.filter(|kind| !is_floating(*kind)) {
        let found = dtype_name(kind);
        let message = format!("`dtype` of {name} must be a floating-point one, found {found}");
        return Err(Error::new(Code::BadValue, message).option("dtype").into());
    }
    make(name, &making, &ints("shape", shape)?, Kind::Float, work)
}

fn range(
    ctx: &NativeCallContext,
    [start, end, step]: &[Dynamic; 3],
    options: &Map,
) -> ScriptResult<Handle> {
    let making = Making::read(ctx, "arange", options)?;
    let all_ints = start.is_int() && end.is_int() && step.is_int();
    let usual = if all_ints { Kind::Int64 } else { Kind::Float };
    let [a, b, by] = [("start", start), ("end", end), ("step", step)]
        .map(|(name, value)| argument::<f64>(name, value));
    let (a, b, by) = (a?, b?, by?);
    if !(a.is_finite() && b.is_finite() && by.is_finite()) || by == 0.0 || (b - a) * by < 0.0 {
        let message = format!("`arange` cannot go from {a} to {b} in steps of {by}");
        return Err(Error::new(Code::BadValue, message).into());
    }
    let numbers = [number("start", start)?, number("end", end)?, number("step", step)?];
    let [start, end, step] = numbers;
    // As large as an i64 can be, and then refused, where there are more.
    let len = ((b - a) / by).ceil() as i64;
    make("arange", &making, &[len], usual, |_, place| {
        Tensor::f_arange_start_step(start, end, step, place)
    })
}

/// A tensor of nested arrays.
fn from_data(making: &Making, data: &Dynamic) -> Result<Handle> {
    if let Some(handle) = data.clone().try_cast::<Handle>() {
        let kind = making.kind.unwrap_or(handle.tensor().kind());
        let copy = check::run("tensor", &[handle.tensor()], || {
            handle.tensor().f_detach()?.f_to_device_(making.device, kind, false, true)
        })?;
        return making.finish("tensor", copy);
    }
    let Nested { shape, floats, ints, has_float, has_int } = Nested::read(data)?;
    let is_empty = floats.is_empty();
    let usual = match (has_float || is_empty, has_int) {
        (true, _) => Kind::Float,
        (false, true) => Kind::Int64,
        (false, false) => Kind::Bool,
    };
    let kind = making.kind.unwrap_or(usual);
    check::room("tensor", &shape, kind, making.device)?;
    let tensor = check::run("tensor", &[], || {
        let flat = match has_float {
            true => Tensor::f_from_slice(&floats)?,
            false => Tensor::f_from_slice(&ints)?,
        };
        flat.f_reshape(&shape)?.f_to_device_(making.device, kind, false, false)
    })?;
    making.finish("tensor", tensor)
}
