//! What the micro batches of an optimizer step add up to, and how their losses are averaged.
//!
//! A micro batch enters with a loss and a weight. By default these are the sum of its losses and
//! the number of its targets: the step's loss is the mean over all target tokens, however the
//! global batch is cut. DeepSpeed averages each micro batch first: then they are its mean and 1,
//! and a micro batch without any target does not count.
//!
//! The weights of the whole step are known only at its end. Gradients are made for the sum of the
//! losses over a *nominal* weight, and corrected once by nominal over counted.

use crate::{
    config::LossAverage,
    data::BatchRows,
    dist::{ProcessGroup, ReduceOp},
    error::Result,
    tensor::{Kind, Tensor},
};

/// The sums over the micro batches of this rank.
#[derive(Default)]
pub(super) struct Window {
    micro_steps: usize,
    /// The loss of each micro batch, a float64 scalar kept on the device, since reading it waits,
    /// and its rows.
    losses: Vec<(Tensor, BatchRows)>,
    weight: f64,
    tokens: i64,
}

/// The sums over the micro batches of all ranks.
pub(super) struct Totals {
    /// The mean loss of the step; NaN without any target.
    pub(super) loss: f64,
    /// What the losses were weighted with.
    pub(super) weight: f64,
    /// Tokens that are no padding.
    pub(super) tokens: u64,
}

impl Window {
    /// Micro batches of the step that has begun.
    pub(super) fn micro_steps(&self) -> usize {
        self.micro_steps
    }

    /// Adds a micro batch whose losses sum up to `loss_sum` over `targets` targets.
    pub(super) fn add(
        &mut self,
        average: LossAverage,
        (loss_sum, targets): (Tensor, i64),
        tokens: i64,
        rows: BatchRows,
    ) -> Result<()> {
        self.micro_steps += 1;
        self.tokens += tokens;
        let (loss, weight) = match average {
            LossAverage::Tokens => (loss_sum, targets as f64),
            LossAverage::MicroBatches if targets == 0 => return Ok(()),
            LossAverage::MicroBatches => (loss_sum.f_div_scalar(targets)?, 1.0),
        };
        self.losses.push((loss, rows));
        self.weight += weight;
        Ok(())
    }

    /// The rows of this rank's micro batches whose loss is not finite, or of all if each is finite.
    ///
    /// # Errors
    /// libtorch refuses.
    pub(super) fn suspects(&self) -> Result<Vec<BatchRows>> {
        let mut suspects = Vec::new();
        for (loss, rows) in &self.losses {
            if !loss.f_double_value(&[])?.is_finite() {
                suspects.push(rows.clone());
            }
        }
        if suspects.is_empty() {
            suspects.extend(self.losses.iter().map(|(_, rows)| rows.clone()));
        }
        Ok(suspects)
    }

    /// The sums over all ranks.
    pub(super) fn reduce(&self, group: &ProcessGroup) -> Result<Totals> {
        let mut loss = Tensor::f_zeros([0i64; 0], (Kind::Double, group.device()))?;
        for (part, _) in &self.losses {
            loss = loss.f_add(part)?;
        }
        let counts = Tensor::f_from_slice(&[self.weight, self.tokens as f64])?;
        let all = Tensor::f_cat(&[loss.f_view([1])?, counts.f_to_device(group.device())?], 0)?;
        group.all_reduce(&all, ReduceOp::Sum)?;
        let all = Vec::<f64>::try_from(&all)?;
        Ok(Totals { loss: all[0] / all[1], weight: all[1], tokens: all[2] as u64 })
    }
}
