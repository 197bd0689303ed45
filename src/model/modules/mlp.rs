//! The network of a block between its channels: two linear layers with an activation, or three with a
//! gate.

use super::{
    Divided, Linear, dropout,
    gated::{each_alone, gated},
};
use crate::{
    config_json::Activation,
    error::{Code, Error, Result},
    model::{
        cost::{Operation, Tape, Workload},
        layer::Context,
        param_id::ParamId,
        params::Params,
        profile::{ModuleProfile, record},
    },
    tensor::Tensor,
    tensor_parallel::Split,
};

/// The MLP of a block.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) gate: Gate,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
    /// After the activation.
    pub(crate) dropout: f64,
}

/// The factor of the inner activations, by a layer `L` or without one.
#[derive(Debug)]
pub(crate) enum Gate<L = Linear> {
    /// Nothing.
    None,
    /// The activation of a layer beside `up`.
    Layer(L),
    /// The activation of the first half of `up`.
    InUp,
}

/// The outputs of a layer that has the gate's before those that it is multiplied with.
pub(super) fn halves(both: &Tensor) -> Result<[Tensor; 2]> {
    let halves = both.f_chunk(2, -1)?.try_into();
    halves.map_err(|_| Error::new(Code::Internal, "two halves of gate and up"))
}

impl Mlp {
    /// The network on `x` `[B, T, C]`, before the block's dropout.
    pub(crate) fn forward(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        record(context.recorder, "mlp", || {
            let x = &p.enter(x)?;
            if let Some(shards) = self.shards(p, x, context) {
                return self.down.summed(p, self.tiled(p, x, shards, context)?);
            }
            let inner = self.inner(p, x, context)?;
            let inner = dropout(inner, self.dropout, context.train);
            self.down.forward_sum(p, &inner, context)
        })
    }

    /// How ranks divide the parameters: by the inner activations.
    pub(crate) fn splits(&self) -> Vec<(ParamId, Split)> {
        let width = self.down.inputs();
        let mut splits = self.down.by_inputs();
        if let Gate::Layer(gate) = &self.gate {
            splits.extend(gate.by_outputs(&[width]));
        }
        let halves = if matches!(self.gate, Gate::InUp) { 2 } else { 1 };
        splits.extend(self.up.by_outputs(&[width, width][..halves]));
        splits
    }

    /// The number of inner activations.
    pub(crate) fn width(&self) -> i64 {
        self.down.inputs()
    }

    fn inner(&self, p: &Params<'_>, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let activate = |inputs: &[&Tensor], work: fn(Activation, &[Tensor]) -> Result<Tensor>| {
            record(context.recorder, "act", || {
                let work = |inputs: &[Tensor]| work(self.activation, inputs);
                let size = inputs[0].size();
                match (context.decode_rows(), context.texts(size[1])) {
                    (Some(_), _) => each_alone(inputs, 0, &vec![1; size[0] as usize], work),
                    (None, Some(texts)) => each_alone(inputs, 1, &texts, work),
                    _ => work(&inputs.iter().map(|x| x.shallow_clone()).collect::<Vec<_>>()),
                }
            })
        };
        let of_both = |activation, x: &[Tensor]| gated(activation, &x[0], &x[1]);
        match &self.gate {
            Gate::None => {
                let up = self.up.forward(p, x, context)?;
                activate(&[&up], |activation, x| activation.of(&x[0]))
            }
            Gate::Layer(gate) => {
                let [gate, up] = Linear::forward_all([gate, &self.up], p, x, context)?;
                activate(&[&gate, &up], of_both)
            }
            Gate::InUp => {
                let [gate, up] = halves(&self.up.forward(p, x, context)?)?;
                activate(&[&gate, &up], of_both)
            }
        }
    }

    /// Adds the cost; the input is kept if nothing before keeps it.
    pub(crate) fn cost(
        &self,
        work: &Workload,
        tape: &mut Tape,
        keeps_input: bool,
    ) -> ModuleProfile {
        let shards = work.tiled_mlp.map(|tiles| tiles.of(work.places() as i64, self.up.inputs()));
        tape.enter(work, self.up.inputs(), keeps_input);
        // What was gathered is kept by no layer.
        let keeps_input = keeps_input && !work.has_part_of_tokens();
        let profile = match shards.filter(|&shards| shards > 1) {
            Some(shards) => self.cost_of_slices(work, tape, (shards, keeps_input)),
            None => self.cost_at_once(work, tape, keeps_input),
        };
        tape.leave(work, self.down.outputs());
        profile
    }

    pub(super) fn cost_at_once(
        &self,
        work: &Workload,
        tape: &mut Tape,
        keeps_input: bool,
    ) -> ModuleProfile {
        let width = match self.gate {
            Gate::InUp => work.part(self.up.outputs()) / 2,
            _ => work.part(self.up.outputs()),
        };
        let by_inner = (work, Divided::Outputs);
        let inner = work.bytes(width);
        let first = match &self.gate {
            Gate::Layer(gate) => Linear::cost([gate, &self.up], by_inner, tape, keeps_input),
            _ => Linear::cost([&self.up], by_inner, tape, keeps_input),
        };
        let both = Operation {
            kept: 2 * inner,
            transient: 2 * inner,
            gradient: 2 * inner,
            ..Operation::default()
        };
        match self.gate {
            Gate::None => {
                tape.push(Operation { kept: inner, gradient: inner, ..Operation::default() })
            }
            Gate::Layer(_) => tape.push(both),
            Gate::InUp => {
                // The halves' gradients are put together.
                tape.push(Operation { kept: 0, gradient: 2 * inner, ..Operation::default() });
                tape.push(both);
            }
        }
        if self.dropout > 0.0 {
            tape.push(Operation {
                kept: work.mask_bytes(width),
                gradient: inner,
                ..Operation::default()
            });
        }
        // Of a ReLU the output is enough, which the next layer needs too.
        let shares = matches!(self.gate, Gate::None) && self.activation == Activation::Relu;
        let keeps_inner = !shares || self.dropout > 0.0;
        let down = Linear::cost([&self.down], (work, Divided::Inputs), tape, keeps_inner);
        let activation = ModuleProfile {
            flops: work.places() * width.unsigned_abs(),
            ..ModuleProfile::new("act", self.activation.name())
        };
        ModuleProfile::new("mlp", "Mlp").with(vec![first, activation, down])
    }
}
