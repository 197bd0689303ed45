//! Linear layers: `y = x @ W + b`.

use std::rc::Rc;

use super::{
    lora::Branch,
    products::{OwnedLinear, Weights, outputs},
};
use crate::{
    bridge::decode::{Matrix, separate_rows},
    error::{Code, Error, Result},
    model::{
        cost::{Operation, Tape, Workload},
        layer::Context,
        param_id::ParamId,
        param_spec::Init,
        params::{LayerBuilder, Params},
        profile::{ModuleProfile, record},
    },
    tensor::Tensor,
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
            if let Some(made) = Self::of_next_tokens(layers, p, x, context)? {
                return Ok(made);
            }
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

    /// The outputs of a pass of one token a text, made together; `None` with an adapter, whose branch is
    /// added to each, and where there is no kernel for it.
    fn of_next_tokens<const N: usize>(
        layers: [&Self; N],
        p: &Params<'_>,
        x: &Tensor,
        context: &Context<'_>,
    ) -> Result<Option<[Tensor; N]>> {
        let has_branch = layers.iter().any(|layer| p.lora(layer.weight).is_some());
        if context.decode_rows().is_none() || p.has_sink() || has_branch {
            return Ok(None);
        }
        let bias = |layer: &Self| layer.bias.map(|bias| p.tensor(bias));
        let coded: Vec<_> = layers.iter().filter_map(|layer| p.codes(layer.weight)).collect();
        let made = match &coded[..] {
            [] => separate_rows(x, &layers.map(|layer| (layer.matrix_of(p), bias(layer))))?,
            [(codes, _), ..] if coded.len() == N => {
                let one = |((_, index), layer): (&_, &&Self)| (*index, layer.outputs, bias(layer));
                let params: Vec<_> = coded.iter().zip(&layers).map(one).collect();
                Some(codes.multiply(x, &params)?)
            }
            _ => None,
        };
        Ok(made.and_then(|made| made.try_into().ok()))
    }

    fn matrix_of<'p>(&self, p: &Params<'p>) -> Matrix<'p> {
        let weight = p.tensor(self.weight);
        if self.is_conv1d { Matrix::ByInputs(weight) } else { Matrix::ByOutputs(weight) }
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
        tensor::{Device, Kind, no_grad},
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
