//! The arguments of tensor functions: numbers, shapes, dtypes, devices, options.

use rhai::{Dynamic, Map, NativeCallContext};

use super::{check, handle::Handle};
use crate::{
    config::options::OptionValue,
    error::{Code, Error, Result},
    recipe::{
        options,
        value::{self, argument, describe, option_value},
    },
    script::host,
    tensor::{DTYPES, Device, DeviceChoice, Kind, Scalar, Tensor, cuda_is_available, guard},
};

/// The other side of an operation on a tensor.
pub(crate) enum Operand {
    Tensor(Handle),
    Number(Number),
}

/// A number of a recipe.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    Int(i64),
    Float(f64),
}

impl From<Number> for Scalar {
    fn from(number: Number) -> Self {
        match number {
            Number::Int(int) => Self::int(int),
            Number::Float(float) => Self::float(float),
        }
    }
}

impl Operand {
    /// A tensor or a number; `None` for anything else.
    pub(crate) fn read(value: &Dynamic) -> Option<Self> {
        if let Some(handle) = value.clone().try_cast::<Handle>() {
            return Some(Self::Tensor(handle));
        }
        scalar(value).map(Self::Number)
    }

    /// The operand as a tensor: a number is one without dimensions, of the dtype of `like` where
    /// that can hold it.
    pub(crate) fn into_tensor(self, like: &Tensor) -> Result<Tensor> {
        match self {
            Self::Tensor(handle) => Ok(handle.tensor().shallow_clone()),
            Self::Number(number) => {
                let kind = like.kind();
                guard("a number", || Ok(Tensor::f_full([0i64; 0], number, (kind, like.device()))?))
            }
        }
    }
}

/// A number, or 1 for true and 0 for false.
fn scalar(value: &Dynamic) -> Option<Number> {
    let int = value.as_int().or_else(|_| value.as_bool().map(i64::from)).map(Number::Int);
    int.or_else(|_| value.as_float().map(Number::Float)).ok()
}

/// The argument `name`, which must be a number.
pub(crate) fn number(name: &str, value: &Dynamic) -> Result<Number> {
    scalar(value).ok_or_else(|| {
        let found = describe(value);
        Error::new(Code::WrongType, format!("`{name}` must be a number, found {found}"))
    })
}

/// The argument `name`, which must be a tensor.
pub(crate) fn tensor(name: &str, value: &Dynamic) -> Result<Handle> {
    value.clone().try_cast::<Handle>().ok_or_else(|| {
        let found = describe(value);
        Error::new(Code::WrongType, format!("`{name}` must be a tensor, found {found}"))
    })
}

/// An array of tensors.
pub(crate) fn tensors(name: &str, value: &Dynamic) -> Result<Vec<Handle>> {
    let items = value.as_array_ref().map_err(|_| {
        let found = describe(value);
        Error::new(Code::WrongType, format!("`{name}` must be an array of tensors, found {found}"))
    })?;
    items.iter().enumerate().map(|(i, item)| tensor(&format!("{name}[{i}]"), item)).collect()
}

/// A shape or a list of dimensions: an int, or an array of them.
pub(crate) fn ints(name: &str, value: &Dynamic) -> Result<Vec<i64>> {
    match i64::read(&option_value(value)) {
        Ok(one) => Ok(vec![one]),
        Err(_) if value.is_array() => argument(name, value),
        Err(_) => {
            let found = describe(value);
            let message = format!("`{name}` must be an int or an array of ints, found {found}");
            Err(Error::new(Code::WrongType, message))
        }
    }
}

/// The options of a new tensor.
pub(super) struct Making {
    pub(super) kind: Option<Kind>,
    pub(super) device: Device,
    pub(super) requires_grad: bool,
}

impl Making {
    /// Reads `dtype`, `device` and `requires_grad`.
    pub(super) fn read(ctx: &NativeCallContext, owner: &str, map: &Map) -> Result<Self> {
        options::read(owner, map, |o| {
            let kind = o.choice("dtype", DTYPES).optional();
            let text = o.get::<String>("device").optional();
            let device = text.map(|text| device(ctx, &text).map_err(|e| e.option("device")));
            let device = device.and_then(|device| o.check(device)).unwrap_or(Device::Cpu);
            Self { kind, device, requires_grad: o.get("requires_grad").or(false) }
        })
    }

    /// Gives a new tensor its `requires_grad`.
    pub(super) fn finish(&self, owner: &str, tensor: Tensor) -> Result<Handle> {
        if self.requires_grad {
            check::floating(&format!("requires_grad of {owner}"), &tensor)?;
            return guard(owner, || Ok(Handle::new(tensor.f_set_requires_grad(true)?)));
        }
        Ok(Handle::new(tensor))
    }
}

/// The device called `text`; `"cuda"` is that of this process, which has none where it is to
/// compute on the CPU.
pub(super) fn device(ctx: &NativeCallContext, text: &str) -> Result<Device> {
    let index = match text {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => None,
        _ => match text.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()) {
            Some(index) => Some(index),
            None => {
                let message =
                    format!("`device` must be \"cpu\", \"cuda\" or \"cuda:0\", found \"{text}\"");
                return Err(Error::new(Code::BadValue, message));
            }
        },
    };
    let host = host::of(ctx)?;
    if host.ranks.device == DeviceChoice::Cpu && cuda_is_available() {
        bail!(Code::BadValue, "there is no device \"{text}\": this process has --device cpu");
    }
    let count = if cuda_is_available() { crate::tensor::cuda_device_count() } else { 0 };
    if count <= index.unwrap_or(0) {
        bail!(Code::BadValue, "there is no device \"{text}\": {count} CUDA devices are visible");
    }
    match index {
        Some(index) => Ok(Device::Cuda(index)),
        None => Ok(host.group()?.device()),
    }
}

/// Values of nested arrays with their shape.
#[derive(Default)]
pub(super) struct Nested {
    pub(super) shape: Vec<i64>,
    pub(super) floats: Vec<f64>,
    pub(super) ints: Vec<i64>,
    pub(super) has_float: bool,
    pub(super) has_int: bool,
}

/// The most levels of nested arrays.
const DEEPEST: usize = 16;

impl Nested {
    /// Reads numbers, true and false in arrays of arrays.
    pub(super) fn read(data: &Dynamic) -> Result<Self> {
        let mut nested = Self::default();
        let mut first = data.clone();
        while let Ok(items) = first.clone().into_array() {
            nested.shape.push(items.len() as i64);
            if nested.shape.len() > DEEPEST {
                bail!(Code::Shape, "`tensor` takes arrays of at most {DEEPEST} dimensions");
            }
            let Some(next) = items.into_iter().next() else { break };
            first = next;
        }
        let shape = nested.shape.clone();
        nested.add(data, &shape, "data")?;
        Ok(nested)
    }

    fn add(&mut self, data: &Dynamic, shape: &[i64], path: &str) -> Result<()> {
        let Some((&len, inner)) = shape.split_first() else { return self.add_value(data, path) };
        let items = data.as_array_ref().map_err(|_| {
            let found = describe(data);
            let message = format!("`{path}` must be an array of {len} values, found {found}");
            Error::new(Code::Shape, message).hint("all rows of a tensor are of one length")
        })?;
        if items.len() as i64 != len {
            let message = format!("`{path}` must have {len} values, found {}", items.len());
            return Err(
                Error::new(Code::Shape, message).hint("all rows of a tensor are of one length")
            );
        }
        for (i, item) in items.iter().enumerate() {
            if inner.is_empty() && !item.is_array() {
                self.add_value(item, path)?;
            } else {
                self.add(item, inner, &format!("{path}[{i}]"))?;
            }
        }
        Ok(())
    }

    fn add_value(&mut self, value: &Dynamic, path: &str) -> Result<()> {
        let (float, int) = match (value.as_int(), value.as_bool()) {
            (Ok(int), _) => {
                self.has_int = true;
                (int as f64, int)
            }
            (_, Ok(flag)) => (f64::from(flag), i64::from(flag)),
            _ => {
                let float = value::number(value).ok_or_else(|| {
                    let found = describe(value);
                    let code = if value.is_array() { Code::Shape } else { Code::WrongType };
                    Error::new(code, format!("`{path}` must hold numbers, found {found}"))
                })?;
                self.has_float = true;
                (float, float as i64)
            }
        };
        self.floats.push(float);
        self.ints.push(int);
        Ok(())
    }
}
