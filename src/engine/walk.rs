//! The walk over the layers: forward, keeping what backward needs, and backward.
//!
//! Every layer runs on a detached input, so that autograd never sees more than one layer at a time:
//! the graph of a layer is freed as soon as its gradients are there. Dropout draws from libtorch's
//! generator, seeded before each layer from the run's seed and the layer's place ([`Seeds`]): a
//! recomputed layer draws the same masks, and a resumed run needs no generator state.

use super::{gradients::Gradients, stop::Stop};
use crate::{
    bridge::{autograd, memory, trace::range},
    config::ActivationCheckpointing,
    data::{Batch, TargetTensors},
    error::{Code, Error, Result},
    model::{
        Block, BlockContext, Direction, Embedding, FlatUnit, HeadOutput, LossFunction,
        LossGradient, Model, Recorder, Sink, Targets, UnitGradient, padding_mask, record,
    },
    tensor::{Copying, Device, Kind, Tensor, manual_seed, mix, no_grad, start_move},
};

/// The seeds of one micro batch's dropout masks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seeds(u64);

impl Seeds {
    pub(super) fn new(seed: u64, global_step: u64, micro_step: u64, rank: u64) -> Self {
        Self(mix(&[seed, global_step, micro_step, rank]))
    }

    /// Seeds libtorch for layer `layer_idx`: 0 is the embedding, block `i` is `i + 1`.
    fn plant(self, layer_idx: usize) {
        manual_seed(mix(&[self.0, layer_idx as u64]));
    }
}

/// How a micro batch is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    /// Which blocks keep their input alone.
    pub(super) checkpointing: Option<ActivationCheckpointing>,
    /// The seeds of dropout.
    pub(super) seeds: Seeds,
    /// The gradients will be those of the sum of the losses divided by this.
    pub(super) nominal: f64,
    /// The format in which they add up.
    pub(super) grad_kind: Kind,
}

/// What others have to do with a forward pass.
#[derive(Clone, Copy)]
pub(super) struct Hooks<'a> {
    /// The loss, where it is not the cross-entropy of the next token.
    pub(super) loss: Option<&'a LossFunction>,
    /// Measures the layers.
    pub(super) recorder: Option<&'a Recorder>,
    /// Is asked before each layer.
    pub(super) stop: &'a Stop,
}

/// What a forward pass leaves for the backward pass.
pub(super) struct Activations {
    input_ids: Tensor,
    embedded: Layer,
    blocks: Vec<Kept>,
    attention_mask: Option<Tensor>,
    head: HeadOutput,
    /// The gradient of the unit with the projection, as far as the loss made it.
    projection_grad: UnitGradient,
    seeds: Seeds,
}

/// A layer's detached input and its output with the graph between.
struct Layer {
    input: Tensor,
    output: Option<Tensor>,
}

/// What a block leaves for the backward pass.
enum Kept {
    /// Its input, its output with the graph between, and where the operations of the graph add their
    /// gradients.
    Graph(Tensor, Tensor, Sink),
    /// Its input, to run it again; this may be on its way to host memory, or back from there.
    Input(Copying),
}

impl Kept {
    /// The input alone, which with `on_host` waits in host memory.
    fn input(input: &Tensor, on_host: bool) -> Result<Self> {
        let home = if on_host { Device::Cpu } else { input.device() };
        Ok(Self::Input(start_move(input, home)?))
    }

    /// Starts to bring it to `device`.
    fn fetch(self, device: Device) -> Result<Self> {
        match self {
            Self::Input(input) => Ok(Self::Input(input.send_on(device)?)),
            graph @ Self::Graph(..) => Ok(graph),
        }
    }
}

impl Activations {
    /// Runs the model on `batch` with dropout; `targets` are those of its labels.
    pub(super) fn forward(
        model: &Model,
        batch: &Batch,
        targets: &Targets,
        pass: Pass,
        Hooks { loss: function, recorder, stop }: Hooks<'_>,
    ) -> Result<Self> {
        let Pass { checkpointing, seeds, nominal, .. } = pass;
        let attention_mask = hidden_padding(batch)?;
        let input_ids = batch.input_ids().shallow_clone();
        let mut units = model.visit(Direction::Forward);
        let embedded = record(recorder, Model::EMBEDDING_SCOPE, || {
            let unit = units.unit()?;
            embed(model, &unit, &input_ids, seeds)
        })?;
        // Without a graph: each layer begins its own.
        let mut x = embedded.output.as_ref().unwrap_or(&embedded.input).detach();
        let mut blocks = Vec::with_capacity(model.blocks().len());
        for i in 0..model.blocks().len() {
            stop.check()?;
            let input = x.set_requires_grad(true);
            let unit = units.unit()?;
            let mask = attention_mask.as_ref();
            let run = |sink| {
                let place = Place { model, unit: &unit, i, seeds };
                let run = || run_block(place, &input, mask, sink, recorder);
                record(recorder, format_args!("h.{i}"), run)
            };
            match checkpointing.filter(|checkpointing| checkpointing.applies_to(i)) {
                Some(again) => {
                    blocks.push(Kept::input(&input, again.cpu_checkpointing)?);
                    x = no_grad(|| run(None))?;
                }
                None => {
                    let sink = Sink::default();
                    let output = with_graph(run(Some(&sink))?, i + 1)?;
                    x = output.detach();
                    blocks.push(Kept::Graph(input, output, sink));
                }
            }
        }
        stop.check()?;
        let (unit, param) = model.projection_place();
        let mut projection_grad = UnitGradient::new(&model.units()[unit], pass.grad_kind)?;
        let gradient = LossGradient { nominal, unit: &mut projection_grad, index: param };
        let head = record(recorder, Model::HEAD_SCOPE, || -> Result<_> {
            let head = units.head()?;
            let params = (head.params(), head.projection());
            model.head().loss(params, &x, targets, Some(gradient), function)
        })?;
        Ok(Self { input_ids, embedded, blocks, attention_mask, head, projection_grad, seeds })
    }

    /// The sum of the losses, float64 scalar, and the number of targets.
    pub(super) fn loss(&self) -> (Tensor, i64) {
        (self.head.loss_sum.shallow_clone(), self.head.targets)
    }

    /// Walks back from the head to the embedding and adds to `gradients`.
    pub(super) fn backward(
        self,
        model: &Model,
        gradients: &mut Gradients,
        stop: &Stop,
    ) -> Result<()> {
        let Self { input_ids, embedded, mut blocks, attention_mask, head, projection_grad, seeds } =
            self;
        let units = model.units();
        let mut present = model.visit(Direction::Backward);
        let head_range = range(Model::HEAD_SCOPE);
        let head = model.head().backward(present.unit()?.params(), head)?;
        let head = head.ok_or_else(|| Error::new(Code::Internal, "the head kept no gradient"))?;
        gradients.merge(model.projection_place().0, projection_grad)?;
        gradients.add(&units[model.head_unit()], model.head_unit(), &numbered(head.params))?;
        gradients.complete(model.head_unit())?;
        drop(head_range);
        let mut grad = head.input;
        let device = grad.device();
        // What the next block needs comes back while this one runs.
        let mut fetch = || blocks.pop().map(|kept| kept.fetch(device)).transpose();
        let mut coming = fetch()?;
        for i in (0..model.blocks().len()).rev() {
            stop.check()?;
            let kept = coming.ok_or_else(|| Error::new(Code::Internal, "a block kept nothing"))?;
            coming = fetch()?;
            let _range = range(format_args!("h.{i}"));
            let unit = present.unit()?;
            let (input, output, sink) = match kept {
                Kept::Graph(input, output, sink) => (input, output, sink),
                Kept::Input(input) => {
                    let input = input.wait()?.detach().set_requires_grad(true);
                    let (mask, sink) = (attention_mask.as_ref(), Sink::default());
                    let place = Place { model, unit: &unit, i, seeds };
                    let output = run_block(place, &input, mask, Some(&sink), None)?;
                    (input, with_graph(output, i + 1)?, sink)
                }
            };
            sink.lend(gradients.take_out(&units[i + 1], i + 1)?);
            let inputs: Vec<&Tensor> = std::iter::once(&input).chain(unit.params()).collect();
            let mut grads = autograd::grad(&output, &grad, &inputs)?;
            let mut gradient = sink.take_back()?;
            gradient.add(&numbered(grads.split_off(1)))?;
            gradients.put_back(i + 1, gradient);
            grad = grads.pop().flatten().unwrap_or_else(|| input.zeros_like());
            drop(unit);
            gradients.complete(i + 1)?;
        }
        let _range = range(Model::EMBEDDING_SCOPE);
        match (model.embedding(), &embedded.output) {
            (Embedding::Gpt2(embedding), output) => {
                if let Some(output) = output {
                    let back = autograd::grad(output, &grad, &[&embedded.input])?;
                    grad = back.into_iter().flatten().next().unwrap_or_else(|| grad.zeros_like());
                }
                let mut gradient = gradients.take_out(&units[0], 0)?;
                no_grad(|| embedding.backward(&mut gradient, &input_ids, &grad))?;
                gradients.put_back(0, gradient);
            }
            (Embedding::Custom(_), output) => {
                let output = output
                    .as_ref()
                    .ok_or_else(|| Error::new(Code::Internal, "the first layer kept no output"))?;
                let unit = present.unit()?;
                let params: Vec<&Tensor> = unit.params().iter().collect();
                let grads = autograd::grad(output, &grad, &params)?;
                gradients.add(&units[0], 0, &numbered(grads))?;
            }
        }
        gradients.complete(0)
    }
}

/// The gradients that there are, with the numbers of their parameters.
fn numbered(grads: Vec<Option<Tensor>>) -> Vec<(usize, Tensor)> {
    grads.into_iter().enumerate().filter_map(|(i, grad)| Some((i, grad?))).collect()
}

/// The first layer. The lookup of GPT-2's has its gradient by hand: autograd sees the dropout alone.
fn embed(model: &Model, unit: &FlatUnit, input_ids: &Tensor, seeds: Seeds) -> Result<Layer> {
    let _counting = memory::count_as(memory::Kind::Activations)?;
    let embedding = match model.embedding() {
        Embedding::Gpt2(embedding) => embedding,
        Embedding::Custom(layer) => {
            seeds.plant(0);
            let context = BlockContext { train: true, ..BlockContext::default() };
            let output = layer.forward(unit.params(), input_ids, context)?;
            let output = Some(with_graph(output, 0)?);
            let input = input_ids.shallow_clone();
            return Ok(Layer { input, output });
        }
    };
    let sum = no_grad(|| embedding.lookup(unit.params(), input_ids, 0));
    if embedding.dropout == 0.0 {
        return Ok(Layer { input: sum, output: None });
    }
    let input = sum.set_requires_grad(true);
    seeds.plant(0);
    let output = input.dropout(embedding.dropout, true);
    Ok(Layer { input, output: Some(output) })
}

/// The targets of `batch`, as they were counted on the host.
pub(super) fn targets_of(batch: &Batch) -> Result<Targets> {
    let TargetTensors { ids, positions, scored } = batch.targets()?;
    Ok(Targets::new(ids, positions, scored))
}

/// The mask of the attention, where padding stands before a token.
fn hidden_padding(batch: &Batch) -> Result<Option<Tensor>> {
    Ok(batch.facts()?.is_left_padded.then(|| padding_mask(batch.attention_mask())))
}

/// A block in a pass.
#[derive(Clone, Copy)]
struct Place<'a> {
    model: &'a Model,
    unit: &'a FlatUnit,
    i: usize,
    seeds: Seeds,
}

fn run_block(
    Place { model, unit, i, seeds }: Place<'_>,
    input: &Tensor,
    attention_mask: Option<&Tensor>,
    sink: Option<&Sink>,
    recorder: Option<&Recorder>,
) -> Result<Tensor> {
    let _counting = memory::count_as(memory::Kind::Activations)?;
    seeds.plant(i + 1);
    let context = BlockContext { train: true, attention_mask, key_values: None, sink, recorder };
    model.blocks()[i].forward(unit.params(), input, context)
}

/// The output of layer `layer_idx`, which autograd must be able to go back from.
fn with_graph(output: Tensor, layer_idx: usize) -> Result<Tensor> {
    if output.requires_grad() {
        return Ok(output);
    }
    let message =
        format!("what layer {layer_idx} of the model gives does not depend on its parameters");
    Err(Error::new(Code::BadValue, message)
        .hint("compute it from the parameters that the layer is given, outside of no_grad"))
}

/// The sum of the losses of `batch` without dropout and without gradients, and the number of
/// targets.
///
/// # Errors
/// Those of the visit.
pub(super) fn loss_without_gradients(
    model: &Model,
    batch: &Batch,
    function: Option<&LossFunction>,
) -> Result<(Tensor, i64)> {
    no_grad(|| {
        let attention_mask = hidden_padding(batch)?;
        let mut units = model.visit(Direction::Forward);
        let x = model.hidden(&mut units, batch.input_ids(), attention_mask.as_ref(), None)?;
        let targets = targets_of(batch)?;
        let head = units.head()?;
        let params = (head.params(), head.projection());
        let head = model.head().loss(params, &x, &targets, None, function)?;
        Ok((head.loss_sum, head.targets))
    })
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{
        data::batch_of,
        dist::ProcessGroup,
        engine::{config, placement::Placement},
        model::Gpt2Config,
    };

    fn model(tie_word_embeddings: bool) -> Model {
        let config = Gpt2Config {
            vocab_size: 11,
            n_positions: 5,
            n_embd: 8,
            n_layer: 2,
            n_head: 2,
            resid_pdrop: 0.0,
            embd_pdrop: 0.0,
            attn_pdrop: 0.0,
            tie_word_embeddings,
            ..Gpt2Config::default()
        };
        Model::from_scratch(config, 4, Device::Cpu).unwrap()
    }

    /// The gradients of the whole model as one graph of autograd's.
    fn by_autograd(model: &Model, batch: &Batch, nominal: f64) -> Vec<Tensor> {
        let mut units = model.visit(Direction::Forward);
        let unit = units.unit().unwrap();
        let mut x = model.embedding().lookup(unit.params(), batch.input_ids(), 0).unwrap();
        for block in model.blocks() {
            let unit = units.unit().unwrap();
            x = block.forward(unit.params(), &x, BlockContext::default()).unwrap();
        }
        let head = units.head().unwrap();
        let logits = model.head().logits(head.params(), head.projection(), &x).unwrap();
        let (t, vocab) = (batch.labels().size()[1], logits.size()[2]);
        let logits = logits.narrow(1, 0, t - 1).reshape([-1, vocab]);
        let targets = batch.labels().narrow(1, 1, t - 1).reshape([-1]);
        let mean = logits.cross_entropy_for_logits(&targets);
        (mean * targets.numel() as f64 / nominal).backward();
        model.named_params().map(|(_, param)| param.grad()).collect()
    }

    /// Layer by layer, with a loss and an embedding whose gradients are made by hand, the gradients
    /// are autograd's; float32 sums in another order, hence 1e-5 of the largest.
    #[test]
    fn the_walk_has_the_gradients_of_the_whole_graph() {
        let batch = batch_of(&[vec![1, 2, 3, 4], vec![5, 5, 9, 0]]);
        let nominal = 12.0;
        let every =
            |every, cpu_checkpointing| Some(ActivationCheckpointing { every, cpu_checkpointing });
        for (tied, checkpointing) in
            [(true, None), (true, every(1, false)), (true, every(2, true)), (false, None)]
        {
            let model = model(tied);
            let (seeds, stop) = (Seeds::new(0, 0, 0, 0), Stop::default());
            let hooks = Hooks { loss: None, recorder: None, stop: &stop };
            let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
            let config = config(None);
            let placement = Placement::new(&config, 1, Device::Cpu).unwrap();
            let mut gradients = Gradients::new(model.units().len(), group, &config, &placement);
            // Twice, to see that they add up.
            for _ in 0..2 {
                let targets = targets_of(&batch).unwrap();
                let pass = Pass { checkpointing, seeds, nominal, grad_kind: Kind::Float };
                let activations =
                    Activations::forward(&model, &batch, &targets, pass, hooks).unwrap();
                activations.backward(&model, &mut gradients, &stop).unwrap();
            }
            let flat = gradients.take(model.units()).unwrap();
            let units = model.units().iter().zip(&flat);
            let walked = units.flat_map(|(unit, flat)| unit.views(flat));
            for ((name, _), (walked, whole)) in
                model.named_params().zip(walked.zip(by_autograd(&model, &batch, nominal)))
            {
                let off = (walked / 2.0 - &whole).abs().max().double_value(&[]);
                let largest = whole.abs().max().double_value(&[]);
                assert!(off <= 1e-5 * largest.max(1e-3), "tied {tied}, {name}: {off}");
                assert_eq!(whole.kind(), Kind::Float);
            }
        }
    }
}
