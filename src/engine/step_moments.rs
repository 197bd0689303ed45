//! What exists at each moment of a step that can be the peak of its memory, beside the states that are
//! always there: gradients, parameters that are brought for their use, activations and buffers.

use std::collections::BTreeSet;

use super::{
    parameter_shards::brought_ahead,
    plan::Setup,
    step_memory::{Elements, StepMemory},
};
use crate::model::{Direction, HeldBytes, ModelLayer};

/// A moment of a step.
#[derive(Debug, Default)]
pub(super) struct Moment {
    /// The gradients that have been made.
    pub(super) gradients: GradientElements,
    /// Bytes of parameters where they were gathered or dequantized.
    pub(super) parameters: u64,
    /// Activations and buffers.
    pub(super) held: HeldBytes,
}

/// Elements of the units whose gradients exist.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GradientElements {
    /// Added up over the ranks where a rank keeps its slice of the sum.
    pub(super) reduced: Elements,
    /// Whole, as this rank has added them.
    pub(super) whole: Elements,
}

impl StepMemory<'_> {
    /// The moments of the forward passes that make gradients, and of all backward passes.
    pub(super) fn moments(&self) -> Vec<Moment> {
        let lowest = self.setup.model.lowest_backward();
        let kept = self.kept_below();
        let mut so_far = Progress::of(self);
        let mut moments = Vec::new();
        let layers = self.setup.model.layers();
        for (i, (layer, cost)) in layers.iter().zip(&self.layers).enumerate().skip(lowest).rev() {
            if cost.forward > 0 {
                moments.push(Moment {
                    gradients: self.gradients_of_forward(layer),
                    parameters: self.parameters_in_use(i, Direction::Forward),
                    held: HeldBytes { activations: kept[i], buffers: cost.forward },
                });
            }
            // The input of the layer below comes back while this one runs.
            let below = i.checked_sub(1).filter(|&below| self.input_on_host(below));
            let back = u64::from(self.input_on_host(i)) + u64::from(below.is_some());
            let activations = cost.backward.activations
                + kept[i]
                + back * (cost.output + self.given(i).iter().sum::<u64>());
            let before = so_far.gradients();
            so_far.make(layer);
            let with = so_far.gradients();
            moments.push(Moment {
                gradients: if cost.adds_gradients_last { before } else { with },
                parameters: self.parameters_in_use(i, Direction::Backward),
                held: HeldBytes { activations, ..cost.backward },
            });
            let completed = so_far.complete(layer);
            if self.reduces_at_once() {
                let GradientElements { reduced, whole } = so_far.gradients();
                let buffers = i.checked_sub(1).map_or(0, |below| self.layers[below].output);
                moments.push(Moment {
                    gradients: GradientElements { reduced, whole: whole + completed },
                    held: HeldBytes { activations: kept[i], buffers },
                    ..Moment::default()
                });
            }
        }
        moments
    }

    /// The gradients while each unit in turn is summed in the step, where the backward pass leaves that
    /// to it and a rank keeps slices.
    pub(super) fn gradients_of_step(&self) -> Vec<GradientElements> {
        if !self.keeps_slices() || self.reduces_at_once() {
            return Vec::new();
        }
        let mut so_far = GradientElements { whole: self.all(), ..GradientElements::default() };
        let sum = |unit| {
            let of_unit = self.elements([unit]);
            so_far.reduced = so_far.reduced + of_unit;
            let now = so_far;
            so_far.whole = so_far.whole - of_unit;
            now
        };
        self.trained().map(sum).collect()
    }

    /// What is kept while each layer runs backward: of the layers below, and of passes that wait.
    fn kept_below(&self) -> Vec<u64> {
        let lowest = self.setup.model.lowest_backward();
        let (mut kept, mut before) = (Vec::new(), 0);
        for (i, cost) in self.layers.iter().enumerate() {
            kept.push(before + self.given_gradients(i));
            before += if i < lowest { 0 } else { self.kept(i, cost) };
        }
        let mask = self.layers.iter().map(|cost| cost.mask).max().unwrap_or(0);
        let tables: BTreeSet<_> = self.layers.iter().filter_map(|cost| cost.angles).collect();
        let tables = tables.iter().map(|table| table.bytes).sum::<u64>();
        // Passes that wait hold all that a pass keeps.
        let Setup { in_flight, incoming, .. } = *self.setup;
        let waiting = (in_flight - 1) * before + in_flight * (incoming + mask);
        kept.iter_mut().for_each(|kept| *kept += tables + waiting);
        kept
    }

    /// The gradients of a layer that its forward pass makes, before they are added to those of the passes
    /// before: of the first unit that it names, where the projection is.
    fn gradients_of_forward(&self, layer: &ModelLayer) -> GradientElements {
        let units = layer.places().all().map(|place| place.unit);
        let of_pass = units.filter(|unit| self.trained().contains(unit)).last();
        let GradientElements { reduced, whole } = Progress::of(self).gradients();
        GradientElements { reduced, whole: whole + self.elements(of_pass) }
    }

    /// Bytes of the units that are gathered or dequantized while layer `i` runs.
    fn parameters_in_use(&self, i: usize, direction: Direction) -> u64 {
        let model = &self.setup.model;
        let sharding = self.setup.sharding;
        let gathered = |unit: &usize| self.is_gathered(*unit);
        let following = model.reads_after(i, direction).filter(gathered);
        let following = following.map(|unit| (unit, model.units()[unit].numel() as u64));
        let mut here: BTreeSet<_> =
            model.reads(i, direction).iter().copied().filter(gathered).collect();
        here.extend(brought_ahead(following, sharding.prefetch_bucket_size));
        let gathered = here.into_iter().map(|unit| self.stored(unit)).sum::<u64>();
        gathered + model.reads(i, direction).iter().map(|&unit| self.dequantized(unit)).sum::<u64>()
    }
}

/// How far a backward pass has come.
struct Progress<'a> {
    step: &'a StepMemory<'a>,
    /// Of all trained units.
    all: Elements,
    /// Units with a gradient of some layer.
    made: BTreeSet<usize>,
    /// Those among them that a layer below uses too.
    open: BTreeSet<usize>,
    /// Elements of the units with a gradient.
    elements: Elements,
    /// Elements of those that no layer below uses.
    complete: Elements,
    /// The last one of these.
    last: Option<usize>,
}

impl<'a> Progress<'a> {
    fn of(step: &'a StepMemory<'a>) -> Self {
        let none = Elements::default();
        let (made, open) = Default::default();
        Self { step, all: step.all(), made, open, elements: none, complete: none, last: None }
    }

    /// A layer makes its gradients.
    fn make(&mut self, layer: &ModelLayer) {
        for unit in layer.places().all().map(|place| place.unit) {
            if self.step.trained().contains(&unit) && self.made.insert(unit) {
                self.open.insert(unit);
                self.elements = self.elements + self.step.elements([unit]);
            }
        }
    }

    /// A layer has run; the elements of the units that no layer below uses.
    fn complete(&mut self, layer: &ModelLayer) -> Elements {
        let units =
            layer.completes.iter().copied().filter(|unit| self.step.trained().contains(unit));
        let completed = self.step.elements(units.clone());
        self.last = units.clone().next_back().or(self.last);
        for unit in units {
            self.open.remove(&unit);
        }
        self.complete = self.complete + completed;
        completed
    }

    /// The gradients that there are.
    fn gradients(&self) -> GradientElements {
        let (step, all) = (self.step, self.all);
        let of_passes = |so_far| if step.accumulates() { all } else { so_far };
        if !step.reduces_at_once() {
            let whole = of_passes(self.elements);
            return GradientElements { whole, ..GradientElements::default() };
        }
        // Its buffer exists until the next one begins to travel.
        let under_way = if step.setup.sharding.overlaps() { self.last } else { None };
        let whole = step.elements(self.open.iter().copied().chain(under_way));
        GradientElements { reduced: of_passes(self.complete), whole }
    }
}
