//! The walk over the layers: forward, keeping what backward needs, and backward.
//!
//! Every layer runs on a detached input, so that autograd never sees more than one layer at a time:
//! the graph of a layer is freed as soon as its gradients are there. Dropout draws from libtorch's
//! generator, seeded before each layer from the run's seed and the layer's place ([`Seeds`]): a
//! recomputed layer draws the same masks, and a resumed run needs no generator state.

use super::{gradients::Gradients, stop::StopSignal};
use crate::{
    bridge::{autograd, trace::range},
    config::ActivationCheckpointing,
    data::{Batch, TargetTensors},
    error::{Code, Error, Result},
    model::{
        Context, Direction, Flow, Gathered, Inference, LossFunction, Masks, Model, ModelLayer,
        Objective, ParamPlace, Prediction, Recorder, Sink, Targets, record,
    },
    tensor::{Copying, Device, IGNORE_INDEX, Tensor, manual_seed, mix, no_grad, start_move},
};

/// The seeds of one micro batch's dropout masks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seeds(u64);

impl Seeds {
    pub(super) fn new(seed: u64, global_step: u64, micro_step: u64, rank: u64) -> Self {
        Self(mix(&[seed, global_step, micro_step, rank]))
    }

    /// Seeds libtorch for layer `i` of the whole model, and gives the seed.
    fn plant(self, i: usize) -> u64 {
        let seed = mix(&[self.0, i as u64]);
        manual_seed(seed);
        seed
    }
}

/// How a micro batch is run, the second time too.
pub(super) struct Pass {
    /// Which blocks keep their input alone.
    pub(super) checkpointing: Option<ActivationCheckpointing>,
    /// The seeds of dropout.
    pub(super) seeds: Seeds,
    /// The gradients will be those of the sum of the losses divided by this.
    pub(super) loss_normalizer: f64,
    /// Where operations add the gradients that they make by hand.
    pub(super) sink: Sink,
    /// The masks of the tokens.
    pub(super) masks: Masks,
}

/// Callbacks of a forward pass.
#[derive(Clone, Copy)]
pub(super) struct Hooks<'a> {
    /// The loss, where it is not the cross-entropy of the next token.
    pub(super) loss: Option<&'a LossFunction>,
    /// Measures the layers.
    pub(super) recorder: Option<&'a Recorder>,
    /// Is asked before each layer.
    pub(super) stop: &'a StopSignal,
}

/// The tensors that a forward pass saves for the backward pass.
pub(super) struct Activations {
    pass: Pass,
    layers: Vec<SavedForBackward>,
    /// What the last layer gave, cut off from its graph.
    output: Option<Flow>,
    targets: i64,
}

/// The tensors that a layer saves for the backward pass.
enum SavedForBackward {
    /// Its input, and its output with the graph between.
    Graph(Flow, Flow),
    /// Its input, to run it again; this may be on its way to host memory, or back from there.
    Input(Flow<Copying>),
}

impl SavedForBackward {
    /// The input alone, which with `on_host` waits in host memory.
    fn input(input: &Flow, on_host: bool) -> Result<Self> {
        let location = if on_host { Device::Cpu } else { input.hidden.device() };
        Ok(Self::Input(input.detach(false).try_map(|x| start_move(&x, location))?))
    }

    /// Starts to bring it to `device`.
    fn fetch(self, device: Device) -> Result<Self> {
        match self {
            Self::Input(input) => Ok(Self::Input(input.try_map(|x| x.send_on(device))?)),
            graph @ Self::Graph(..) => Ok(graph),
        }
    }
}

impl Pass {
    /// The activation checkpointing of a layer, if it is for this one.
    fn recomputes(&self, layer: &ModelLayer) -> Option<ActivationCheckpointing> {
        let block = layer.block?;
        self.checkpointing.filter(|checkpointing| checkpointing.applies_to(block))
    }

    /// Runs layer `i`; with a graph its operations know the sink.
    fn run(
        &self,
        (model, i): (&Model, usize),
        gathered: &Gathered<'_>,
        input: &Flow,
        with_graph: bool,
        (objective, recorder): (Option<Objective<'_>>, Option<&Recorder>),
    ) -> Result<Flow> {
        let layer = &model.layers()[i];
        if layer.draws() {
            let seed = self.seeds.plant(layer.number);
            model.draw_from(Some(seed));
        }
        let sparse = model.sparse_attention();
        let sparse = sparse.as_deref();
        let begun = Context::new(&self.masks);
        let tiled_mlp = model.tiled_mlp();
        let mut context = Context { train: true, objective, recorder, sparse, tiled_mlp, ..begun };
        let params = gathered.params(i, with_graph.then_some(&self.sink)).of_training();
        let output = layer.layer().forward(&params, input, &mut context);
        model.draw_from(None);
        let output = output?;
        // The tokens of a decoder may be frozen, and what its encoder made not.
        let outputs = [Some(&output.hidden), output.encoded.as_ref(), output.bias.as_ref()];
        if with_graph && !outputs.into_iter().flatten().any(Tensor::requires_grad) {
            return Err(has_no_graph(layer));
        }
        Ok(output)
    }
}

impl Activations {
    /// Runs the layers on `flow` with dropout; `targets` are those of the batch's labels.
    pub(super) fn forward(
        model: &Model,
        mut flow: Flow,
        targets: &Targets,
        pass: Pass,
        Hooks { loss, recorder, stop }: Hooks<'_>,
    ) -> Result<Self> {
        let objective =
            Some(Objective { targets, loss_normalizer: pass.loss_normalizer, function: loss });
        let mut kept = Vec::with_capacity(model.layers().len());
        let lowest = model.lowest_backward();
        for (i, layer) in model.layers().iter().enumerate() {
            stop.check()?;
            // Token ids have no gradient, and what is below all that is trained needs none.
            let input = flow.detach(model.input_has_gradient(layer.number));
            let gathered = model.gather(i, Direction::Forward)?;
            let run = |with_graph| {
                let run =
                    || pass.run((model, i), &gathered, &input, with_graph, (objective, recorder));
                record(recorder, &layer.name, run)
            };
            if i < lowest {
                // The backward pass ends above it.
                flow = no_grad(|| run(false))?;
                continue;
            }
            match pass.recomputes(layer) {
                Some(again) => {
                    kept.push(SavedForBackward::input(&input, again.cpu_checkpointing)?);
                    flow = no_grad(|| run(false))?;
                }
                None => {
                    let output = run(true)?;
                    flow = output.detach(false);
                    kept.push(SavedForBackward::Graph(input, output));
                }
            }
        }
        Ok(Self { pass, layers: kept, output: Some(flow), targets: targets.count() })
    }

    /// What the last layer gave, once: the sum of the losses, a float64 scalar, or the flow for the
    /// next stage.
    pub(super) fn take_output(&mut self) -> Result<Flow> {
        self.output.take().ok_or_else(|| Error::new(Code::Internal, "an output was taken twice"))
    }

    /// The number of targets.
    pub(super) fn targets(&self) -> i64 {
        self.targets
    }

    /// The gradient of the sum of the losses that the last layer gave.
    pub(super) fn loss_gradient(&self, loss_sum: Option<&Tensor>) -> Result<Flow> {
        let none = || Error::new(Code::Internal, "a last stage without losses");
        let loss_sum = loss_sum.ok_or_else(none)?;
        Ok(Flow::of(loss_sum.f_full_like(1.0 / self.pass.loss_normalizer)?))
    }

    /// Walks back from the last layer to the first and adds to `gradients`. `grad` is the gradient
    /// of the output; the result is that of the input.
    pub(super) fn backward(
        self,
        model: &Model,
        gradients: &mut Gradients,
        stop: &StopSignal,
        mut grad: Flow,
    ) -> Result<Flow> {
        let Self { pass, layers: mut kept, .. } = self;
        pass.sink.turn_to(gradients.shared())?;
        // The tensors of the next layer come back while this one runs.
        let mut fetch = || kept.pop().map(|kept| kept.fetch(model.device())).transpose();
        let mut coming = fetch()?;
        let lowest = model.lowest_backward();
        for (i, layer) in model.layers().iter().enumerate().skip(lowest).rev() {
            stop.check()?;
            let kept = coming.ok_or_else(|| Error::new(Code::Internal, "a layer kept nothing"))?;
            coming = fetch()?;
            let _range = range(&layer.name);
            let gathered = model.gather(i, Direction::Backward)?;
            let (input, output) = match kept {
                SavedForBackward::Graph(input, output) => (input, output),
                SavedForBackward::Input(input) => {
                    let input = input.try_map(Copying::wait)?;
                    let input = input.detach(model.input_has_gradient(layer.number));
                    let output = pass.run((model, i), &gathered, &input, true, (None, None))?;
                    (input, output)
                }
            };
            grad = differentiate((model, layer), (&input, &output), &grad, gradients)?;
            drop((input, output, gathered));
            layer.completes.iter().try_for_each(|&unit| gradients.complete(unit))?;
        }
        Ok(grad)
    }
}

/// The gradient of a layer's input for that of its output. Adds the gradients of parameters that
/// no operation added itself to `gradients`.
fn differentiate(
    (model, layer): (&Model, &ModelLayer),
    (input, output): (&Flow, &Flow),
    grad: &Flow,
    gradients: &mut Gradients,
) -> Result<Flow> {
    let outputs = [
        Some((&output.hidden, &grad.hidden)),
        output.encoded.as_ref().zip(grad.encoded.as_ref()),
        output.bias.as_ref().zip(grad.bias.as_ref()),
    ];
    let outputs: Vec<_> =
        outputs.into_iter().flatten().filter(|(output, _)| output.requires_grad()).collect();
    let flowing = [Some(&input.hidden), input.encoded.as_ref(), input.bias.as_ref()];
    let flowing = flowing.map(|x| x.filter(|x| x.requires_grad()));
    let units = model.units();
    let is_trained = |place: &ParamPlace| units[place.unit].is_trainable();
    let places: Vec<_> = layer.places().all().filter(is_trained).collect();
    let params = places.iter().map(|place| &units[place.unit].params()[place.index]);
    let inputs: Vec<&Tensor> = flowing.into_iter().flatten().chain(params).collect();
    let mut grads = autograd::grad(&outputs, &inputs)?.into_iter();
    let mut next = |x: Option<&Tensor>| x.and_then(|_| grads.next().flatten());
    let [hidden, encoded, bias] = flowing.map(&mut next);
    gradients.add(places.iter().copied().zip(grads))?;
    let hidden = match hidden {
        Some(grad) => grad,
        // A layer may not depend on its input.
        None if input.hidden.requires_grad() => input.hidden.f_zeros_like()?,
        // Token ids.
        None => Tensor::new(),
    };
    Ok(Flow { hidden, encoded, bias })
}

fn has_no_graph(layer: &ModelLayer) -> Error {
    let message =
        format!("what layer {:?} of the model gives does not depend on its parameters", layer.name);
    Error::new(Code::BadValue, message)
        .hint("compute it from the parameters that the layer is given, outside of no_grad")
}

/// The targets of `model` in `batch`.
pub(super) fn targets_of(model: &Model, batch: &Batch) -> Result<Targets> {
    let TargetTensors { ids, positions, scored } = match model.facts().objective {
        Prediction::Causal { .. } => batch.targets()?,
        Prediction::Seq2Seq { .. } => batch.decoder_targets()?,
    };
    Ok(Targets::new(ids, positions, scored))
}

/// Refuses texts that are apart where a model's layers do not tell them apart.
pub(super) fn check_documents(model: &Model, batch: &Batch) -> Result<()> {
    let is_own = model.facts().names.is_none();
    if batch.documents().is_none() || !(is_own || model.facts().is_seq2seq()) {
        return Ok(());
    }
    let what = if is_own { "layers of the recipe's own" } else { "an encoder" };
    let message = format!("rows with separate documents are not for a model with {what}");
    Err(Error::new(Code::Data, message)
        .hint("pack without documents: \"separate\", or train a causal model"))
}

/// The masks of `batch` for the layers of `model`: padding that a token would see, and
/// the input of a decoder behind an encoder, its labels moved one to the right.
pub(super) fn masks_of(model: &Model, batch: &Batch) -> Result<Masks> {
    let facts = batch.stats()?;
    let padding = |is_seen: bool| is_seen.then(|| batch.attention_mask().shallow_clone());
    let Prediction::Seq2Seq { decoder_start_token_id: start } = model.facts().objective else {
        // Padding behind texts that are apart is a text of its own.
        return Ok(match batch.documents() {
            Some(documents) => Masks::default().with_documents(documents, model.device()),
            None => Masks::new(padding(facts.is_left_padded)),
        });
    };
    let labels = batch.labels();
    let first = labels.f_narrow(1, 0, 1)?.f_full_like(start)?;
    let rest = labels.f_narrow(1, 0, labels.size()[1] - 1)?;
    let pad = model.facts().pad_token_id.unwrap_or(0);
    let rest = rest.f_masked_fill(&rest.f_eq(IGNORE_INDEX)?, pad)?;
    let decoder = Tensor::f_cat(&[first, rest], 1)?;
    Ok(Masks::new(padding(facts.is_padded)).with_decoder(Some(decoder)))
}

/// The sum of the losses of `batch` without dropout and without gradients, and the number of
/// targets.
pub(super) fn loss_without_gradients(
    model: &Model,
    batch: &Batch,
    function: Option<&LossFunction>,
) -> Result<(Tensor, i64)> {
    let targets = targets_of(model, batch)?;
    let objective = Objective { targets: &targets, loss_normalizer: 1.0, function };
    let how = Inference { objective: Some(objective), ..Inference::default() };
    let loss_sum = model.infer(batch.input_ids(), &masks_of(model, batch)?, how)?;
    Ok((loss_sum, targets.count()))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{
        data::batch_of,
        dist::ProcessGroup,
        engine::{config, offload::Offload},
        model::tiny_gpt2,
        tensor::Kind,
    };

    fn model(tie_word_embeddings: bool) -> Model {
        let settings = [("vocab_size", 11), ("n_positions", 5), ("n_embd", 8)];
        let config = tiny_gpt2(&settings, 0.0, tie_word_embeddings);
        Model::from_scratch(&config, 4, Device::Cpu).unwrap()
    }

    /// The gradients of the whole model as one graph of autograd's.
    fn by_autograd(model: &Model, batch: &Batch, loss_normalizer: f64) -> Vec<Tensor> {
        let masks = Masks::default();
        let mut flow = Flow::of(batch.input_ids().shallow_clone());
        for (i, layer) in model.layers().iter().enumerate() {
            let gathered = model.gather(i, Direction::Forward).unwrap();
            let params = gathered.params(i, None);
            flow = layer.layer().forward(&params, &flow, &mut Context::new(&masks)).unwrap();
        }
        let logits = flow.hidden;
        let (t, vocab) = (batch.labels().size()[1], logits.size()[2]);
        let logits = logits.narrow(1, 0, t - 1).reshape([-1, vocab]);
        let targets = batch.labels().narrow(1, 1, t - 1).reshape([-1]);
        let mean = logits.cross_entropy_for_logits(&targets);
        (mean * targets.numel() as f64 / loss_normalizer).backward();
        model.named_params().map(|(_, param)| param.grad()).collect()
    }

    /// Layer by layer, with operations whose gradients are made by hand, the gradients are autograd's;
    /// float32 sums in another order, hence 1e-5 of the largest.
    #[test]
    fn the_walk_has_the_gradients_of_the_whole_graph() {
        let batch = batch_of(&[vec![1, 2, 3, 4], vec![5, 5, 9, 0]]);
        let loss_normalizer = 12.0;
        let every =
            |every, cpu_checkpointing| Some(ActivationCheckpointing { every, cpu_checkpointing });
        for (tied, checkpointing) in
            [(true, None), (true, every(1, false)), (true, every(2, true)), (false, None)]
        {
            let model = model(tied);
            let (seeds, stop) = (Seeds::new(0, 0, 0, 0), StopSignal::default());
            let hooks = Hooks { loss: None, recorder: None, stop: &stop };
            let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
            let config = config(None);
            let offload = Offload::new(&config, 1, (&"/".into(), Device::Cpu), &[1; 4]).unwrap();
            let mut gradients = Gradients::new(
                model.units(),
                (group, vec![None, None, None, None]),
                &config,
                &offload,
            );
            // Twice, to see that they add up.
            for _ in 0..2 {
                let targets = targets_of(&model, &batch).unwrap();
                let sink = Sink::new(model.units(), Kind::Float);
                let masks = masks_of(&model, &batch).unwrap();
                let pass = Pass { checkpointing, seeds, loss_normalizer, sink, masks };
                let ids = Flow::of(batch.input_ids().shallow_clone());
                let mut activations =
                    Activations::forward(&model, ids, &targets, pass, hooks).unwrap();
                let output = activations.take_output().unwrap();
                let grad = activations.loss_gradient(Some(&output.hidden)).unwrap();
                activations.backward(&model, &mut gradients, &stop, grad).unwrap();
            }
            let flat = gradients.take().unwrap();
            let units = model.units().iter().zip(&flat);
            let walked = units.flat_map(|(unit, flat)| unit.views(flat));
            for ((name, _), (walked, whole)) in
                model.named_params().zip(walked.zip(by_autograd(&model, &batch, loss_normalizer)))
            {
                let off = (walked / 2.0 - &whole).abs().max().double_value(&[]);
                let largest = whole.abs().max().double_value(&[]);
                assert!(off <= 1e-5 * largest.max(1e-3), "tied {tied}, {name}: {off}");
                assert_eq!(whole.kind(), Kind::Float);
            }
        }
    }
}
