//! The products of linear layers in a pass, with what adapters add.
//!
//! In a training their gradients go straight into the flat gradient of the unit: the product adds that
//! of the weight there itself, in 16 bits in float32 where the device can. Autograd would make a
//! tensor of the weight's size, in the weight's format, only to have it added to the one that exists.
//! Layers with one input are one operation, whose products add up in the gradient of the input.

use std::rc::Rc;

use super::lora::Branch;
use crate::{
    bridge::{
        autograd::own_gradients,
        decode::Matrix,
        ops::product,
        texts::{addmm, product_of_texts},
    },
    error::{Code, Error, Result},
    model::{adapters::Lora, codes::Codes, params::LoraParam, unit_gradient::ParamSink},
    tensor::{Tensor, no_grad},
};

/// The parameters of one layer, for its forward and its backward pass.
pub(super) struct Weights {
    /// The rows of each text of the input, where they are several.
    pub(super) texts: Option<Rc<[i64]>>,
    /// Without its values where there are codes.
    pub(super) weight: Tensor,
    pub(super) codes: Option<(Rc<Codes>, usize)>,
    pub(super) outputs: i64,
    pub(super) bias: Option<Tensor>,
    pub(super) weight_sink: Option<ParamSink>,
    pub(super) bias_sink: Option<ParamSink>,
    /// The product of an adapter, which is added.
    pub(super) branch: Option<Branch>,
    pub(super) is_conv1d: bool,
}

impl Weights {
    /// The weight as `[in, out]`.
    fn matrix(&self) -> Result<Tensor> {
        Ok(if self.is_conv1d { self.weight.shallow_clone() } else { self.weight.f_tr()? })
    }

    /// The product outside of a training.
    fn inferred(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.codes {
            Some((codes, index)) => {
                codes.multiply(x, &[(*index, self.outputs, self.bias.as_ref())])?.swap_remove(0)
            }
            None => self.multiplied(x)?,
        };
        match &self.branch {
            Some(branch) => branch.added(&y, x, self.texts.as_deref()),
            None => Ok(y),
        }
    }

    fn multiplied(&self, x: &Tensor) -> Result<Tensor> {
        let stored = match self.is_conv1d {
            true => Matrix::ByInputs(&self.weight),
            false => Matrix::ByOutputs(&self.weight),
        };
        product_of_texts(x, stored, self.bias.as_ref(), self.texts.as_deref())
    }

    pub(super) fn has_magnitude(&self) -> bool {
        self.branch.as_ref().is_some_and(Branch::has_magnitude)
    }

    /// The output where an adapter may have magnitudes; `by_hand` as for [`outputs`].
    pub(super) fn with_magnitude(&self, x: &Tensor, by_hand: bool) -> Result<Tensor> {
        let one = |weights: &Self, x: &Tensor| -> Result<Tensor> {
            let mut made = outputs([weights], x, by_hand)?;
            made.pop().ok_or_else(|| Error::new(Code::Internal, "an output for a layer"))
        };
        let factors = match &self.branch {
            Some(branch) => branch.factors(&self.weight, i64::from(!self.is_conv1d))?,
            None => None,
        };
        let (Some(factors), Some(branch)) = (factors, &self.branch) else { return one(self, x) };
        let bare = || Self { bias: None, bias_sink: None, ..self.shallow_clone() };
        let Some(dropped) = branch.dropped() else {
            let y = one(&bare(), x)?.f_mul(&factors)?;
            return Ok(match &self.bias {
                Some(bias) => y.f_add(bias)?,
                None => y,
            });
        };
        // The output of the base has no dropout, what the adapter makes of it has.
        let base = one(&Self { branch: None, ..self.shallow_clone() }, x)?;
        let without = one(&Self { branch: None, ..bare() }, dropped)?;
        let with = one(&Self { branch: Some(branch.of_dropped()), ..bare() }, dropped)?;
        Ok(base.f_add(&with.f_mul(&factors)?.f_sub(&without)?)?)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        addmm(x, &self.matrix()?, self.bias.as_ref(), None)
    }

    /// Adds the gradients of the parameters for the input `x` and the output's gradient.
    fn add_gradients(&self, x: Option<&Tensor>, grad: &Tensor) -> Result<()> {
        if let (Some(sink), Some(x)) = (&self.weight_sink, x) {
            let factors = match self.is_conv1d {
                true => (x.f_tr()?, grad.shallow_clone()),
                false => (grad.f_tr()?, x.shallow_clone()),
            };
            sink.with(|unit, i| unit.add_product(i, (&factors.0, &factors.1), 1.0))?;
        }
        match &self.bias_sink {
            Some(sink) => sink.with(|unit, i| unit.add_rows(i, 0, grad)),
            None => Ok(()),
        }
    }

    /// The gradient of the input: a new tensor, or added to that of the layers before.
    fn input_gradient(&self, grad: &Tensor, so_far: Option<Tensor>) -> Result<Tensor> {
        let matrix = self.matrix()?.f_tr()?;
        match so_far {
            None => Ok(grad.f_mm(&matrix)?),
            Some(sum) => {
                product(&sum, (grad, &matrix), 1.0, 1.0)?;
                Ok(sum)
            }
        }
    }
}

/// A layer apart from a pass, to be run on several inputs and again in a backward pass.
pub(super) struct OwnedLinear {
    pub(super) weights: Weights,
    pub(super) lora: Option<Lora<LoraParam>>,
}

impl OwnedLinear {
    /// The same without its bias.
    pub(super) fn without_bias(self) -> Self {
        let weights = Weights { bias: None, bias_sink: None, ..self.weights };
        Self { weights, ..self }
    }

    /// Whether an adapter draws random numbers.
    pub(super) fn drops(&self) -> bool {
        self.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0)
    }

    /// Its parameters.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let lora = self.lora.iter().flat_map(|lora| {
            [Some(&lora.a), Some(&lora.b), lora.magnitude.as_ref()].into_iter().flatten()
        });
        let own = [&self.weights.weight].into_iter().chain(&self.weights.bias);
        own.chain(lora.map(|param| &*param.tensor)).map(Tensor::shallow_clone).collect()
    }

    /// The outputs of several layers for `x` `[n, in]` in a training or not; `by_hand` as for [`outputs`].
    pub(super) fn forward_all<const N: usize>(
        layers: [&Self; N],
        x: &Tensor,
        (trains, by_hand): (bool, bool),
    ) -> Result<[Tensor; N]> {
        let weights = layers.map(|layer| {
            let branch = layer.lora.clone().map(|lora| Branch::new(lora, x, trains));
            Weights { branch, ..layer.weights.shallow_clone() }
        });
        let made = if weights.iter().any(Weights::has_magnitude) {
            weights.iter().map(|layer| layer.with_magnitude(x, by_hand)).collect::<Result<_>>()?
        } else {
            outputs(weights.each_ref(), x, by_hand)?
        };
        made.try_into().map_err(|_| Error::new(Code::Internal, "an output for each layer"))
    }
}

/// The outputs for `x` `[n, in]`, without magnitudes; in a training their gradients are made by hand.
pub(super) fn outputs<const N: usize>(
    layers: [&Weights; N],
    x: &Tensor,
    by_hand: bool,
) -> Result<Vec<Tensor>> {
    match by_hand {
        true => products(&layers, x),
        false => layers.iter().map(|layer| layer.inferred(x)).collect(),
    }
}

/// The products with `x` `[n, in]` in a training.
fn products<const N: usize>(layers: &[&Weights; N], x: &Tensor) -> Result<Vec<Tensor>> {
    let mut kept = Vec::with_capacity(N);
    let outputs = no_grad(|| {
        let output = |layer: &&Weights| {
            let y = layer.product(x)?;
            kept.push(layer.branch.as_ref().map(|branch| branch.add_to(&y, x)).transpose()?);
            Ok(y)
        };
        layers.iter().map(output).collect::<Result<Vec<_>>>()
    })?;
    let needs_input = x.requires_grad();
    let layers = layers.map(Weights::shallow_clone);
    let tensors = layers.iter().flat_map(Weights::tensors);
    let inputs: Vec<Tensor> = [x].into_iter().chain(tensors).map(Tensor::shallow_clone).collect();
    if !inputs.iter().any(Tensor::requires_grad) {
        return Ok(outputs);
    }
    // The gradients of weights alone need it.
    let input = layers.iter().any(Weights::keeps_input).then(|| x.shallow_clone());
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    own_gradients(&inputs, &outputs.iter().collect::<Vec<_>>(), move |grads| {
        let (mut input_grad, mut rest) = (None, Vec::new());
        for ((layer, kept), grad) in layers.iter().zip(&kept).zip(grads) {
            let mut of_layer: Vec<Option<Tensor>> = layer.tensors().iter().map(|_| None).collect();
            if let Some(grad) = grad {
                layer.add_gradients(input.as_ref(), grad)?;
                if needs_input {
                    input_grad = Some(layer.input_gradient(grad, input_grad.take())?);
                }
                if let (Some(branch), Some(kept)) = (&layer.branch, kept) {
                    let inner = branch.add_gradients(kept, input.as_ref(), grad)?;
                    let is_other = branch.dropped().is_some();
                    // The input with dropout is the last of the layer's tensors.
                    match of_layer.last_mut().filter(|_| is_other) {
                        Some(last) if needs_input => {
                            *last = Some(branch.input_gradient(&inner, None)?);
                        }
                        None if needs_input => {
                            input_grad = Some(branch.input_gradient(&inner, input_grad.take())?);
                        }
                        _ => {}
                    }
                }
            }
            rest.append(&mut of_layer);
        }
        Ok([input_grad].into_iter().chain(rest).collect())
    })?;
    Ok(outputs)
}

impl Weights {
    /// The tensors that its outputs depend on beside the input; the input with dropout comes last.
    fn tensors(&self) -> Vec<&Tensor> {
        let branch = self.branch.iter();
        let adapter = branch.clone().flat_map(Branch::tensors);
        let dropped = branch.filter_map(Branch::dropped);
        [&self.weight].into_iter().chain(&self.bias).chain(adapter).chain(dropped).collect()
    }

    /// Whether its gradients need the input.
    fn keeps_input(&self) -> bool {
        let of_branch = |branch: &Branch| branch.keeps_input() && branch.dropped().is_none();
        self.weight_sink.is_some() || self.branch.as_ref().is_some_and(of_branch)
    }

    fn shallow_clone(&self) -> Self {
        Self {
            texts: self.texts.clone(),
            weight: self.weight.shallow_clone(),
            codes: self.codes.clone(),
            outputs: self.outputs,
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            weight_sink: self.weight_sink.clone(),
            bias_sink: self.bias_sink.clone(),
            branch: self.branch.clone(),
            is_conv1d: self.is_conv1d,
        }
    }
}
