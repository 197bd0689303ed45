//! `nn::...` in scripts: losses.

use rhai::{Map, plugin::*};

use super::position::at_call;
use crate::{
    error::{Code, Error, Result},
    recipe::{
        error::ScriptResult,
        options::{self, Options},
    },
    script::api::tensor::{
        Handle,
        check::{self, floating, one_dtype},
    },
    tensor::{IGNORE_INDEX, Kind, Reduction, Tensor, guard},
};

/// Losses.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// Returns the mean negative log-probability of the int64 targets, `[N]`, by the logits, `[N, C]`.
    ///
    /// ```rhai
    /// let loss = nn::cross_entropy(randn([4, 10]), tensor([1, 0, -100, 9]));
    /// ```
    #[rhai_fn(return_raw)]
    pub fn cross_entropy(
        ctx: NativeCallContext,
        logits: Tensor,
        target: Tensor,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::cross_entropy(logits.tensor(), target.tensor(), &Map::new()))
    }

    /// Returns the negative log-probability of the int64 targets by the logits. `reduction` ("mean"),
    /// "sum" or "none"; `ignore_index` (-100), the target that does not count; `label_smoothing` (0);
    /// `weight`, one for each class.
    ///
    /// ```rhai
    /// let logits = randn([2, 5, 10]);                              // [batch, tokens, classes]
    /// let target = randint(0, 10, [2, 5]);
    /// let loss = nn::cross_entropy(logits.view([-1, 10]), target.view(-1), #{ reduction: "sum" });
    /// ```
    #[rhai_fn(name = "cross_entropy", return_raw)]
    pub fn cross_entropy_with(
        ctx: NativeCallContext,
        logits: Tensor,
        target: Tensor,
        options: Map,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::cross_entropy(logits.tensor(), target.tensor(), &options))
    }

    /// Returns the mean of the squared differences.
    #[rhai_fn(return_raw)]
    pub fn mse_loss(ctx: NativeCallContext, x: Tensor, target: Tensor) -> ScriptResult<Tensor> {
        mse_loss_with(ctx, x, target, Map::new())
    }

    /// Returns the squared differences, with `reduction` ("mean"), "sum" or "none".
    #[rhai_fn(name = "mse_loss", return_raw)]
    pub fn mse_loss_with(
        ctx: NativeCallContext,
        x: Tensor,
        target: Tensor,
        options: Map,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || {
            let (x, target) = (x.tensor(), target.tensor());
            let reduction = super::compared("mse_loss", x, target, &options)?;
            check::op("mse_loss", &[x, target], || x.f_mse_loss(target, reduction))
        })
    }

    /// Returns the mean binary cross entropy of targets from 0 to 1 by the logits.
    #[rhai_fn(return_raw)]
    pub fn binary_cross_entropy_with_logits(
        ctx: NativeCallContext,
        logits: Tensor,
        target: Tensor,
    ) -> ScriptResult<Tensor> {
        binary_cross_entropy_with(ctx, logits, target, Map::new())
    }

    /// Returns the binary cross entropy, with `reduction` ("mean"), "sum" or "none".
    #[rhai_fn(name = "binary_cross_entropy_with_logits", return_raw)]
    pub fn binary_cross_entropy_with(
        ctx: NativeCallContext,
        logits: Tensor,
        target: Tensor,
        options: Map,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || {
            let name = "binary_cross_entropy_with_logits";
            let (x, target) = (logits.tensor(), target.tensor());
            let reduction = super::compared(name, x, target, &options)?;
            let none = None::<&crate::tensor::Tensor>;
            check::op(name, &[x, target], || {
                x.f_binary_cross_entropy_with_logits(target, none, none, reduction)
            })
        })
    }
}

fn reduction(o: &mut Options<'_>) -> Reduction {
    // The type of libtorch's cannot be copied.
    let word = o.choice("reduction", &[("mean", 0), ("sum", 1), ("none", 2)]).or(0);
    match word {
        1 => Reduction::Sum,
        2 => Reduction::None,
        _ => Reduction::Mean,
    }
}

fn cross_entropy(logits: &Tensor, target: &Tensor, options: &Map) -> ScriptResult<Handle> {
    let name = "cross_entropy";
    let (reduction, ignore_index, smoothing, weight) = options::read(name, options, |o| {
        (
            reduction(o),
            o.get("ignore_index").or(IGNORE_INDEX),
            o.get("label_smoothing").range(0.0..=1.0).or(0.0),
            options::handed::<Handle>(o, "weight"),
        )
    })?;
    floating(name, logits)?;
    let (size, asked) = (logits.size(), target.size());
    let (classes, expected) = match size.as_slice() {
        [] => {
            return Err(
                Error::new(Code::Shape, "`cross_entropy` needs logits [N, C], found []").into()
            );
        }
        [classes] => (*classes, Vec::new()),
        [rows, classes, rest @ ..] => (*classes, [&[*rows], rest].concat()),
    };
    if asked != expected {
        let message = format!(
            "`cross_entropy` of logits {size:?} needs targets {expected:?}, found {asked:?}"
        );
        return Err(Error::new(Code::Shape, message)
            .hint("classes are dimension 1: logits.view([-1, classes]), target.view(-1)")
            .into());
    }
    let counted = match target.kind() {
        Kind::Int64 => guard(name, || Ok(target.f_masked_fill(&target.f_eq(ignore_index)?, 0)?))?,
        _ => target.shallow_clone(),
    };
    check::indices(name, "targets", &counted, classes)?;
    let weight = weight.as_ref().map(Handle::tensor);
    if let Some(weight) = weight {
        one_dtype(name, &[logits, weight])?;
        if weight.size() != [classes] {
            let found = weight.size();
            let message = format!("`weight` must have the shape [{classes}], found {found:?}");
            return Err(Error::new(Code::Shape, message).option("weight").into());
        }
    }
    check::op(name, &[logits, target], || {
        logits.f_cross_entropy_loss(target, weight, reduction, ignore_index, smoothing)
    })
}

/// Checks two tensors of one shape, and reads `reduction`.
fn compared(name: &str, x: &Tensor, target: &Tensor, options: &Map) -> Result<Reduction> {
    let reduction = options::read(name, options, reduction)?;
    floating(name, x)?;
    one_dtype(name, &[x, target])?;
    if x.size() != target.size() {
        let (x, target) = (x.size(), target.size());
        bail!(Code::Shape, "`{name}` needs two tensors of one shape, found {x:?} and {target:?}");
    }
    Ok(reduction)
}
