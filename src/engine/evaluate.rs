//! Evaluation: the mean loss over a dataset, without dropout and without touching the training.

use super::{Engine, evaluation::Evaluation, stage::loss_without_gradients};
use crate::{
    data::Batch,
    dist::ReduceOp,
    error::{Code, Error, Result},
    tensor::{Kind, Tensor, compute_with, guard},
};

impl Engine {
    /// The loss over all target tokens of `batches`, which are this rank's; the result is that of
    /// all ranks. `stop` is asked before each batch; where it says so on any rank, the evaluation
    /// ends without a result on all.
    ///
    /// # Errors
    /// [`Code::Data`] where there is no target at all, [`Code::Diverged`] for a loss that is not a
    /// number.
    pub fn evaluate(
        &self,
        batches: impl IntoIterator<Item = Result<Batch>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Evaluation>> {
        compute_with(self.config.numerics)?;
        // The sum stays on the device: reading it would wait for each batch.
        let mut loss_sum = Tensor::f_zeros([0i64; 0], (Kind::Double, self.mesh.world().device()))?;
        let (mut targets, mut stopped) = (0, false);
        let mut batches = batches.into_iter().fuse();
        loop {
            let batch = batches.next().transpose()?;
            stopped |= batch.is_some() && stop();
            // Ranks that share the parameters out run the layers together to the end, and stages wait
            // for each other.
            if self.model.any(stopped)? || !self.model.any(batch.is_some())? {
                break;
            }
            let Some(batch) = batch else {
                guard("evaluate", || self.model.participate(0..self.model.all_layers().len()))?;
                continue;
            };
            self.check_batch(&batch)?;
            let (sum, count) = guard("evaluate", || {
                loss_without_gradients(&self.model, &batch, self.loss.as_ref())
            })?;
            if self.mesh.counts_losses() {
                loss_sum = loss_sum.f_add(&sum)?;
                targets += count;
            }
        }
        let counts = Tensor::f_from_slice(&[targets as f64, f64::from(stopped)])?;
        let counts = counts.f_to_device(self.mesh.world().device())?;
        let all = Tensor::f_cat(&[loss_sum.f_view([1])?, counts], 0)?;
        self.mesh.world().all_reduce(&all, ReduceOp::Sum)?;
        let all = Vec::<f64>::try_from(&all)?;
        let (loss_sum, targets) = (all[0], all[1]);
        if all[2] > 0.0 {
            return Ok(None);
        }
        if targets == 0.0 {
            return Err(Error::new(Code::Data, "nothing to evaluate: no row has a target token"));
        }
        let loss = loss_sum / targets;
        if loss.is_nan() {
            bail!(Code::Diverged, "the evaluation's loss is NaN");
        }
        Ok(Some(Evaluation { loss, perplexity: loss.exp(), targets: targets as u64 }))
    }
}
