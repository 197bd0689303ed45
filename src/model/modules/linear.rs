//! Linear layers: `y = x @ W + b`.
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
    model::{
        adapters::Lora,
        codes::Codes,
        cost::{Operation, Tape, Workload},
        layer::Context,
        param_id::ParamId,
        param_spec::Init,
        params::{LayerBuilder, LoraParam, Params},
        profile::{ModuleProfile, record},
        unit_gradient::ParamSink,
    },
    tensor::{Tensor, no_grad},
    tensor_parallel::Split,
};

/// One linear layer.
#[derive(Debug)]
pub(crate) struct Linear {
    /// The last part of its name.
    name: String,
    weight: ParamId,
    bias: Option<ParamId>,
    inputs: i64,
    outputs: i64,
    /// Whether the weight is stored `[in, out]`, as transformers' `Conv1D` does.
    is_conv1d: bool,
}

impl Linear {
    /// A layer `name` from `inputs` to `outputs`, whose weight is stored `[out, in]`.
    pub(crate) fn new(
        b: &mut LayerBuilder,
        name: &str,
        shape: (i64, i64),
        has_bias: bool,
        init: Init,
    ) -> Self {
        Self::stored(b, name, shape, has_bias, init, false)
    }

    /// One whose weight is stored `[in, out]`, with a bias.
    pub(crate) fn conv1d(b: &mut LayerBuilder, name: &str, shape: (i64, i64), init: Init) -> Self {
        Self::stored(b, name, shape, true, init, true)
    }

    fn stored(
        b: &mut LayerBuilder,
        name: &str,
        (inputs, outputs): (i64, i64),
        has_bias: bool,
        init: Init,
        is_conv1d: bool,
    ) -> Self {
        let shape = if is_conv1d { [inputs, outputs] } else { [outputs, inputs] };
        let weight = b.add_matrix(&format!("{name}.weight"), &shape, (inputs, outputs), init);
        let bias = has_bias.then(|| b.add(&format!("{name}.bias"), &[outputs], Init::Zeros));
        if is_conv1d {
            b.is_by_inputs(weight);
        }
        let name = name.rsplit('.').next().unwrap_or(name).to_owned();
        Self { name, weight, bias, inputs, outputs, is_conv1d }
    }

    /// The split of the parameters by outputs, which are these blocks.
    pub(crate) fn by_outputs(&self, blocks: &[i64]) -> Vec<(ParamId, Split)> {
        let split = |dim| Split::Even { dim, blocks: blocks.to_vec() };
        let weight = (self.weight, split(usize::from(self.is_conv1d)));
        [weight].into_iter().chain(self.bias.map(|bias| (bias, split(0)))).collect()
    }

    /// The split of the weight by inputs; the bias is added to the sum of the products.
    pub(crate) fn by_inputs(&self) -> Vec<(ParamId, Split)> {
        let dim = usize::from(!self.is_conv1d);
        vec![(self.weight, Split::Even { dim, blocks: vec![self.inputs] })]
    }

    /// Width of the input.
    pub(crate) fn inputs(&self) -> i64 {
        self.inputs
    }

    /// The output of a layer that is split by inputs, of which `x` has this rank's.
    pub(crate) fn forward_sum(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        if !p.is_shared() {
            return self.forward(p, x, context);
        }
        let product = record(context.recorder, self.name.clone(), || {
            let mut size = x.size();
            let width = size.pop().unwrap_or(1);
            let flat = x.f_reshape([-1, width])?;
            let weights = self.weights(p, &flat, context);
            let weights = Weights { bias: None, bias_sink: None, ..weights };
            let product = outputs([&weights], &flat, p.has_sink())?.swap_remove(0);
            size.push(-1);
            Ok::<_, Error>(product.f_view(&size[..])?)
        })?;
        self.summed(p, product)
    }

    /// Width of the output.
    pub(crate) fn outputs(&self) -> i64 {
        self.outputs
    }

    /// The output for `x` `[.., in]`: `[.., out]`.
    pub(crate) fn forward(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let [y] = Self::forward_all([self], p, x, context)?;
        Ok(y)
    }

    /// The outputs of several layers for one input.
    pub(crate) fn forward_all<const N: usize>(
        layers: [&Self; N],
        p: &Params<'_>,
        x: &Tensor,
        context: &Context<'_>,
    ) -> Result<[Tensor; N]> {
        record(context.recorder, Self::names(layers), || {
            let mut size = x.size();
            let width = size.pop().unwrap_or(1);
            let flat = x.f_reshape([-1, width])?;
            let weights = layers.map(|layer| layer.weights(p, &flat, context));
            let outputs = if weights.iter().any(Weights::has_magnitude) {
                let one = |layer: &Weights| layer.with_magnitude(&flat, p.has_sink());
                weights.iter().map(one).collect::<Result<_>>()?
            } else {
                outputs(weights.each_ref(), &flat, p.has_sink())?
            };
            let shaped = outputs.iter().map(|y| {
                let shape = [&size[..], &[-1]].concat();
                Ok(y.f_view(&shape[..])?)
            });
            let shaped: Vec<_> = shaped.collect::<Result<_>>()?;
            shaped.try_into().map_err(|_| Error::new(Code::Internal, "an output for each layer"))
        })
    }

    /// Its parameters in a pass, for the input `[n, in]`.
    fn weights(&self, p: &Params<'_>, x: &Tensor, context: &Context<'_>) -> Weights {
        let OwnedLinear { weights, lora } = self.owned(p);
        let texts = context.rows_of_texts(x.size()[0]).map(Rc::from);
        let branch = lora.map(|lora| Branch::new(lora, x, context.train));
        Weights { texts, branch, ..weights }
    }

    /// The layer apart from this pass.
    pub(super) fn owned(&self, p: &Params<'_>) -> OwnedLinear {
        let weights = Weights {
            texts: None,
            weight: p.tensor(self.weight).shallow_clone(),
            codes: p.codes(self.weight),
            outputs: self.outputs,
            bias: self.bias.map(|bias| p.tensor(bias).shallow_clone()),
            weight_sink: p.sink(self.weight),
            bias_sink: self.bias.and_then(|bias| p.sink(bias)),
            branch: None,
            is_conv1d: self.is_conv1d,
        };
        OwnedLinear { weights, lora: p.lora(self.weight) }
    }

    /// The sum over the ranks that share the layer of their `products`, with the bias.
    pub(super) fn summed(&self, p: &Params<'_>, products: Tensor) -> Result<Tensor> {
        if !p.is_shared() {
            return Ok(products);
        }
        let sum = p.leave(products)?;
        match self.bias {
            Some(bias) => Ok(sum.f_add(p.tensor(bias))?),
            None => Ok(sum),
        }
    }

    fn names<const N: usize>(layers: [&Self; N]) -> String {
        layers.map(|layer| layer.name.as_str()).join(", ")
    }

    /// Adds the cost of the layers, of which the input is kept if nothing before keeps it; `part` is
    /// what ranks divide.
    pub(crate) fn cost<const N: usize>(
        layers: [&Self; N],
        (work, part): (&Workload, Divided),
        tape: &mut Tape,
        keeps_input: bool,
    ) -> ModuleProfile {
        let shape = |layer: &Self| match part {
            Divided::Nothing => (layer.inputs, layer.outputs),
            Divided::Inputs => (work.part(layer.inputs), layer.outputs),
            Divided::Outputs => (layer.inputs, work.part(layer.outputs)),
        };
        let inputs = layers.first().map_or(0, |layer| shape(layer).0);
        let weights =
            layers.iter().map(|layer| shape(layer)).map(|(inputs, outputs)| inputs * outputs);
        let input = work.bytes(inputs);
        tape.push(Operation {
            kept: if keeps_input { input } else { 0 },
            transient: weights.map(|numel| work.matrix_gradient_bytes(numel)).max().unwrap_or(0),
            gradient: input,
            ..Operation::default()
        });
        let kind = if layers.iter().any(|layer| layer.is_conv1d) { "Conv1D" } else { "Linear" };
        let (rows, mut profile) =
            (work.places() as i64, ModuleProfile::new(Self::names(layers), kind));
        for layer in layers {
            let has_bias = layer.bias.is_some();
            let part = ModuleProfile::linear(&layer.name, kind, rows, shape(layer), has_bias);
            profile.params += part.params;
            profile.macs += part.macs;
            profile.flops += part.flops;
        }
        profile
    }
}

/// The side of a layer that ranks divide among them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Divided {
    /// Neither.
    Nothing,
    /// The inputs.
    Inputs,
    /// The outputs.
    Outputs,
}

/// The parameters of one layer, for its forward and its backward pass.
struct Weights {
    /// The rows of each text of the input, where they are several.
    texts: Option<Rc<[i64]>>,
    /// Without its values where there are codes.
    weight: Tensor,
    codes: Option<(Rc<Codes>, usize)>,
    outputs: i64,
    bias: Option<Tensor>,
    weight_sink: Option<ParamSink>,
    bias_sink: Option<ParamSink>,
    /// What an adapter adds.
    branch: Option<Branch>,
    is_conv1d: bool,
}

impl Weights {
    /// The weight as `[in, out]`.
    fn matrix(&self) -> Result<Tensor> {
        Ok(if self.is_conv1d { self.weight.shallow_clone() } else { self.weight.f_tr()? })
    }

    /// The product outside of a training.
    fn inferred(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.codes {
            Some((codes, index)) => codes.multiply(*index, self.outputs, x, self.bias.as_ref())?,
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

    fn has_magnitude(&self) -> bool {
        self.branch.as_ref().is_some_and(Branch::has_magnitude)
    }

    /// The output where an adapter may have magnitudes; `by_hand` as for [`outputs`].
    fn with_magnitude(&self, x: &Tensor, by_hand: bool) -> Result<Tensor> {
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
    weights: Weights,
    lora: Option<Lora<LoraParam>>,
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
fn outputs<const N: usize>(
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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::{
        bridge::autograd::grad,
        model::{
            FlatUnit,
            masks::Masks,
            params::Places,
            unit_gradient::{Sink, UnitGradients},
        },
        tensor::{Device, Kind},
    };

    /// Beside autograd's gradients; sums of six products in float32, hence 1e-6.
    #[test]
    fn the_gradients_go_where_autograds_would() {
        let mut b = LayerBuilder::new("layer");
        b.add("other", &[3], Init::Zeros);
        let one = Linear::conv1d(&mut b, "one", (4, 5), Init::Zeros);
        let two = Linear::new(&mut b, "two", (4, 7), false, Init::Zeros);
        let unit = FlatUnit::zeros(b.into_parts().0, Device::Cpu).unwrap();
        let cpu = (Kind::Float, Device::Cpu);
        for param in &unit.params()[1..] {
            no_grad(|| param.shallow_clone().copy_(&Tensor::randn(param.size(), cpu)));
        }
        let units: Rc<[FlatUnit]> = Rc::new([unit]);
        let places = Places::of_unit(&units, 0);
        let masks = Masks::default();
        let context = Context::new(&masks);
        let x = Tensor::randn([2, 3, 4], cpu).set_requires_grad(true);
        let weights = [Tensor::randn([2, 3, 5], cpu), Tensor::randn([2, 3, 7], cpu)];
        let inputs: Vec<&Tensor> = [&x].into_iter().chain(&units[0].params()[1..]).collect();
        let gradients = |sink: Option<&Sink>| {
            let params = Params::new(&units, &places, sink);
            let [a, b] = Linear::forward_all([&one, &two], &params, &x, &context).unwrap();
            (a, b)
        };
        let (a, b) = gradients(None);
        let expected = grad(&[(&a, &weights[0]), (&b, &weights[1])], &inputs).unwrap();
        let sink = Sink::new(&units, Kind::Float);
        let (a, b) = gradients(Some(&sink));
        let step = Rc::new(RefCell::new(UnitGradients::new(&units, Kind::Float)));
        sink.turn_to(&step).unwrap();
        let made = grad(&[(&a, &weights[0]), (&b, &weights[1])], &inputs).unwrap();
        assert!(made[1..].iter().all(Option::is_none));
        let flat = step.borrow_mut().take(0).unwrap().complete().unwrap();
        let views = units[0].views(&flat);
        let made = [made[0].as_ref().unwrap()].into_iter().chain(&views[1..]);
        for (made, expected) in made.zip(expected) {
            assert!(made.allclose(&expected.unwrap(), 1e-6, 1e-6, false));
        }
    }
}
