//! The gradients of the parameter units: flat buffers that exist from a unit's first gradient to
//! the optimizer step, so that they take no memory while activations do.
//!
//! The buffer of a unit is summed over the ranks when its last gradient is there. ZeRO's stage 2
//! does so in every micro batch, keeps this rank's slice of the sum and frees the buffer; below it
//! the sum is made once, in the step. With `overlap_comm` the sum of one unit is under way while
//! the layer below is differentiated, in stages 0 and 1 in the last micro batch. Sums go to where the
//! optimizer steps, beside what the device computes; from stage 2 on in every micro batch, so that the
//! device never has them all.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use super::{host_gradients::HostGradients, offload::Offload};
use crate::{
    bridge::memory,
    config::{EngineConfig, ZeroConfig},
    dist::{ProcessGroup, ReduceOp, Reduction},
    error::{Code, Error, Result},
    model::{FlatUnit, ParamPlace, SharedGradients, UnitGradients},
    tensor::{Copying, Kind, Tensor},
};

/// Sums under way beside the backward pass: while one is waited for, its buffer exists.
const MOST_UNDER_WAY: usize = 1;

/// The gradients of each unit.
pub(super) struct Gradients {
    /// The gradients that this rank has added and not yet reduced.
    buffers: SharedGradients,
    /// Sums over the ranks, of whole units or of this rank's slices.
    sums: Vec<Option<Copying>>,
    under_way: VecDeque<(usize, Reduction)>,
    kind: Kind,
    /// The format of sums.
    sum_kind: Kind,
    group: Rc<ProcessGroup>,
    /// For each unit the ranks of other stages that have it too.
    sharers: Vec<Option<Rc<ProcessGroup>>>,
    zero: ZeroConfig,
    accumulates: bool,
    /// Where the optimizer takes the sums.
    host_gradients: HostGradients,
    /// For each unit whether every micro batch moves its sum there.
    moves: Vec<bool>,
    /// Whether a buffer is summed as soon as it is complete.
    at_once: bool,
}

impl Gradients {
    /// No gradient yet of these units, which `group` sums, and then for each unit its sharers.
    pub(super) fn new(
        units: &Rc<[FlatUnit]>,
        (group, sharers): (Rc<ProcessGroup>, Vec<Option<Rc<ProcessGroup>>>),
        config: &EngineConfig,
        offload: &Offload,
    ) -> Self {
        let kind = config.precision.grad_accum_dtype.into();
        let places = &offload.optimizer;
        Self {
            buffers: Rc::new(RefCell::new(UnitGradients::new(units, kind))),
            sums: places.iter().map(|_| None).collect(),
            under_way: VecDeque::new(),
            kind,
            sum_kind: config.precision.communication_data_type.into(),
            group,
            sharers,
            zero: config.zero.clone(),
            accumulates: config.gradient_accumulation_steps > 1,
            host_gradients: HostGradients::new(
                places.iter().map(|place| place.location.device()).collect(),
            ),
            moves: places.iter().map(|place| place.moves_gradient).collect(),
            at_once: false,
        }
    }

    /// Steps have several micro batches from now on, or one.
    pub(super) fn set_accumulates(&mut self, accumulates: bool) {
        self.accumulates = accumulates;
    }

    /// A micro batch begins, which may be the `last` of its step.
    pub(super) fn begin(&mut self, last: bool) {
        let ranks = self.group.world_size();
        self.at_once =
            self.zero.shards_gradients(ranks) || (ranks > 1 && last && self.zero.overlaps());
    }

    /// The gradients of this rank, for the operations of a backward pass to add to.
    pub(super) fn shared(&self) -> &SharedGradients {
        &self.buffers
    }

    /// Adds the gradients that there are of parameters, each named once.
    pub(super) fn add(
        &self,
        grads: impl Iterator<Item = (ParamPlace, Option<Tensor>)>,
    ) -> Result<()> {
        let mut by_unit: BTreeMap<usize, Vec<(usize, Tensor)>> = BTreeMap::new();
        for (ParamPlace { unit, index }, grad) in grads {
            let of_unit = by_unit.entry(unit).or_default();
            of_unit.extend(grad.map(|grad| (index, grad)));
        }
        let mut buffers = self.buffers.borrow_mut();
        by_unit.iter().try_for_each(|(&unit, grads)| buffers.open(unit)?.add(grads))
    }

    /// Marks unit `i` as complete for this micro batch. Every rank does so in the same order.
    pub(super) fn complete(&mut self, i: usize) -> Result<()> {
        // A unit that is frozen has no place.
        if !self.at_once && self.moves.get(i) != Some(&true) {
            return Ok(());
        }
        self.start(i)?;
        let most = if self.zero.overlaps() { MOST_UNDER_WAY } else { 0 };
        self.finish(most)
    }

    /// Starts to sum the buffer of unit `i`, if it has one.
    fn start(&mut self, i: usize) -> Result<()> {
        let Some(buffer) = self.buffers.borrow_mut().take(i) else { return Ok(()) };
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
                // The device adds also what is kept elsewhere: the host would wait for it.
                Some(so_far) => so_far.send_on(sum.device())?.wait()?.f_add_(&sum)?,
                // A sum to which nothing is added keeps its format.
                None if self.accumulates => sum.f_to_kind(self.kind)?,
                None => sum,
            };
            self.sums[i] = Some(self.host_gradients.receive(i, all)?);
        }
        Ok(())
    }

    /// The gradients of the units that are trained, each of them where the optimizer steps, summed over
    /// the ranks: whole, or from stage 1 on this rank's slices. None is left here. Every rank must call
    /// it.
    pub(super) fn take(&mut self) -> Result<Vec<Tensor>> {
        for i in 0..self.sums.len() {
            if self.sums[i].is_none() && !self.is_under_way(i) {
                self.buffers.borrow_mut().open(i)?;
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
        let sums: Vec<Tensor> = self.sums.iter_mut().map(all).collect::<Result<_>>()?;
        // Stages that share a unit have each their part of its gradient.
        sums.into_iter()
            .zip(&self.sharers)
            .map(|(sum, sharers)| over_stages(sum, sharers.as_deref()))
            .collect()
    }

    fn is_under_way(&self, i: usize) -> bool {
        self.under_way.iter().any(|&(unit, _)| unit == i)
    }

    /// Drops what has been added.
    pub(super) fn clear(&mut self) {
        self.buffers.borrow_mut().clear();
        self.sums.iter_mut().for_each(|sum| *sum = None);
        self.under_way.clear();
    }
}

/// The sum of a unit's gradient over the stages that share it, where it was.
fn over_stages(sum: Tensor, sharers: Option<&ProcessGroup>) -> Result<Tensor> {
    let Some(sharers) = sharers else { return Ok(sum) };
    let place = sum.device();
    let all = sum.f_to_device(sharers.device())?;
    sharers.all_reduce(&all, ReduceOp::Sum)?;
    Ok(all.f_to_device(place)?)
}
