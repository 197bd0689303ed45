//! The sums over the micro batches of an optimizer step, and the average of their losses.
//!
//! A micro batch enters with a loss and a weight. By default these are the sum of its losses and
//! the number of its targets: the step's loss is the mean over all target tokens, however the
//! global batch is cut. DeepSpeed averages each micro batch first: then they are its mean and 1,
//! and a micro batch without any target does not count.
//!
//! The weights of the whole step are known only at its end. Gradients are made for the sum of the
//! losses over a loss normalizer, which is known before, and corrected once by normalizer over counted.

use crate::{
    config::LossAverage,
    data::BatchRows,
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// The sums over the micro batches of this rank.
#[derive(Default)]
pub(super) struct Accumulation {
    micro_steps: usize,
    /// The loss of each micro batch, a float64 scalar kept on the device, since reading it waits,
    /// and its rows.
    losses: Vec<(Tensor, BatchRows)>,
    weight: f64,
    tokens: i64,
}

impl Accumulation {
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

    /// Adds a micro batch whose losses another rank counts.
    pub(super) fn pass_over(&mut self) {
        self.micro_steps += 1;
    }

    /// The rows of this rank's micro batches whose loss is not finite, or of all if each is finite.
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

    /// The sum of the losses of this rank, their weight, its tokens that are no padding, and `square`,
    /// a scalar beside them: float64 `[4]` on `device`, which is not waited for.
    pub(super) fn sums(&self, square: &Tensor, device: Device) -> Result<Tensor> {
        let like = (Kind::Double, device);
        let losses: Vec<&Tensor> = self.losses.iter().map(|(loss, _)| loss).collect();
        let loss = match losses.is_empty() {
            true => Tensor::f_zeros([1], like)?,
            false => Tensor::f_stack(&losses, 0)?.f_sum(Kind::Double)?.f_view([1])?,
        };
        let count = |value: f64| Tensor::f_full([1], value, like);
        let (weight, tokens) = (count(self.weight)?, count(self.tokens as f64)?);
        Ok(Tensor::f_cat(&[loss, weight, tokens, square.f_view([1])?], 0)?)
    }
}
