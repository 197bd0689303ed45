//! The last layer: a final norm and the projection to the vocabulary, with the loss.

use super::{
    loss::{LossGradient, Targets, linear_cross_entropy},
    unit::{Init, ParamSpec},
};
use crate::{
    bridge::ops,
    error::Result,
    tensor::{Tensor, no_grad},
};

/// The final layer norm and the projection.
#[derive(Debug)]
pub struct Head {
    /// Added to the variance by the norm.
    pub epsilon: f64,
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
struct Saved {
    input: Tensor,
    normed: Tensor,
    normed_grad: Tensor,
}

/// The gradients of the head.
#[derive(Debug)]
pub struct HeadGrads {
    /// With respect to the hidden states, `[B, T, C]`.
    pub input: Tensor,
    /// With respect to the norm's weight and bias.
    pub params: Vec<Tensor>,
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

    fn norm(&self, params: &[Tensor], x: &Tensor) -> Tensor {
        let c = x.size()[2];
        x.layer_norm([c].as_slice(), Some(&params[0]), Some(&params[1]), self.epsilon, true)
    }

    /// `x` `[B, T, C]` to logits `[B, T, V]`.
    pub fn logits(&self, params: &[Tensor], projection: &Tensor, x: &Tensor) -> Tensor {
        self.norm(params, x).matmul(&projection.transpose(0, 1))
    }

    /// The loss of `x` `[B, T, C]` against the targets; with `gradient`, that of the projection is
    /// written, and kept is what [`Head::backward`] needs for the rest.
    pub fn loss(
        &self,
        params: &[Tensor],
        projection: &Tensor,
        x: &Tensor,
        targets: &Targets,
        gradient: Option<LossGradient<'_>>,
    ) -> HeadOutput {
        let input = x.detach().set_requires_grad(gradient.is_some());
        let normed = self.norm(params, &input);
        let flat = normed.detach().reshape([-1, x.size()[2]]);
        let (loss_sum, hidden_grad) =
            no_grad(|| linear_cross_entropy(&flat, &projection.detach(), targets, gradient));
        let saved =
            hidden_grad.map(|grad| Saved { normed_grad: grad.view_as(&normed), input, normed });
        HeadOutput { loss_sum, targets: targets.count(), saved }
    }

    /// The gradients for what [`Head::loss`] kept; `None` if it ran without `gradient`.
    ///
    /// # Errors
    /// libtorch refuses, or memory is exhausted.
    pub fn backward(&self, params: &[Tensor], output: HeadOutput) -> Result<Option<HeadGrads>> {
        let Some(saved) = output.saved else { return Ok(None) };
        let inputs = [&saved.input, &params[0], &params[1]];
        let grads = ops::grad(&saved.normed, &saved.normed_grad, &inputs)?;
        let mut grads =
            grads.into_iter().zip(inputs).map(|(g, x)| g.unwrap_or_else(|| x.zeros_like()));
        let input = grads.next().expect("three inputs have three gradients");
        Ok(Some(HeadGrads { input, params: grads.collect() }))
    }
}
