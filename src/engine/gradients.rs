//! The gradients of the parameter units: flat buffers that exist from a unit's first gradient to
//! the optimizer step, so that they take no memory while activations do.
//!
//! The buffer of a unit is summed over the ranks when its last gradient is there. ZeRO's stage 2
//! does so in every micro batch, keeps this rank's slice of the sum and frees the buffer; below it
//! the sum is made once, in the step. With `overlap_comm` the sum of one unit is under way while
//! the layer below is differentiated, in stages 0 and 1 in the last micro batch. Sums go to where the
//! optimizer steps; from stage 2 on in every micro batch, so that the device never has them all.

use std::{collections::VecDeque, rc::Rc};

use super::placement::Placement;
use crate::{
    bridge::memory,
    config::{EngineConfig, ZeroConfig},
    dist::{ProcessGroup, Reduction},
    error::{Code, Error, Result},
    model::FlatUnit,
    tensor::{Device, Kind, Tensor, moved, no_grad, synchronize},
};

/// Sums under way beside the backward pass: while one is waited for, its buffer exists.
const MOST_UNDER_WAY: usize = 1;

/// The gradients of each unit.
pub(super) struct Gradients {
    /// What this rank has added and not yet summed.
    buffers: Vec<Option<Tensor>>,
    /// Sums over the ranks, of whole units or of this rank's slices.
    sums: Vec<Option<Tensor>>,
    under_way: VecDeque<(usize, Reduction)>,
    kind: Kind,
    /// The format of sums.
    sum_kind: Kind,
    group: Rc<ProcessGroup>,
    zero: ZeroConfig,
    accumulates: bool,
    /// Where the optimizer takes the sums.
    home: Device,
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
        let none = || (0..units).map(|_| None).collect();
        Self {
            buffers: none(),
            sums: none(),
            under_way: VecDeque::new(),
            kind: config.precision.grad_accum_dtype.into(),
            sum_kind: config.precision.communication_data_type.into(),
            group,
            zero: config.zero.clone(),
            accumulates: config.gradient_accumulation_steps > 1,
            home: placement.optimizer.device(),
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

    /// Adds the gradients of the first parameters of unit `i`, in order; each is freed before the
    /// next is asked for.
    pub(super) fn add(
        &mut self,
        unit: &FlatUnit,
        i: usize,
        grads: impl IntoIterator<Item = Tensor>,
    ) -> Result<()> {
        no_grad(|| match &self.buffers[i] {
            Some(flat) => {
                for (mut view, grad) in unit.views(flat).into_iter().zip(grads) {
                    let _ = view.f_add_(&grad)?;
                }
                Ok(())
            }
            None => {
                let flat = zeros(unit, self.kind)?;
                for (mut view, grad) in unit.views(&flat).into_iter().zip(grads) {
                    view.f_copy_(&grad)?;
                }
                self.buffers[i] = Some(flat);
                Ok(())
            }
        })
    }

    /// Adds a whole buffer to unit `i`, which may become the unit's own.
    pub(super) fn add_flat(&mut self, i: usize, buffer: Tensor) -> Result<()> {
        match &mut self.buffers[i] {
            Some(flat) => {
                let _ = no_grad(|| flat.f_add_(&buffer))?;
            }
            none => *none = Some(buffer),
        }
        Ok(())
    }

    /// The parameters' parts of the buffer of unit `i`, which is made if there is none.
    pub(super) fn views(&mut self, unit: &FlatUnit, i: usize) -> Result<Vec<Tensor>> {
        let flat = match &mut self.buffers[i] {
            Some(flat) => flat,
            none => none.insert(zeros(unit, self.kind)?),
        };
        Ok(unit.views(flat))
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
        let _counting = memory::count_as(memory::Kind::Gradients)?;
        let (kind, most) = (self.sum_kind, self.zero.reduce_bucket_size);
        let sum = match self.group.world_size() {
            1 => Reduction::of_one(buffer),
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
                Some(so_far) => moved(&so_far, sum.device())?.f_add_(&sum)?,
                // A sum to which nothing is added keeps its format.
                None if self.accumulates => sum.f_to_kind(self.kind)?,
                None => sum,
            };
            self.sums[i] = Some(moved(&all, self.home)?);
        }
        Ok(())
    }

    /// The gradients of all units, each of them where the optimizer steps, summed over the ranks:
    /// whole, or from stage 1 on this rank's slices. None is left here. Every rank must call it.
    ///
    /// # Errors
    /// Those of the sums; memory is exhausted. Panics as [`synchronize`].
    pub(super) fn take(&mut self, units: &[FlatUnit]) -> Result<Vec<Tensor>> {
        for (i, unit) in units.iter().enumerate() {
            if self.sums[i].is_none() && self.buffers[i].is_none() && !self.is_under_way(i) {
                self.buffers[i] = Some(zeros(unit, self.kind)?);
            }
            // One whole buffer and one sum at a time where a slice is kept.
            self.start(i)?;
            let keeps_slices = self.zero.shards_optimizer(self.group.world_size());
            self.finish(if keeps_slices { MOST_UNDER_WAY } else { usize::MAX })?;
        }
        self.finish(0)?;
        synchronize(self.group.device());
        let all = |sum: &mut Option<Tensor>| {
            sum.take().ok_or_else(|| Error::new(Code::Internal, "a unit without a gradient"))
        };
        self.sums.iter_mut().map(all).collect()
    }

    fn is_under_way(&self, i: usize) -> bool {
        self.under_way.iter().any(|&(unit, _)| unit == i)
    }

    /// Drops what has been added.
    pub(super) fn clear(&mut self) {
        self.buffers.iter_mut().chain(&mut self.sums).for_each(|grad| *grad = None);
        self.under_way.clear();
    }
}

/// A buffer of zeros laid out as `unit` in the format `kind`, counted as gradient.
pub(super) fn zeros(unit: &FlatUnit, kind: Kind) -> Result<Tensor> {
    let _counting = memory::count_as(memory::Kind::Gradients)?;
    unit.zeros_of(kind)
}
