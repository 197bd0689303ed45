//! An MLP over slices of tokens, one after another (TiledMLP of Arctic Long Sequence Training, Bekman et al.
//! 2025): its inner activations are those of one slice.
//!
//! The forward pass keeps the input alone. The backward pass runs each slice once more, with a graph, and
//! goes back through it before the next: what it adds to the gradients of the units is added slice by slice.

use super::{
    Linear, Mlp, dropout,
    gated::gated,
    mlp::{Gate, halves},
    products::OwnedLinear,
};
use crate::{
    bridge::autograd::{grad, own_gradient},
    config_json::Activation,
    error::{Code, Error, Result},
    model::{
        cost::{Operation, Tape, Workload},
        layer::Context,
        params::Params,
        profile::ModuleProfile,
    },
    tensor::{Device, Kind, Tensor, manual_seed, mix, no_grad, with_grad},
};

/// The network of an MLP apart from a pass, to be run again in its backward pass.
struct Network {
    gate: Gate<OwnedLinear>,
    up: OwnedLinear,
    down: OwnedLinear,
    activation: Activation,
    dropout: f64,
    trains: bool,
    /// The seed of the first slice, if something is dropped out.
    seed: Option<u64>,
}

impl Mlp {
    /// The network on `x` `[B, T, C]` in `shards` slices, before the sum over the ranks that share it.
    pub(super) fn tiled(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        shards: i64,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let size = x.size();
        let x = x.f_reshape([-1, size[size.len() - 1]])?;
        let tokens = x.size()[0];
        let slice = (tokens + shards - 1) / shards;
        let network = Network::new(self, p, context)?;
        let y = no_grad(|| network.forward(&x, slice))?;
        let leaves = network.leaves();
        let needs_input = x.requires_grad();
        if p.has_sink() && (needs_input || !leaves.is_empty()) {
            let kept = x.detach();
            let inputs: Vec<Tensor> =
                [&x].into_iter().chain(&leaves).map(Tensor::shallow_clone).collect();
            own_gradient(&inputs.iter().collect::<Vec<_>>(), &y, move |grad| {
                network.backward(&kept, (slice, needs_input), grad)
            })?;
        }
        let whole = [&size[..size.len() - 1], &[-1]].concat();
        Ok(y.f_view(&whole[..])?)
    }

    /// The slices of a pass over `tokens` tokens; `None` where they are run at once.
    pub(super) fn shards(&self, p: &Params<'_>, x: &Tensor, context: &Context<'_>) -> Option<i64> {
        // Texts that are generated are computed each as it is alone.
        let shards = context.tiled_mlp.filter(|_| context.cache.is_none())?;
        // Without a sink autograd differentiates the MLP, and needs the graph of all of it.
        if !p.has_sink() && x.requires_grad() {
            return None;
        }
        let size = x.size();
        let tokens = size[..size.len() - 1].iter().product::<i64>();
        Some(shards.of(tokens, self.up.inputs())).filter(|&shards| shards > 1)
    }

    /// Adds the cost in slices; the input is kept if nothing before keeps it.
    pub(super) fn cost_of_slices(
        &self,
        work: &Workload,
        tape: &mut Tape,
        (shards, keeps_input): (i64, bool),
    ) -> ModuleProfile {
        let slice = Workload { rows: 1, tokens: work.places().div_ceil(shards as u64), ..*work };
        let mut inside = Tape::new();
        let profile = self.cost_at_once(&slice, &mut inside, false);
        let output = slice.bytes(self.down.outputs());
        let held = inside.cost(profile, output);
        let input = work.bytes(self.up.inputs());
        tape.push(Operation {
            kept: if keeps_input { input } else { 0 },
            // Beside the gradient of the input; that of the slice's output is a part of the whole one.
            transient: input + held.backward.activations + held.backward.buffers - output,
            gradient: input,
            ..Operation::default()
        });
        self.cost_at_once(work, &mut Tape::new(), false)
    }
}

impl Network {
    fn new(mlp: &Mlp, p: &Params<'_>, context: &Context<'_>) -> Result<Self> {
        let own = |layer: &Linear| layer.owned(p);
        let gate = match &mlp.gate {
            Gate::None => Gate::None,
            Gate::Layer(gate) => Gate::Layer(own(gate)),
            Gate::InUp => Gate::InUp,
        };
        // The bias is added to the sum over the ranks.
        let down = if p.is_shared() { own(&mlp.down).without_bias() } else { own(&mlp.down) };
        let (activation, dropout, trains) = (mlp.activation, mlp.dropout, context.train);
        let up = own(&mlp.up);
        let mut network = Self { gate, up, down, activation, dropout, trains, seed: None };
        let draws = dropout > 0.0 || network.layers().any(OwnedLinear::drops);
        if trains && draws {
            // From the layer's generator, so that a run of the layer again draws the same.
            let drawn = Tensor::f_randint(i64::MAX, [1], (Kind::Int64, Device::Cpu))?;
            network.seed = Some(drawn.int64_value(&[0]).unsigned_abs());
        }
        Ok(network)
    }

    fn layers(&self) -> impl Iterator<Item = &OwnedLinear> {
        let gate = match &self.gate {
            Gate::Layer(gate) => Some(gate),
            Gate::None | Gate::InUp => None,
        };
        gate.into_iter().chain([&self.up, &self.down])
    }

    /// The parameters that have a gradient.
    fn leaves(&self) -> Vec<Tensor> {
        let all = self.layers().flat_map(OwnedLinear::tensors);
        all.filter(Tensor::requires_grad).collect()
    }

    /// Slice `i` `[n, C]` through the network; `by_hand` makes the gradients of parameters go to their units.
    fn run(&self, x: &Tensor, i: usize, by_hand: bool) -> Result<Tensor> {
        if let Some(seed) = self.seed {
            manual_seed(mix(&[seed, i as u64]));
        }
        let modes = (self.trains, by_hand);
        let up = || OwnedLinear::forward_all([&self.up], x, modes);
        let inner = match &self.gate {
            Gate::None => self.activation.of(&up()?[0])?,
            Gate::Layer(gate) => {
                let [gate, up] = OwnedLinear::forward_all([gate, &self.up], x, modes)?;
                gated(self.activation, &gate, &up)?
            }
            Gate::InUp => {
                let [gate, up] = halves(&up()?[0])?;
                gated(self.activation, &gate, &up)?
            }
        };
        let inner = dropout(inner, self.dropout, self.trains);
        let [y] = OwnedLinear::forward_all([&self.down], &inner, modes)?;
        Ok(y)
    }

    fn forward(&self, x: &Tensor, slice: i64) -> Result<Tensor> {
        let mut whole: Option<Tensor> = None;
        for (i, (from, len)) in slices(x.size()[0], slice).enumerate() {
            let y = self.run(&x.f_narrow(0, from, len)?, i, false)?;
            let all = match whole.take() {
                Some(all) => all,
                None => Tensor::f_empty([x.size()[0], y.size()[1]], (y.kind(), y.device()))?,
            };
            all.f_narrow(0, from, len)?.f_copy_(&y)?;
            whole = Some(all);
        }
        whole.ok_or_else(|| Error::new(Code::Internal, "an MLP without tokens"))
    }

    /// The gradients of the input and of what [`Network::leaves`] names.
    fn backward(
        &self,
        x: &Tensor,
        (slice, needs_input): (i64, bool),
        grad_of_all: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let leaves = self.leaves();
        let input_grad = needs_input.then(|| x.f_empty_like()).transpose()?;
        let mut sums: Vec<Option<Tensor>> = leaves.iter().map(|_| None).collect();
        for (i, (from, len)) in slices(x.size()[0], slice).enumerate() {
            let part = x.f_narrow(0, from, len)?.detach().set_requires_grad(needs_input);
            let y = with_grad(|| self.run(&part, i, true))?;
            let inputs: Vec<&Tensor> =
                needs_input.then_some(&part).into_iter().chain(&leaves).collect();
            let mut made =
                grad(&[(&y, &grad_of_all.f_narrow(0, from, len)?)], &inputs)?.into_iter();
            if let Some(all) = &input_grad {
                let of_part = made.next().flatten();
                let of_part = of_part
                    .ok_or_else(|| Error::new(Code::Internal, "an input without a gradient"))?;
                no_grad(|| all.f_narrow(0, from, len)?.f_copy_(&of_part))?;
            }
            for (sum, made) in sums.iter_mut().zip(made) {
                let Some(made) = made else { continue };
                *sum = Some(match sum.take() {
                    Some(sum) => no_grad(|| sum.f_add(&made))?,
                    None => made,
                });
            }
        }
        Ok([input_grad].into_iter().chain(sums).collect())
    }
}

/// Where each slice of `tokens` tokens begins, and how long it is.
fn slices(tokens: i64, slice: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..tokens).step_by(slice.max(1) as usize).map(move |from| (from, slice.min(tokens - from)))
}
