//! The last layer, with the loss: of GPT-2, a final norm and the projection to the vocabulary.
//!
//! The plain loss of GPT-2, cross-entropy of the next token, is made in slices of the logits
//! (`loss.rs`). Any other loss gets them whole, and autograd goes back through it. Both make their
//! gradients in the forward pass, while the parameters are there.

use super::{
    custom::CustomBlock,
    loss::{LossFunction, LossGradient, Targets, cross_entropy, linear_cross_entropy},
    unit::{Init, ParamSpec},
};
use crate::{
    bridge::autograd,
    error::{Code, Error, Result},
    tensor::{Kind, Tensor, no_grad},
};

/// The last layer of a model.
#[derive(Debug)]
pub enum Head {
    /// GPT-2's: a layer norm and the projection.
    Gpt2 {
        /// Added to the variance by the norm.
        epsilon: f64,
    },
    /// That of a model whose layers its maker wrote; its parameters are all its own.
    Custom(CustomBlock),
}

/// What the head's forward pass gives, and keeps for its backward pass.
#[derive(Debug)]
pub struct HeadOutput {
    /// Sum of the losses over the targets, float64 scalar.
    pub loss_sum: Tensor,
    /// Number of targets.
    pub targets: i64,
    saved: Option<Saved>,
}

#[derive(Debug)]
enum Saved {
    /// The norm, through which the gradient is still to go.
    Norm { input: Tensor, normed: Tensor, normed_grad: Tensor },
    /// The gradients.
    Grads(HeadGrads),
}

/// The gradients of the head.
#[derive(Debug)]
pub struct HeadGrads {
    /// With respect to the hidden states, `[B, T, C]`.
    pub input: Tensor,
    /// With respect to the norm's weight and bias, or to all parameters of a custom head; `None` is
    /// 0.
    pub params: Vec<Option<Tensor>>,
}

impl Head {
    /// The norm's parameters, and the projection where it is not the token embedding.
    pub fn specs(vocab: i64, hidden: i64, std: f64, tied: bool) -> Vec<ParamSpec> {
        let mut specs = vec![
            ParamSpec::new("transformer.ln_f.weight", &[hidden], Init::Ones),
            ParamSpec::new("transformer.ln_f.bias", &[hidden], Init::Zeros),
        ];
        if !tied {
            specs.push(ParamSpec::new("lm_head.weight", &[vocab, hidden], Init::Normal(std)));
        }
        specs
    }

    /// `x` `[B, T, C]` to logits `[B, T, V]`.
    ///
    /// # Errors
    /// Those of whoever wrote it.
    pub fn logits(&self, params: &[Tensor], projection: &Tensor, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gpt2 { epsilon } => {
                Ok(norm(*epsilon, params, x).matmul(&projection.transpose(0, 1)))
            }
            Self::Custom(layer) => layer.logits(params, x),
        }
    }

    /// The loss of `x` `[B, T, C]` against the targets, by `function` or, without one, the
    /// cross-entropy; with `gradient`, that of the projection is written, where it is a parameter
    /// beside the head's, and kept is what [`Head::backward`] needs for the rest.
    ///
    /// # Errors
    /// Those of whoever wrote the head or the function.
    pub fn loss(
        &self,
        (params, projection): (&[Tensor], &Tensor),
        x: &Tensor,
        targets: &Targets,
        gradient: Option<LossGradient<'_>>,
        function: Option<&LossFunction>,
    ) -> Result<HeadOutput> {
        if let (Self::Gpt2 { epsilon }, None) = (self, function) {
            return in_slices(*epsilon, params, projection, x, targets, gradient);
        }
        if targets.count() == 0 {
            // A mean over nothing is NaN, and would be all of the sum.
            return Ok(nothing(x, gradient.is_some()));
        }
        let input = x.detach().set_requires_grad(gradient.is_some());
        let logits = self.logits(params, projection, &input)?.to_kind(Kind::Float);
        let loss = match function {
            Some(function) => function.call(&logits, targets)?,
            None => cross_entropy(&logits, targets),
        };
        drop(logits);
        let count = targets.count() as f64;
        let loss_sum = loss.detach().to_kind(Kind::Double) * count;
        let Some(LossGradient { nominal, unit, index }) = gradient else {
            return Ok(HeadOutput { loss_sum, targets: targets.count(), saved: None });
        };
        if !loss.requires_grad() {
            return Err(Error::new(Code::BadValue, "the loss does not depend on the model")
                .hint("it must be computed from the logits, outside of no_grad"));
        }
        let own = self.own(params);
        let apart = matches!(self, Self::Gpt2 { .. }).then_some(projection);
        let inputs: Vec<&Tensor> = std::iter::once(&input).chain(own).chain(apart).collect();
        let weight = loss.full_like(count / nominal);
        let mut grads = autograd::grad(&loss, &weight, &inputs)?;
        if apart.is_some()
            && let Some(Some(grad)) = grads.pop()
        {
            unit.add(&[(index, grad)])?;
        }
        let grads = HeadGrads::of(grads, &input);
        Ok(HeadOutput { loss_sum, targets: targets.count(), saved: Some(Saved::Grads(grads)) })
    }

    /// The parameters beside the projection: the norm's two, or all of a custom head.
    fn own<'a>(&self, params: &'a [Tensor]) -> &'a [Tensor] {
        match self {
            Self::Gpt2 { .. } => &params[..2],
            Self::Custom(_) => params,
        }
    }

    /// The gradients for what [`Head::loss`] kept; `None` if it ran without `gradient`.
    ///
    /// # Errors
    /// libtorch refuses, or memory is exhausted.
    pub fn backward(&self, params: &[Tensor], output: HeadOutput) -> Result<Option<HeadGrads>> {
        let (input, normed, normed_grad) = match output.saved {
            None => return Ok(None),
            Some(Saved::Grads(grads)) => return Ok(Some(grads)),
            Some(Saved::Norm { input, normed, normed_grad }) => (input, normed, normed_grad),
        };
        let grads = autograd::grad(&normed, &normed_grad, &[&input, &params[0], &params[1]])?;
        Ok(Some(HeadGrads::of(grads, &input)))
    }
}

impl HeadGrads {
    /// Takes the gradients of `input` and of the parameters.
    fn of(mut grads: Vec<Option<Tensor>>, input: &Tensor) -> Self {
        let params = grads.split_off(1);
        Self { input: grads.pop().flatten().unwrap_or_else(|| input.zeros_like()), params }
    }
}

/// What a batch without a target gives.
fn nothing(x: &Tensor, with_gradient: bool) -> HeadOutput {
    let grads = || HeadGrads { input: x.zeros_like(), params: Vec::new() };
    HeadOutput {
        loss_sum: Tensor::zeros([], (Kind::Double, x.device())),
        targets: 0,
        saved: with_gradient.then(|| Saved::Grads(grads())),
    }
}

fn norm(epsilon: f64, params: &[Tensor], x: &Tensor) -> Tensor {
    let c = x.size()[2];
    x.layer_norm([c].as_slice(), Some(&params[0]), Some(&params[1]), epsilon, true)
}

/// The cross-entropy of GPT-2, whose logits are never whole.
fn in_slices(
    epsilon: f64,
    params: &[Tensor],
    projection: &Tensor,
    x: &Tensor,
    targets: &Targets,
    gradient: Option<LossGradient<'_>>,
) -> Result<HeadOutput> {
    let input = x.detach().set_requires_grad(gradient.is_some());
    let normed = norm(epsilon, params, &input);
    let flat = normed.detach().reshape([-1, x.size()[2]]);
    let (loss_sum, hidden_grad) =
        no_grad(|| linear_cross_entropy(&flat, &projection.detach(), targets, gradient))?;
    let saved =
        hidden_grad.map(|grad| Saved::Norm { normed_grad: grad.view_as(&normed), input, normed });
    Ok(HeadOutput { loss_sum, targets: targets.count(), saved })
}
