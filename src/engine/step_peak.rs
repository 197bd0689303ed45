//! The memory that a rank needs at the peak of a step.

use super::{
    MemoryUse,
    plan::{MASTER_BYTES, MemoryPlan, Setup, Sharding},
    step_memory::{Elements, StepMemory},
    step_moments::{GradientElements, Moment},
};
use crate::config::OffloadDevice;

impl Setup {
    /// The memory that a rank of this training needs.
    pub fn plan(&self) -> MemoryPlan {
        let step = StepMemory::of(self);
        let states = step.states();
        let device = step.peak(&states);
        MemoryPlan { device, host: states.host, disk: states.disk }
    }
}

/// What is there at every moment of a step, and what an update needs beside that.
struct States {
    /// On the device, without gradients and what passes hold.
    device: MemoryUse,
    host: u64,
    disk: u64,
    /// Bytes of optimizer state that is read, updated and written on the device.
    in_turn: u64,
    /// Bytes of parameters that are updated on their way to where they are kept.
    updated: u64,
}

impl StepMemory<'_> {
    fn states(&self) -> States {
        let Setup { states, sharding, .. } = self.setup;
        let Sharding { stage, world_size, optimizer, parameters, .. } = *sharding;
        let Elements { staying, going } = self.all();
        let all = staying + going;
        let divided = |bytes: u64, from: u8| {
            if stage >= from { bytes.div_ceil(world_size) } else { bytes }
        };
        // What is not brought for its use stays on the device.
        let (brought, whole): (Vec<usize>, Vec<usize>) =
            self.units().partition(|&unit| self.is_gathered(unit));
        let whole = whole.into_iter().map(|unit| self.stored(unit)).sum();
        let slices = brought.into_iter().map(|unit| divided(self.stored(unit), 3));
        let (largest_slice, slices) = (slices.clone().max().unwrap_or(0), slices.sum::<u64>());
        let has_masters = states.master_weight > 0 || parameters != OffloadDevice::None;
        let master = |elements: u64, has: bool| if has { elements * MASTER_BYTES } else { 0 };
        // Of all parameters alike.
        let state = |elements: u64| {
            let bytes = u128::from(self.setup.optimizer_state) * u128::from(elements);
            bytes.div_ceil(u128::from(all.max(1))) as u64
        };
        let away = master(going, has_masters || self.steps_elsewhere()) + state(going);
        let away = divided(away, 1);
        // A step has three units in memory: one is read, one updated, one written.
        let three = (3 * self.largest_going() * away).div_ceil(going.max(1));
        let device = MemoryUse {
            parameters: whole,
            master_weights: divided(master(staying, has_masters), 1),
            optimizer_state: divided(state(staying), 1),
            ..MemoryUse::default()
        };
        let host = self.kept_on_host() + self.stages();
        let mut all = States { device, host, disk: 0, in_turn: 0, updated: largest_slice };
        match parameters {
            OffloadDevice::None => {
                all.device.parameters += slices;
                all.updated = 0;
            }
            OffloadDevice::Cpu => all.host += slices,
            OffloadDevice::Nvme => all.disk += slices,
        }
        match optimizer.device {
            OffloadDevice::None => {}
            OffloadDevice::Cpu => all.host += away,
            OffloadDevice::Nvme => all.disk += away,
        }
        if self.steps_elsewhere() {
            all.host += divided(going * states.gradient, 1);
        }
        match (optimizer.device, self.steps_elsewhere()) {
            (OffloadDevice::Nvme, true) => all.host += three,
            (OffloadDevice::Nvme, false) => all.in_turn = three,
            _ => {}
        }
        all
    }

    /// The moment with most bytes on the device.
    fn peak(&self, states: &States) -> MemoryUse {
        let with = |Moment { gradients, parameters, held }: Moment| MemoryUse {
            gradients: self.gradients(&gradients),
            parameters: states.device.parameters + parameters,
            activations: held.activations,
            buffers: held.buffers,
            ..states.device
        };
        let of_gradients =
            |gradients| with(Moment { gradients, parameters: states.updated, ..Moment::default() });
        let update = |all: Elements| {
            of_gradients(match self.keeps_slices() {
                true => GradientElements { reduced: all, ..GradientElements::default() },
                false => GradientElements { whole: all, ..GradientElements::default() },
            })
        };
        let step_begins = update(self.all());
        let sums = self.gradients_of_step().into_iter().map(of_gradients);
        // The units on disk are updated last, when the gradients of the others are gone.
        let last = update(Elements { staying: 0, ..self.all() });
        let last = MemoryUse { optimizer_state: last.optimizer_state + states.in_turn, ..last };
        let moments = self.moments().into_iter().map(with);
        let all = moments.chain(sums).chain([step_begins, last]);
        all.max_by_key(MemoryUse::peak).unwrap_or(last)
    }

    /// Bytes of gradients on the device when there are these.
    fn gradients(&self, GradientElements { reduced, whole }: &GradientElements) -> u64 {
        let Sharding { stage, world_size, .. } = self.setup.sharding;
        let bytes = self.setup.states.gradient;
        let Elements { staying, going } = *whole;
        // A gradient goes to the host as soon as it is reduced.
        let goes_on = stage >= 2 && self.steps_elsewhere();
        let (whole, leaving) = match (self.reduces_at_once(), goes_on) {
            // Alone a rank has nothing to reduce, and one gradient on its way.
            (false, true) => (staying, going.min(self.largest_going())),
            _ => (staying + going, 0),
        };
        let slices = if goes_on { reduced.staying } else { reduced.staying + reduced.going };
        (whole + leaving + slices.div_ceil(world_size)) * bytes
    }
}
