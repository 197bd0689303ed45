//! The forward and backward pass of one micro batch, on this rank's stage.

use std::time::Instant;

use super::{
    Engine,
    pending::Pending,
    pipe::shape_of,
    stage::{Activations, Hooks, Pass, Seeds, masks_of, targets_of},
    timers::StepPhase,
};
use crate::{
    bridge::{memory as ledger, trace::range},
    config::LossAverage,
    data::Batch,
    error::{Code, Error, Result},
    model::{Flow, Model, Sink, record},
    tensor::{Kind, Tensor, guard},
};

/// Tokens of a row that losses are averaged over before the rows are known.
const USUAL_TOKENS: i64 = 2048;

impl Engine {
    /// The mean loss over the target tokens of `batch`, float32 scalar, with all that
    /// [`Engine::backward`] needs. NaN where the batch has no target, as in PyTorch.
    pub fn forward(&mut self, batch: &Batch) -> Result<Tensor> {
        self.begin()?;
        self.check_one_stage("forward")?;
        // Frees the activations of a forward pass that was not used.
        self.pending = None;
        let pending = self.run_forward(batch, self.accumulation.micro_steps())?;
        let loss = pending.loss.shallow_clone();
        self.pending = Some(pending);
        Ok(loss)
    }

    /// The forward pass of micro batch `micro_step` of a step, on this rank's stage.
    pub(super) fn run_forward(&mut self, batch: &Batch, micro_step: usize) -> Result<Pending> {
        self.begin()?;
        if self.model.is_adapter_off() {
            let message = "`disable_adapter` leaves nothing of the model to be trained";
            return Err(Error::new(Code::CallOrder, message)
                .hint("use `model.logits` or `engine.evaluate` in it"));
        }
        self.check_batch(batch)?;
        self.model.check_sharing_of_tokens(batch.input_ids(), batch.labels())?;
        self.row_tokens = batch.input_ids().size()[1];
        if micro_step == self.config.gradient_accumulation_steps {
            return Err(step_is_due(micro_step));
        }
        if micro_step == 0 {
            self.pace.begin(Instant::now(), batch.load_time);
        }
        self.timers.discard();
        self.timers.start(StepPhase::Forward)?;
        let _range = range("forward");
        let recorder = self.recorder();
        let recorder = recorder.as_ref();
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        let pending = guard("forward", || {
            let targets = targets_of(&self.model, batch)?;
            let tokens = batch.stats()?.tokens;
            let grad_kind = self.config.precision.grad_accum_dtype.into();
            let masks = masks_of(&self.model, batch)?;
            let shape = shape_of(batch, &masks);
            let pass = Pass {
                checkpointing: self.config.activation_checkpointing,
                seeds: self.seeds(micro_step),
                loss_normalizer: self.loss_normalizer(targets.count())
                    / self.overflow_check.scaler.scale(),
                sink: Sink::new(self.model.units(), grad_kind),
                masks,
            };
            let ids = || Flow::of(batch.input_ids().shallow_clone());
            let flow = self.pipe.receive(&shape)?.unwrap_or_else(ids);
            let mut activations = record(recorder, Model::SCOPE, || {
                let hooks = Hooks { loss: self.loss.as_ref(), recorder, stop: &self.stop };
                Activations::forward(&self.model, flow, &targets, pass, hooks)
            })?;
            let output = activations.take_output()?;
            let (loss, loss_sum) = match self.mesh.is_last_stage() {
                true => {
                    let mean = &output.hidden / targets.count() as f64;
                    (mean.to_kind(Kind::Float), Some(output.hidden))
                }
                false => {
                    self.pipe.send(&shape, &output)?;
                    (Tensor::new(), None)
                }
            };
            Ok(Pending { loss, activations, loss_sum, tokens, rows: batch.source(), shape })
        })?;
        self.timers.stop()?;
        self.timers.add_data(batch.load_time);
        self.flops_profile = recorder.and_then(|recorder| {
            let size = batch.input_ids().size();
            self.model.profile(size[0], size[1], recorder)
        });
        Ok(pending)
    }

    /// Runs the backward pass of the micro batch whose `loss` [`Engine::forward`] returned, and adds
    /// to the gradients.
    ///
    /// # Errors
    /// [`Code::CallOrder`] for any other tensor, or a second time; memory is exhausted.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        self.begin()?;
        let Some(pending) = self.pending.take() else {
            return Err(Error::new(Code::CallOrder, "backward without a forward before it")
                .hint("call engine.forward(batch) first, once for each backward"));
        };
        if loss.data_ptr() != pending.loss.data_ptr() {
            self.pending = Some(pending);
            return Err(Error::new(
                Code::CallOrder,
                "backward needs the loss that the last engine.forward(batch) returned",
            ));
        }
        self.run_backward(pending)
    }

    /// The backward pass of a micro batch, on this rank's stage.
    pub(super) fn run_backward(&mut self, pending: Pending) -> Result<()> {
        self.timers.start(StepPhase::Backward)?;
        let _range = range("backward");
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        self.is_inconsistent = true;
        let (model, gradients) = (&self.model, &mut self.gradients);
        let micro_steps = self.accumulation.micro_steps() + 1;
        gradients.begin(micro_steps == self.config.gradient_accumulation_steps);
        let Pending { activations, loss_sum, tokens, rows, shape, .. } = pending;
        let targets = activations.targets();
        let walk = || {
            let of_losses = || activations.loss_gradient(loss_sum.as_ref());
            // Where nothing below is trained, no gradient goes there.
            if model.lowest_backward() == model.layers().len() {
                return Ok(());
            }
            let grad = self.pipe.receive_gradient(&shape)?.map_or_else(of_losses, Ok)?;
            let grad = activations.backward(model, gradients, &self.stop, grad)?;
            match model.input_has_gradient(model.layers()[0].number) {
                true => self.pipe.send_gradient(&shape, &grad),
                false => Ok(()),
            }
        };
        if let Err(e) = guard("backward", walk) {
            if e.code() == Code::Interrupted {
                self.forget_step();
            }
            return Err(e);
        }
        self.is_inconsistent = false;
        self.timers.stop()?;
        match loss_sum.filter(|_| self.mesh.counts_losses()) {
            Some(loss_sum) => {
                self.accumulation.add(self.config.loss_average, (loss_sum, targets), tokens, rows)
            }
            None => {
                self.accumulation.pass_over();
                Ok(())
            }
        }
    }

    /// The loss normalizer of a micro batch with this many targets.
    fn loss_normalizer(&self, targets: i64) -> f64 {
        match self.config.loss_average {
            LossAverage::Tokens => self.total_normalizer(),
            LossAverage::MicroBatches => self.total_normalizer() * targets.max(1) as f64,
        }
    }

    /// The weight of a whole step before it is known. For tokens any number would do; this one is
    /// the same however the global batch is cut.
    pub(super) fn total_normalizer(&self) -> f64 {
        let micro_batches = (self.config.gradient_accumulation_steps * self.mesh.shape().dp) as f64;
        let positions = self.model.facts().max_positions.unwrap_or(USUAL_TOKENS);
        let tokens = (positions.min(USUAL_TOKENS) - 1).max(1) as f64;
        match self.config.loss_average {
            LossAverage::Tokens => micro_batches * self.config.micro_batch_size as f64 * tokens,
            LossAverage::MicroBatches => micro_batches,
        }
    }

    fn seeds(&self, micro_step: usize) -> Seeds {
        let replica = self.mesh.place().dp as u64;
        Seeds::new(self.config.seed, self.global_step, micro_step as u64, replica)
    }
}

fn step_is_due(micro_steps: usize) -> Error {
    Error::new(
        Code::CallOrder,
        format!("{micro_steps} micro batches are accumulated and step was not called"),
    )
    .hint("call engine.step() after each engine.backward(loss); it applies the gradients when they are due")
}
