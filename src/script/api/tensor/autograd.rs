//! Gradients: what asks for them, computing them, and computing without them.

use rhai::{FnPtr, plugin::*};

use super::{Handle, check};
use crate::{
    error::{Code, Error, Result},
    recipe::error::ScriptResult,
    tensor::{guard, no_grad_guard},
};

/// Automatic differentiation.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// Whether the gradient of the tensor is asked for. It can be set.
    ///
    /// ```rhai
    /// let w = randn([3]) * 0.02;
    /// w.requires_grad = true;
    /// ```
    #[rhai_fn(get = "requires_grad", pure)]
    pub fn requires_grad(tensor: &mut Tensor) -> bool {
        tensor.tensor().requires_grad()
    }

    /// Sets whether the gradient of the tensor is asked for.
    #[rhai_fn(set = "requires_grad", return_raw, pure)]
    pub fn set_requires_grad(tensor: &mut Tensor, value: bool) -> ScriptResult<()> {
        super::require_grad(tensor, value)?;
        Ok(())
    }

    /// Asks for the gradient of the tensor, and returns it.
    ///
    /// ```rhai
    /// let w = (randn([3, 2]) * 0.02).requires_grad_();
    /// ```
    #[rhai_fn(name = "requires_grad_", return_raw)]
    pub fn ask(tensor: Tensor) -> ScriptResult<Tensor> {
        Ok(super::require_grad(&tensor, true)?)
    }

    /// Sets whether the gradient of the tensor is asked for, and returns it.
    #[rhai_fn(name = "requires_grad_", return_raw)]
    pub fn ask_or_not(tensor: Tensor, value: bool) -> ScriptResult<Tensor> {
        Ok(super::require_grad(&tensor, value)?)
    }

    /// Whether the tensor was made by no operation that gradients go through.
    #[rhai_fn(get = "is_leaf", return_raw, pure)]
    pub fn is_leaf(tensor: &mut Tensor) -> ScriptResult<bool> {
        Ok(guard("is_leaf", || Ok(tensor.tensor().f_is_leaf()?))?)
    }

    /// The gradient that `backward` has added up, or `()`.
    #[rhai_fn(get = "grad", return_raw, pure)]
    pub fn grad(tensor: &mut Tensor) -> ScriptResult<Dynamic> {
        let grad = guard("grad", || Ok(tensor.tensor().f_grad()?))?;
        Ok(if grad.defined() { Dynamic::from(super::Handle::new(grad)) } else { Dynamic::UNIT })
    }

    /// Computes the gradient of a tensor with one value with respect to every tensor that asks for it
    /// and adds it to their `grad`. The graph is freed.
    ///
    /// ```rhai
    /// let w = tensor([2.0], #{ requires_grad: true });
    /// (w * w).sum().backward();
    /// print(w.grad);                                   // 4
    /// ```
    #[rhai_fn(return_raw)]
    pub fn backward(tensor: Tensor) -> ScriptResult<()> {
        Ok(super::backward(tensor.tensor())?)
    }

    /// Computes gradients of a tensor of any shape, weighted with `gradient`, which has its shape.
    #[rhai_fn(name = "backward", return_raw)]
    pub fn backward_with(tensor: Tensor, gradient: Tensor) -> ScriptResult<()> {
        let (t, weights) = (tensor.tensor(), gradient.tensor());
        if t.size() != weights.size() {
            let (found, expected) = (weights.size(), t.size());
            let message = format!("`gradient` must have the shape {expected:?}, found {found:?}");
            return Err(Error::new(Code::Shape, message).into());
        }
        super::check_graph(t)?;
        let sum =
            check::run("backward", &[t, weights], || t.f_mul(&weights.f_detach()?)?.f_sum(None))?;
        Ok(super::backward(&sum)?)
    }

    /// Sets the gradient of the tensor, if it has one, to zero.
    #[rhai_fn(return_raw)]
    pub fn zero_grad(tensor: Tensor) -> ScriptResult<()> {
        Ok(super::zero_grad(&tensor)?)
    }

    /// Returns the tensor without what it was computed from; the numbers are the same.
    #[rhai_fn(return_raw)]
    pub fn detach(tensor: Tensor) -> ScriptResult<Tensor> {
        check::op("detach", &[tensor.tensor()], || tensor.tensor().f_detach())
    }

    /// Runs a function without recording what gradients would need, and returns what it returns.
    ///
    /// ```rhai
    /// let w = tensor([2.0], #{ requires_grad: true });
    /// (w * w).sum().backward();
    /// no_grad(|| w -= 0.1 * w.grad);
    /// ```
    // Called as it is, not kept: what it assigns to the variables that it captured must last.
    #[rhai_fn(return_raw)]
    pub fn no_grad(ctx: NativeCallContext, function: FnPtr) -> ScriptResult<Dynamic> {
        let _guard = no_grad_guard();
        function.call_within_context(&ctx, ())
    }
}

fn require_grad(tensor: &Handle, value: bool) -> Result<Handle> {
    let t = &tensor.0;
    if value {
        check::floating("requires_grad", t)?;
    } else if !guard("requires_grad", || Ok(t.f_is_leaf()?))? {
        return Err(Error::new(
            Code::CallOrder,
            "the gradient goes through this tensor: it was computed from others",
        )
        .hint("t.detach() has the same numbers and no gradient"));
    }
    guard("requires_grad", || Ok(Handle::new(t.f_set_requires_grad(value)?)))
}

/// Refuses tensors that no gradient goes through.
fn check_graph(t: &crate::tensor::Tensor) -> Result<()> {
    if t.requires_grad() {
        return Ok(());
    }
    Err(Error::new(Code::CallOrder, "`backward` of a tensor that was computed without gradients")
        .hint("ask for the gradient of what is trained: w.requires_grad = true"))
}

fn backward(t: &crate::tensor::Tensor) -> Result<()> {
    check_graph(t)?;
    if t.numel() != 1 {
        let message =
            format!("`backward` needs a tensor with one value, found shape {:?}", t.size());
        return Err(Error::new(Code::Shape, message).hint("take its sum() or mean() first"));
    }
    guard("backward", || Ok(t.f_backward()?)).map_err(|e| match e.message() {
        message if message.contains("second time") => Error::new(
            Code::CallOrder,
            "`backward` was called before on this graph, which is freed",
        )
        .hint("compute the loss again"),
        message if message.contains("modified by an inplace operation") => {
            Error::new(Code::CallOrder, "a tensor that `backward` needs was changed in place")
                .hint("make a new tensor instead: t = t + x")
        }
        _ => e,
    })
}

/// Sets the gradient, if there is one, to zero.
pub(in crate::script::api) fn zero_grad(tensor: &Handle) -> Result<()> {
    guard("zero_grad", || {
        let mut grad = tensor.0.f_grad()?;
        if grad.defined() {
            let _zeros = grad.f_detach_()?.f_zero_()?;
        }
        Ok(())
    })
}
