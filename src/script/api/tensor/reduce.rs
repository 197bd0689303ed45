//! Reductions: sums, means, extremes, over all elements or along dimensions.

use rhai::{FuncRegistration, Map, Module, plugin::*};

use super::{Handle, check, read::ints};
use crate::{
    error::{Code, Error, Result},
    recipe::{
        error::ScriptResult,
        options,
        value::{argument, of_option},
    },
    tensor::{TchError, Tensor},
};

type Made = Result<Tensor, TchError>;

/// The dimensions of a reduction.
struct Over {
    /// Empty for all dimensions.
    dims: Vec<i64>,
    keepdim: bool,
    /// Of `variance` and `std`.
    correction: f64,
    /// Of `norm`.
    p: f64,
}

impl Over {
    const ALL: Self = Self { dims: Vec::new(), keepdim: false, correction: 1.0, p: 2.0 };

    /// Reads an int, an array of ints, or options.
    fn read(name: &str, tensor: &Tensor, over: &Dynamic) -> Result<Self> {
        let mut read = match over.as_map_ref() {
            Ok(map) => Self::from_map(name, &map)?,
            Err(_) => Self { dims: ints("dim", over)?, ..Self::ALL },
        };
        for dim in &mut read.dims {
            *dim = check::dim(name, tensor, *dim)?;
        }
        let mut once = read.dims.clone();
        once.sort_unstable();
        once.dedup();
        if once.len() < read.dims.len() {
            bail!(Code::Shape, "`{name}` names a dimension twice: {:?}", read.dims);
        }
        Ok(read)
    }

    fn from_map(name: &str, map: &Map) -> Result<Self> {
        options::read(name, map, |o| {
            let dims = o
                .raw("dim")
                .map(of_option)
                .map(|dim| ints("dim", &dim).map_err(|e| e.option("dim")));
            let dims = dims.and_then(|dims| o.check(dims)).unwrap_or_default();
            let keepdim = o.get("keepdim").or(false);
            let is_spread = matches!(name, "variance" | "std");
            let correction = if is_spread { o.get("correction").or(1.0) } else { 1.0 };
            let p = if name == "norm" { o.get("p").or(2.0) } else { 2.0 };
            Self { dims, keepdim, correction, p }
        })
    }

    /// The dimensions, or `None` for all.
    fn list(&self) -> Option<&[i64]> {
        (!self.dims.is_empty()).then_some(self.dims.as_slice())
    }

    /// The one dimension of functions that take no more.
    fn one(&self, name: &str) -> Result<Option<i64>> {
        match self.dims.as_slice() {
            [] => Ok(None),
            [dim] => Ok(Some(*dim)),
            many => bail!(Code::BadValue, "`{name}` goes over one dimension, found {many:?}"),
        }
    }
}

/// Reductions over any dimensions: the name, its words, whether the elements must be floating-point.
type Reduction = (&'static str, &'static str, bool, fn(&Tensor, &Over) -> Made);

const REDUCTIONS: &[Reduction] = &[
    ("sum", "Returns the sum of the elements", false, |t, over| {
        t.f_sum_dim_intlist(over.list(), over.keepdim, None)
    }),
    ("mean", "Returns the mean of the elements", true, |t, over| {
        t.f_mean_dim(over.list(), over.keepdim, None)
    }),
    // `var` is a reserved word of Rhai.
    ("variance", "Returns the variance, with PyTorch's `correction` (1)", true, |t, over| {
        t.f_var_correction(over.list(), over.correction, over.keepdim)
    }),
    ("std", "Returns the standard deviation, with PyTorch's `correction` (1)", true, |t, over| {
        t.f_std_correction(over.list(), over.correction, over.keepdim)
    }),
    ("norm", "Returns the norm, of the order `p` (2)", true, |t, over| {
        let all: Vec<i64> = (0..t.dim() as i64).collect();
        t.f_norm_scalaropt_dim(over.p, over.list().unwrap_or(&all), over.keepdim)
    }),
    ("amax", "Returns the greatest element", false, |t, over| {
        t.f_amax(over.dims.as_slice(), over.keepdim)
    }),
    ("amin", "Returns the least element", false, |t, over| {
        t.f_amin(over.dims.as_slice(), over.keepdim)
    }),
    ("logsumexp", "Returns the logarithm of the sum of exponentials", true, |t, over| {
        let all: Vec<i64> = (0..t.dim() as i64).collect();
        t.f_logsumexp(over.list().unwrap_or(&all), over.keepdim)
    }),
];

/// Reductions over one dimension or all.
type ByOne = (&'static str, &'static str, fn(&Tensor, Option<i64>, bool) -> Made);

const BY_ONE: &[ByOne] = &[
    ("argmax", "Returns the index of the greatest element", |t, dim, keepdim| {
        t.f_argmax(dim, keepdim)
    }),
    ("argmin", "Returns the index of the least element", |t, dim, keepdim| {
        t.f_argmin(dim, keepdim)
    }),
    ("prod", "Returns the product of the elements", |t, dim, keepdim| match dim {
        Some(dim) => t.f_prod_dim_int(dim, keepdim, None),
        None => t.f_prod(None),
    }),
    ("all", "Returns whether all elements are true or not 0", |t, dim, keepdim| match dim {
        Some(dim) => t.f_all_dim(dim, keepdim),
        None => t.f_all(),
    }),
    ("any", "Returns whether one element is true or not 0", |t, dim, keepdim| match dim {
        Some(dim) => t.f_any_dim(dim, keepdim),
        None => t.f_any(),
    }),
];

/// The words of a function over everything, and of one along dimensions.
fn comments(words: &str) -> [String; 2] {
    [
        format!("/// {words}, of the whole tensor."),
        format!("/// {words}, along a dimension, or with options `#{{ dim, keepdim }}`."),
    ]
}

/// The functions of reductions.
pub(in crate::script::api) fn build() -> Module {
    let mut module = rhai::exported_module!(api);
    for &(name, words, is_floating, work) in REDUCTIONS {
        register(&mut module, name, words, move |t, over| {
            if is_floating {
                check::floating(name, t)?;
            }
            not_empty(name, t)?;
            check::op(name, &[t], || work(t, over))
        });
    }
    for &(name, words, work) in BY_ONE {
        register(&mut module, name, words, move |t, over| {
            not_empty(name, t)?;
            let dim = over.one(name)?;
            check::op(name, &[t], || work(t, dim, over.keepdim))
        });
    }
    module
}

/// Registers a reduction in both of its forms: over everything, and along dimensions.
fn register(
    module: &mut Module,
    name: &'static str,
    words: &str,
    reduce: impl Fn(&Tensor, &Over) -> ScriptResult<Handle> + Copy + 'static,
) {
    let [whole, along] = comments(words);
    FuncRegistration::new(name)
        .with_comments([whole])
        .with_params_info(["tensor: Tensor", "Tensor"])
        .set_into_module(module, move |t: Handle| reduce(&t.0, &Over::ALL));
    FuncRegistration::new(name)
        .with_comments([along])
        .with_params_info(["tensor: Tensor", "dim: Dynamic", "Tensor"])
        .set_into_module(module, move |t: Handle, over: Dynamic| {
            reduce(&t.0, &Over::read(name, &t.0, &over)?)
        });
}

/// Refuses an extreme of nothing.
fn not_empty(name: &str, t: &Tensor) -> Result<()> {
    if t.numel() == 0 && matches!(name, "max" | "min" | "amax" | "amin" | "argmax" | "argmin") {
        bail!(Code::Shape, "`{name}` of a tensor without elements, shape {:?}", t.size());
    }
    Ok(())
}

/// Extremes, orders and running sums.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// Returns the greatest element of the whole tensor.
    #[rhai_fn(return_raw)]
    pub fn max(tensor: Tensor) -> ScriptResult<Tensor> {
        super::not_empty("max", tensor.tensor())?;
        check::op("max", &[tensor.tensor()], || tensor.tensor().f_max())
    }

    /// Returns the greatest elements along a dimension as `values`, and where they are as `indices`;
    /// or, given a tensor, the greater of each two elements.
    ///
    /// ```rhai
    /// let best = randn([4, 10]).max(1);
    /// print(best.values.shape);
    /// print(best.indices);
    /// ```
    #[rhai_fn(name = "max", return_raw)]
    pub fn max_along(tensor: Tensor, dim: Dynamic) -> ScriptResult<Dynamic> {
        super::extreme("max", &tensor, &dim)
    }

    /// Returns the least element of the whole tensor.
    #[rhai_fn(return_raw)]
    pub fn min(tensor: Tensor) -> ScriptResult<Tensor> {
        super::not_empty("min", tensor.tensor())?;
        check::op("min", &[tensor.tensor()], || tensor.tensor().f_min())
    }

    /// Returns the least elements along a dimension as `values`, and where they are as `indices`;
    /// or, given a tensor, the lesser of each two elements.
    #[rhai_fn(name = "min", return_raw)]
    pub fn min_along(tensor: Tensor, dim: Dynamic) -> ScriptResult<Dynamic> {
        super::extreme("min", &tensor, &dim)
    }

    /// Returns the sums of the elements up to each one along a dimension.
    #[rhai_fn(return_raw)]
    pub fn cumsum(tensor: Tensor, dim: Dynamic) -> ScriptResult<Tensor> {
        let dim = check::dim("cumsum", tensor.tensor(), argument("dim", &dim)?)?;
        check::op("cumsum", &[tensor.tensor()], || tensor.tensor().f_cumsum(dim, None))
    }

    /// Returns the `k` greatest elements along the last dimension as `values`, and where they are as
    /// `indices`.
    #[rhai_fn(return_raw)]
    pub fn topk(tensor: Tensor, k: Dynamic) -> ScriptResult<Map> {
        let (t, k): (_, i64) = (tensor.tensor(), argument("k", &k)?);
        let size = t.size().last().copied().unwrap_or(1);
        if !(0..=size).contains(&k) {
            let message = format!("`topk`: `k` must be from 0 to {size}, found {k}");
            return Err(Error::new(Code::BadValue, message).into());
        }
        Ok(super::pair(check::run("topk", &[t], || t.f_topk(k, -1, true, true))?))
    }

    /// Sorts the elements along the last dimension, upwards: `values`, and where they were as
    /// `indices`.
    #[rhai_fn(return_raw)]
    pub fn sort(tensor: Tensor) -> ScriptResult<Map> {
        Ok(super::pair(check::run("sort", &[tensor.tensor()], || {
            tensor.tensor().f_sort(-1, false)
        })?))
    }

    /// Returns whether two tensors have the same shape and elements that are nearly equal: within
    /// 1e-8 and 1e-5 of the second.
    #[rhai_fn(return_raw)]
    pub fn allclose(a: Tensor, b: Tensor) -> ScriptResult<bool> {
        let (a, b) = (a.tensor(), b.tensor());
        check::one_dtype("allclose", &[a, b])?;
        Ok(a.size() == b.size()
            && check::run("allclose", &[a, b], || a.f_allclose(b, 1e-5, 1e-8, false))?)
    }
}

fn extreme(name: &'static str, tensor: &Handle, with: &Dynamic) -> ScriptResult<Dynamic> {
    let t = &tensor.0;
    let is_max = name == "max";
    if let Some(other) = with.clone().try_cast::<Handle>() {
        check::broadcast(name, t, &other.0)?;
        let made = check::op(name, &[t, &other.0], || match is_max {
            true => t.f_maximum(&other.0),
            false => t.f_minimum(&other.0),
        });
        return made.map(Dynamic::from);
    }
    not_empty(name, t)?;
    let over = Over::read(name, t, with)?;
    let Some(dim) = over.one(name)? else {
        return Err(Error::new(Code::Missing, format!("`{name}` needs a `dim`")).into());
    };
    let found = check::run(name, &[t], || match is_max {
        true => t.f_max_dim(dim, over.keepdim),
        false => t.f_min_dim(dim, over.keepdim),
    })?;
    Ok(pair(found).into())
}

fn pair((values, indices): (Tensor, Tensor)) -> Map {
    let handle = |t| Dynamic::from(Handle::new(t));
    Map::from([("values".into(), handle(values)), ("indices".into(), handle(indices))])
}
