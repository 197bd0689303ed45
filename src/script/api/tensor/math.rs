//! Arithmetic on tensors: operators, functions of each element, products.
//!
//! Similar functions are in tables: the names, the words, and libtorch's function.

use rhai::{FuncRegistration, Module, plugin::*};

use super::{
    Handle, check,
    read::{Number, Operand, number, tensor},
};
use crate::{
    error::{Code, Error, Result},
    recipe::{error::ScriptResult, value::describe},
    tensor::{Kind, TchError, Tensor, dtype_name, is_floating},
};

type Made = Result<Tensor, TchError>;

/// Functions of one tensor, element by element.
type Unary = (&'static str, &'static str, fn(&Tensor) -> Made);

const UNARY: &[Unary] = &[
    ("-", "Negates each element.", Tensor::f_neg),
    ("neg", "Negates each element.", Tensor::f_neg),
    ("abs", "Returns the absolute values.", Tensor::f_abs),
    ("exp", "Returns e to the power of each element.", Tensor::f_exp),
    ("log", "Returns the natural logarithms.", Tensor::f_log),
    ("log1p", "Returns the natural logarithms of 1 plus each element.", Tensor::f_log1p),
    ("sqrt", "Returns the square roots.", Tensor::f_sqrt),
    ("rsqrt", "Returns 1 divided by the square roots.", Tensor::f_rsqrt),
    ("square", "Returns the squares.", Tensor::f_square),
    ("reciprocal", "Returns 1 divided by each element.", Tensor::f_reciprocal),
    ("sin", "Returns the sines.", Tensor::f_sin),
    ("cos", "Returns the cosines.", Tensor::f_cos),
    ("tanh", "Returns the hyperbolic tangents.", Tensor::f_tanh),
    ("sigmoid", "Returns 1 / (1 + exp(-x)) of each element x.", Tensor::f_sigmoid),
    ("relu", "Returns each element, or 0 where it is negative.", Tensor::f_relu),
    ("erf", "Returns the error function of each element.", Tensor::f_erf),
    ("sign", "Returns the signs: -1, 0 or 1.", Tensor::f_sign),
    ("floor", "Rounds each element down.", Tensor::f_floor),
    ("ceil", "Rounds each element up.", Tensor::f_ceil),
    ("round", "Rounds each element to the nearest whole number, halves to even.", Tensor::f_round),
    ("isnan", "Returns where the elements are not a number.", Tensor::f_isnan),
    ("isfinite", "Returns where the elements are finite.", Tensor::f_isfinite),
    ("!", "Returns where the elements are 0 or false.", Tensor::f_logical_not),
    ("logical_not", "Returns where the elements are 0 or false.", Tensor::f_logical_not),
];

/// Operations on a tensor and a tensor or number: names, words, and how to compute each.
struct Binary {
    names: &'static [&'static str],
    words: &'static str,
    tensors: fn(&Tensor, &Tensor) -> Made,
    number: fn(&Tensor, Number) -> Made,
    /// With the number on the left, for operators.
    reversed: Option<fn(Number, &Tensor) -> Made>,
}

const BINARY: &[Binary] = &[
    Binary {
        names: &["+", "add"],
        words: "Adds a tensor or number, with PyTorch's broadcasting.",
        tensors: Tensor::f_add,
        number: Tensor::f_add_scalar,
        reversed: Some(|n, t| t.f_add_scalar(n)),
    },
    Binary {
        names: &["-", "sub"],
        words: "Subtracts a tensor or number.",
        tensors: Tensor::f_sub,
        number: Tensor::f_sub_scalar,
        reversed: Some(|n, t| t.f_rsub_scalar(n)),
    },
    Binary {
        names: &["*", "mul"],
        words: "Multiplies element by element; `matmul` is the product of matrices.",
        tensors: Tensor::f_mul,
        number: Tensor::f_mul_scalar,
        reversed: Some(|n, t| t.f_mul_scalar(n)),
    },
    Binary {
        names: &["/", "div"],
        words: "Divides by a tensor or number; of whole numbers too the result has fractions.",
        tensors: Tensor::f_div,
        number: Tensor::f_div_scalar,
        reversed: Some(|n, t| t.f_reciprocal()?.f_mul_scalar(n)),
    },
    Binary {
        names: &["%", "remainder"],
        words: "Returns the remainder of a division, with the sign of the divisor as in Python.",
        tensors: Tensor::f_remainder_tensor,
        number: Tensor::f_remainder,
        reversed: Some(Tensor::f_remainder_scalar_tensor),
    },
    Binary {
        names: &["**", "pow"],
        words: "Raises to a power.",
        tensors: Tensor::f_pow,
        number: Tensor::f_pow_tensor_scalar,
        reversed: Some(Tensor::f_pow_scalar),
    },
    Binary {
        names: &["<", "lt"],
        words: "Returns a bool tensor: where the elements are less.",
        tensors: Tensor::f_lt_tensor,
        number: Tensor::f_lt,
        reversed: Some(|n, t| t.f_gt(n)),
    },
    Binary {
        names: &["<=", "le"],
        words: "Returns a bool tensor: where the elements are less or equal.",
        tensors: Tensor::f_le_tensor,
        number: Tensor::f_le,
        reversed: Some(|n, t| t.f_ge(n)),
    },
    Binary {
        names: &[">", "gt"],
        words: "Returns a bool tensor: where the elements are greater.",
        tensors: Tensor::f_gt_tensor,
        number: Tensor::f_gt,
        reversed: Some(|n, t| t.f_lt(n)),
    },
    Binary {
        names: &[">=", "ge"],
        words: "Returns a bool tensor: where the elements are greater or equal.",
        tensors: Tensor::f_ge_tensor,
        number: Tensor::f_ge,
        reversed: Some(|n, t| t.f_le(n)),
    },
    Binary {
        names: &["==", "eq"],
        words: "Returns a bool tensor: where the elements are equal. `t == ()` is just false.",
        tensors: Tensor::f_eq_tensor,
        number: Tensor::f_eq,
        reversed: Some(|n, t| t.f_eq(n)),
    },
    Binary {
        names: &["!=", "ne"],
        words: "Returns a bool tensor: where the elements differ. `t != ()` is just true.",
        tensors: Tensor::f_ne_tensor,
        number: Tensor::f_ne,
        reversed: Some(|n, t| t.f_ne(n)),
    },
    Binary {
        names: &["maximum"],
        words: "Returns the greater of each two elements.",
        tensors: Tensor::f_maximum,
        number: |t, n| t.f_clamp_min(n),
        reversed: None,
    },
    Binary {
        names: &["minimum"],
        words: "Returns the lesser of each two elements.",
        tensors: Tensor::f_minimum,
        number: |t, n| t.f_clamp_max(n),
        reversed: None,
    },
    Binary {
        names: &["&", "logical_and"],
        words: "Returns where both are true.",
        tensors: Tensor::f_logical_and,
        number: |t, n| t.f_logical_and(&t.f_full_like(n)?),
        reversed: None,
    },
    Binary {
        names: &["|", "logical_or"],
        words: "Returns where one is true.",
        tensors: Tensor::f_logical_or,
        number: |t, n| t.f_logical_or(&t.f_full_like(n)?),
        reversed: None,
    },
];

/// Operations that change the tensor itself: names, words, and how to compute each.
type InPlace = (&'static [&'static str], &'static str, Change, ChangeBy);
type Change = fn(&mut Tensor, &Tensor) -> Made;
type ChangeBy = fn(&mut Tensor, Number) -> Made;

const IN_PLACE: &[InPlace] = &[
    (&["+=", "add_"], "Adds to the tensor itself.", Tensor::f_add_, Tensor::f_add_scalar_),
    (&["-=", "sub_"], "Subtracts from the tensor itself.", Tensor::f_sub_, Tensor::f_sub_scalar_),
    (&["*=", "mul_"], "Multiplies the tensor itself.", Tensor::f_mul_, Tensor::f_mul_scalar_),
    (&["/=", "div_"], "Divides the tensor itself.", Tensor::f_div_, Tensor::f_div_scalar_),
];

/// The functions of arithmetic.
pub(in crate::script::api) fn build() -> Module {
    let mut module = rhai::exported_module!(api);
    for &(name, words, work) in UNARY {
        FuncRegistration::new(name)
            .with_comments([format!("/// {words}")])
            .with_params_info(["tensor: Tensor", "Tensor"])
            .set_into_module(&mut module, move |t: Handle| check::op(name, &[&t.0], || work(&t.0)));
    }
    for binary in BINARY {
        for &name in binary.names {
            FuncRegistration::new(name)
                .with_comments([format!("/// {}", binary.words)])
                .with_params_info(["a: Tensor", "b: Dynamic", "Tensor"])
                .set_into_module(&mut module, move |a: Handle, b: Dynamic| {
                    Ok::<_, Box<EvalAltResult>>(combine(binary, name, &a, &b)?)
                });
        }
        if let Some(work) = binary.reversed {
            let name = binary.names[0];
            FuncRegistration::new(name)
                .with_comments([format!("/// {}", binary.words)])
                .with_params_info(["a: Dynamic", "b: Tensor", "Tensor"])
                .set_into_module(&mut module, move |a: Dynamic, b: Handle| {
                    Ok::<_, Box<EvalAltResult>>(reverse(name, work, &a, &b)?)
                });
        }
    }
    for &(names, words, tensors, by) in IN_PLACE {
        for &name in names {
            FuncRegistration::new(name)
                .with_comments([format!("/// {words} Every handle of it sees that.")])
                .with_params_info(["a: Tensor", "b: Dynamic", "Tensor"])
                .set_into_module(&mut module, move |a: &mut Handle, b: Dynamic| {
                    Ok::<_, Box<EvalAltResult>>(change(name, (tensors, by), a, &b)?)
                });
        }
    }
    module
}

/// `a name b`.
fn combine(binary: &Binary, name: &str, a: &Handle, b: &Dynamic) -> Result<Dynamic> {
    let made = match Operand::read(b) {
        Some(Operand::Tensor(b)) => {
            check::broadcast(name, &a.0, &b.0)?;
            check::run(name, &[&a.0, &b.0], || (binary.tensors)(&a.0, &b.0))?
        }
        Some(Operand::Number(b)) => check::run(name, &[&a.0], || (binary.number)(&a.0, b))?,
        None => return unlike(name, "Tensor", &describe(b)),
    };
    Ok(Dynamic::from(Handle::new(made)))
}

/// `a name b` with a number on the left.
fn reverse(
    name: &str,
    work: fn(Number, &Tensor) -> Made,
    a: &Dynamic,
    b: &Handle,
) -> Result<Dynamic> {
    if let (true, "+") = (a.is_string(), name) {
        return Ok(format!("{a}{}", super::show::describe(b)).into());
    }
    let Ok(a) = number(name, a) else { return unlike(name, &describe(a), "Tensor") };
    Ok(Dynamic::from(Handle::new(check::run(name, &[&b.0], || work(a, &b.0))?)))
}

/// A value that is no number and no tensor is not equal to one, and fits no other operator.
fn unlike(name: &str, a: &str, b: &str) -> Result<Dynamic> {
    match name {
        "==" => Ok(false.into()),
        "!=" => Ok(true.into()),
        _ => bail!(Code::WrongType, "`{name}` cannot combine {a} and {b}"),
    }
}

/// `a name= b`.
fn change(
    name: &str,
    (tensors, by): (Change, ChangeBy),
    a: &mut Handle,
    b: &Dynamic,
) -> Result<()> {
    check::may_change(name, &a.0)?;
    let mut changed = a.0.shallow_clone();
    let (kind, is_whole) = (a.0.kind(), !is_floating(a.0.kind()));
    let keeps = |adds_fraction: bool| {
        if is_whole && (adds_fraction || name.starts_with('/') || name == "div_") {
            let kind = dtype_name(kind);
            return Err(Error::new(
                Code::WrongType,
                format!("`{name}` would give {kind} a fraction"),
            )
            .hint("make a new tensor: t = t + x, or convert it: t.to(\"float32\")"));
        }
        Ok(())
    };
    match Operand::read(b) {
        Some(Operand::Tensor(b)) => {
            keeps(is_floating(b.0.kind()))?;
            into_shape(name, &b.0, &a.0)?;
            let _same = check::run(name, &[&a.0, &b.0], || tensors(&mut changed, &b.0))?;
        }
        Some(Operand::Number(b)) => {
            keeps(matches!(b, Number::Float(_)))?;
            let _same = check::run(name, &[&a.0], || by(&mut changed, b))?;
        }
        None => bail!(Code::WrongType, "`{name}` cannot combine Tensor and {}", describe(b)),
    }
    Ok(())
}

/// Refuses a tensor that does not fit into the shape of another, which is to be changed.
pub(super) fn into_shape(name: &str, from: &Tensor, into: &Tensor) -> Result<()> {
    let (from, into) = (from.size(), into.size());
    match check::broadcast_shapes(name, &into, &from) {
        Ok(shape) if shape == into => Ok(()),
        _ => bail!(Code::Shape, "`{name}` cannot write shape {from:?} into shape {into:?}"),
    }
}

/// Products and choices.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// Returns the product of matrices, or of batches of them, as `torch.matmul`.
    ///
    /// ```rhai
    /// let y = randn([4, 3]).matmul(randn([3, 2]));     // [4, 2]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn matmul(a: Tensor, b: Tensor) -> ScriptResult<Tensor> {
        super::check_matmul(a.tensor(), b.tensor())?;
        check::op("matmul", &[a.tensor(), b.tensor()], || a.tensor().f_matmul(b.tensor()))
    }

    /// Limits each element to the range from `min` to `max`; `()` is no limit.
    ///
    /// ```rhai
    /// let t = randn([3]).clamp(-1, ());
    /// ```
    #[rhai_fn(return_raw)]
    pub fn clamp(tensor: Tensor, min: Dynamic, max: Dynamic) -> ScriptResult<Tensor> {
        let limit = |name: &str, value: &Dynamic| match value.is_unit() {
            true => Ok(None),
            false => number(name, value).map(Some),
        };
        let (min, max) = (limit("min", &min)?, limit("max", &max)?);
        let t = tensor.tensor();
        check::op("clamp", &[t], || match (min, max) {
            (Some(min), Some(max)) => t.f_clamp(min, max),
            (Some(min), None) => t.f_clamp_min(min),
            (None, Some(max)) => t.f_clamp_max(max),
            (None, None) => Ok(t.shallow_clone()),
        })
    }

    /// Returns the elements of `a` where the condition is true, and those of `b` elsewhere; either may
    /// be a number.
    ///
    /// ```rhai
    /// let x = randn([3]);
    /// let y = where(x > 0, x, 0.1 * x);
    /// ```
    #[rhai_fn(name = "where", return_raw)]
    pub fn choose(condition: Tensor, a: Dynamic, b: Dynamic) -> ScriptResult<Tensor> {
        super::choose(&condition, &a, &b)
    }

    /// Returns the tensor with `value` wherever the bool tensor `mask` is true.
    ///
    /// ```rhai
    /// let scores = randn([4, 4]);
    /// let causal = ones([4, 4], #{ dtype: "bool" }).triu(1);
    /// let scores = scores.masked_fill(causal, -1e9);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn masked_fill(tensor: Tensor, mask: Tensor, value: Dynamic) -> ScriptResult<Tensor> {
        let value = number("value", &value)?;
        super::bool_mask("masked_fill", mask.tensor())?;
        check::broadcast("masked_fill", tensor.tensor(), mask.tensor())?;
        let (t, mask) = (tensor.tensor(), mask.tensor());
        check::op("masked_fill", &[t, mask], || t.f_masked_fill(mask, value))
    }

    /// Sets every element to a number.
    #[rhai_fn(name = "fill_", return_raw)]
    pub fn fill(tensor: &mut Tensor, value: Dynamic) -> ScriptResult<Tensor> {
        let value = number("value", &value)?;
        check::may_change("fill_", tensor.tensor())?;
        let mut t = tensor.tensor().shallow_clone();
        check::op("fill_", &[tensor.tensor()], || t.f_fill_(value))
    }

    /// Copies the elements of another tensor into this one, with broadcasting.
    #[rhai_fn(name = "copy_", return_raw)]
    pub fn copy(tensor: &mut Tensor, from: Tensor) -> ScriptResult<Tensor> {
        check::may_change("copy_", tensor.tensor())?;
        super::into_shape("copy_", from.tensor(), tensor.tensor())?;
        let mut t = tensor.tensor().shallow_clone();
        check::run("copy_", &[tensor.tensor()], || t.f_copy_(from.tensor()))?;
        Ok(tensor.clone())
    }

    /// Draws every element from the normal distribution of this mean and standard deviation.
    ///
    /// ```rhai
    /// let w = zeros([2, 2]).requires_grad_();
    /// no_grad(|| w.normal_(0, 0.02));
    /// ```
    #[rhai_fn(name = "normal_", return_raw)]
    pub fn normal(tensor: &mut Tensor, mean: Dynamic, std: Dynamic) -> ScriptResult<Tensor> {
        super::draw("normal_", tensor, &mean, &std, |t, mean, std| t.f_normal_(mean, std))
    }

    /// Draws every element from the range from `low` to below `high`.
    #[rhai_fn(name = "uniform_", return_raw)]
    pub fn uniform(tensor: &mut Tensor, low: Dynamic, high: Dynamic) -> ScriptResult<Tensor> {
        super::draw("uniform_", tensor, &low, &high, |t, low, high| t.f_uniform_(low, high))
    }
}

fn draw(
    name: &str,
    tensor: &Handle,
    a: &Dynamic,
    b: &Dynamic,
    work: fn(&mut Tensor, f64, f64) -> Made,
) -> ScriptResult<Handle> {
    use crate::recipe::value::argument;
    let (a, b) = (argument("the first number", a)?, argument("the second number", b)?);
    let fits: bool = if name == "normal_" { b >= 0.0 } else { a <= b };
    if !fits {
        let message = format!("`{name}` cannot draw numbers with {a} and {b}");
        return Err(Error::new(Code::BadValue, message).into());
    }
    check::floating(name, &tensor.0)?;
    check::may_change(name, &tensor.0)?;
    let mut t = tensor.0.shallow_clone();
    check::op(name, &[&tensor.0], || work(&mut t, a, b))
}

/// Refuses a mask that is not bool.
pub(super) fn bool_mask(name: &str, mask: &Tensor) -> Result<()> {
    if mask.kind() == Kind::Bool {
        return Ok(());
    }
    let found = dtype_name(mask.kind());
    Err(Error::new(Code::WrongType, format!("`{name}` needs a mask of bool, found {found}"))
        .hint("a comparison gives one: t == 0"))
}

fn choose(condition: &Handle, a: &Dynamic, b: &Dynamic) -> ScriptResult<Handle> {
    bool_mask("where", &condition.0)?;
    let (a, b) = match (Operand::read(a), Operand::read(b)) {
        (Some(Operand::Number(a)), Some(Operand::Number(b))) => {
            return check::op("where", &[&condition.0], || {
                Tensor::f_where_scalar(&condition.0, a, b)
            });
        }
        (Some(Operand::Tensor(a)), Some(b)) => {
            let b = b.into_tensor(&a.0)?;
            (a.0.shallow_clone(), b)
        }
        (Some(a), Some(Operand::Tensor(b))) => (a.into_tensor(&b.0)?, b.0.shallow_clone()),
        (None, _) => return Ok(tensor("a", a)?),
        (_, None) => return Ok(tensor("b", b)?),
    };
    let shape = check::broadcast("where", &a, &b)?;
    check::broadcast_shapes("where", &shape, &condition.0.size())?;
    check::op("where", &[&condition.0, &a, &b], || a.f_where_self(&condition.0, &b))
}

/// Refuses matrices whose inner sizes differ, as messages can tell it best.
pub(crate) fn check_matmul(a: &Tensor, b: &Tensor) -> Result<()> {
    check::one_dtype("matmul", &[a, b])?;
    let (x, y) = (a.size(), b.size());
    let (Some(inner), false) = (x.last(), y.is_empty()) else {
        bail!(Code::Shape, "`matmul` needs tensors with dimensions, found shapes {x:?} and {y:?}");
    };
    let rows = y[y.len().saturating_sub(2)];
    if *inner != rows {
        let message = format!(
            "`matmul` cannot multiply shapes {x:?} and {y:?}: {inner} columns and {rows} rows"
        );
        return Err(Error::new(Code::Shape, message)
            .hint("a linear layer's weight is [out, in]: x.matmul(w.t()), or nn::linear(x, w)"));
    }
    let (batch_x, batch_y) = (&x[..x.len().saturating_sub(2)], &y[..y.len().saturating_sub(2)]);
    let mut shape = check::broadcast_shapes("matmul", batch_x, batch_y)?;
    if x.len() > 1 {
        shape.push(x[x.len() - 2]);
    }
    if y.len() > 1 {
        shape.push(y[y.len() - 1]);
    }
    check::room("matmul", &shape, a.kind(), a.device())
}
