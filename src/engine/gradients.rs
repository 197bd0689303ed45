//! The gradients of the parameter units: flat buffers that exist from a unit's first gradient to
//! the optimizer step, so that they take no memory while activations do.
//!
//! The buffer of a unit is summed over the ranks when its last gradient is there. ZeRO's stage 2
//! does so in every micro batch, keeps this rank's slice of the sum and frees the buffer; below it
//! the sum is made once, in the step. With `overlap_comm` the sum of one unit is under way while
//! the layer below is differentiated, in stages 0 and 1 in the last micro batch. Sums go to where the
//! optimizer steps, beside what the device computes; from stage 2 on in every micro batch, so that the
//! device never has them all.

use std::{collections::VecDeque, rc::Rc};

use super::{landing::Landing, placement::Placement};
use crate::{
    bridge::memory,
    config::{EngineConfig, ZeroConfig},
    dist::{ProcessGroup, Reduction},
    error::{Code, Error, Result},
    model::{FlatUnit, UnitGradient},
    tensor::{Copying, Kind, Tensor},
};

/// Sums under way beside the backward pass: while one is waited for, its buffer exists.
const MOST_UNDER_WAY: usize = 1;

/// The gradients of each unit.
pub(super) struct Gradients {
    /// What this rank has added and not yet summed.
    buffers: Vec<Option<UnitGradient>>,
    /// Sums over the ranks, of whole units or of this rank's slices.
    sums: Vec<Option<Copying>>,
    under_way: VecDeque<(usize, Reduction)>,
    kind: Kind,
    /// The format of sums.
    sum_kind: Kind,
    group: Rc<ProcessGroup>,
    zero: ZeroConfig,
    accumulates: bool,
    /// Where the optimizer takes the sums.
    landing: Landing,
    /// Whether every micro batch moves its sums there.
    moves: bool,
    /// Whether a buffer is summed as soon as it is complete.
    at_once: bool,
}

impl Gradients {
    /// No gradient yet for this many units.
    pub(super) fn new(
        units: usize,
        group: Rc<ProcessGroup>,
        config: &EngineConfig,
        placement: &Placement,
    ) -> Self {
        Self {
            buffers: (0..units).map(|_| None).collect(),
            sums: (0..units).map(|_| None).collect(),
            under_way: VecDeque::new(),
            kind: config.precision.grad_accum_dtype.into(),
            sum_kind: config.precision.communication_data_type.into(),
            group,
            zero: config.zero.clone(),
            accumulates: config.gradient_accumulation_steps > 1,
            landing: Landing::new(placement.optimizer.device(), units),
            moves: placement.moves_gradients,
            at_once: false,
        }
    }

    /// A micro batch begins, which may be the `last` of its step.
    pub(super) fn begin(&mut self, last: bool) {
        let ranks = self.group.world_size();
        self.at_once = self.moves
            || self.zero.shards_gradients(ranks)
            || (ranks > 1 && last && self.zero.overlaps());
    }

    /// Gives the gradient of unit `i` out, to be added to and [put back](Self::put_back).
    ///
    /// # Errors
    /// Memory is exhausted.
    pub(super) fn take_out(&mut self, unit: &FlatUnit, i: usize) -> Result<UnitGradient> {
        self.buffers[i].take().map_or_else(|| UnitGradient::new(unit, self.kind), Ok)
    }

    /// Takes the gradient of unit `i` back.
    pub(super) fn put_back(&mut self, i: usize, gradient: UnitGradient) {
        self.buffers[i] = Some(gradient);
    }

    /// Adds gradients of parameters of unit `i`, by number.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub(super) fn add(
        &mut self,
        unit: &FlatUnit,
        i: usize,
        grads: &[(usize, Tensor)],
    ) -> Result<()> {
        let mut gradient = self.take_out(unit, i)?;
        gradient.add(grads)?;
        self.put_back(i, gradient);
        Ok(())
    }

    /// Adds the gradient that was made apart for unit `i`, which may become the unit's own.
    ///
    /// # Errors
    /// libtorch refuses.
    pub(super) fn merge(&mut self, i: usize, gradient: UnitGradient) -> Result<()> {
        match &mut self.buffers[i] {
            Some(own) => own.merge(gradient),
            none => {
                *none = Some(gradient);
                Ok(())
            }
        }
    }

    /// Says that this micro batch adds no more to unit `i`. Every rank does so in the same order.
    ///
    /// # Errors
    /// Those of the sum over the ranks.
    pub(super) fn complete(&mut self, i: usize) -> Result<()> {
        if !self.at_once {
            return Ok(());
        }
        self.start(i)?;
        let most = if self.zero.overlaps() { MOST_UNDER_WAY } else { 0 };
        self.finish(most)
    }

    /// Starts to sum the buffer of unit `i`, if it has one.
    fn start(&mut self, i: usize) -> Result<()> {
        let Some(buffer) = self.buffers[i].take() else { return Ok(()) };
        let buffer = buffer.complete()?;
        let _counting = memory::count_as(memory::Kind::Gradients)?;
        let (kind, most) = (self.sum_kind, self.zero.reduce_bucket_size);
        let sum = match self.group.world_size() {
            n if self.zero.shards_optimizer(n) => self.group.sum_slice(&buffer, kind, most)?,
            _ => self.group.sum_all(&buffer, kind, most)?,
        };
        self.under_way.push_back((i, sum));
        Ok(())
    }

    /// Waits until at most `most` sums are under way.
    fn finish(&mut self, most: usize) -> Result<()> {
        let _counting = memory::count_as(memory::Kind::Gradients)?;
        while self.under_way.len() > most {
            let Some((i, sum)) = self.under_way.pop_front() else { break };
            let sum = sum.wait()?;
            let all = match self.sums[i].take() {
                // The device adds also what is at home elsewhere: the host would wait for it.
                Some(so_far) => so_far.send_on(sum.device())?.wait()?.f_add_(&sum)?,
                // A sum to which nothing is added keeps its format.
                None if self.accumulates => sum.f_to_kind(self.kind)?,
                None => sum,
            };
            self.sums[i] = Some(self.landing.bring(i, all)?);
        }
        Ok(())
    }

    /// The gradients of all units, each of them where the optimizer steps, summed over the ranks:
    /// whole, or from stage 1 on this rank's slices. None is left here. Every rank must call it.
    ///
    /// # Errors
    /// Those of the sums; memory is exhausted.
    pub(super) fn take(&mut self, units: &[FlatUnit]) -> Result<Vec<Tensor>> {
        for (i, unit) in units.iter().enumerate() {
            if self.sums[i].is_none() && self.buffers[i].is_none() && !self.is_under_way(i) {
                self.buffers[i] = Some(UnitGradient::new(unit, self.kind)?);
            }
            // One whole buffer and one sum at a time where a slice is kept.
            self.start(i)?;
            let keeps_slices = self.zero.shards_optimizer(self.group.world_size());
            self.finish(if keeps_slices { MOST_UNDER_WAY } else { usize::MAX })?;
        }
        self.finish(0)?;
        let all = |sum: &mut Option<Copying>| {
            let missing = || Error::new(Code::Internal, "a unit without a gradient");
            sum.take().ok_or_else(missing)?.wait()
        };
        self.sums.iter_mut().map(all).collect()
    }

    fn is_under_way(&self, i: usize) -> bool {
        self.under_way.iter().any(|&(unit, _)| unit == i)
    }

    /// Drops what has been added.
    pub(super) fn clear(&mut self) {
        self.buffers.iter_mut().for_each(|grad| *grad = None);
        self.sums.iter_mut().for_each(|sum| *sum = None);
        self.under_way.clear();
    }
}
