//! What exists at each moment of a step that can be the peak of its memory, beside the states that are
//! always there: gradients, parameters that are brought for their use, activations and buffers.

use std::collections::BTreeSet;

use super::{parameter_shards::brought_ahead, step_memory::StepMemory};
use crate::model::{Direction, HeldBytes, ModelLayer};

/// A moment of a step.
#[derive(Debug, Default)]
pub(super) struct Moment {
    /// The gradients that have been made.
    pub(super) gradients: GradientUnits,
    /// Bytes of parameters where they were gathered or dequantized.
    pub(super) parameters: u64,
    /// Activations and buffers.
    pub(super) held: HeldBytes,
}

/// Units whose gradients exist.
#[derive(Debug, Default)]
pub(super) struct GradientUnits {
    /// Added up over the ranks where a rank keeps its slice of the sum.
    pub(super) reduced: BTreeSet<usize>,
    /// Whole, as this rank has added them.
    pub(super) whole: BTreeSet<usize>,
    /// Of a pass alone, before it is added to those of the passes before.
    pub(super) of_pass: Option<usize>,
}

impl StepMemory<'_> {
    /// The moments of the forward passes that make gradients, and of all backward passes.
    pub(super) fn moments(&self) -> Vec<Moment> {
        let lowest = self.setup.model.lowest_backward();
        let kept = self.kept_below();
        let mut so_far = Progress::default();
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
            let activations = cost.backward.activations + kept[i] + back * cost.output;
            let before = self.gradient_units(&so_far);
            so_far.made.extend(layer.places().all().map(|place| place.unit));
            let with = self.gradient_units(&so_far);
            moments.push(Moment {
                gradients: if cost.adds_gradients_last { before } else { with },
                parameters: self.parameters_in_use(i, Direction::Backward),
                held: HeldBytes { activations, ..cost.backward },
            });
            so_far.complete(layer);
            if self.reduces_at_once() {
                moments.push(Moment {
                    gradients: self.gradients_on_their_way(&so_far, layer),
                    held: HeldBytes {
                        activations: kept[i],
                        buffers: i.checked_sub(1).map_or(0, |below| self.layers[below].output),
                    },
                    ..Moment::default()
                });
            }
        }
        moments
    }

    /// The gradients while those of the units that a layer completes are reduced.
    fn gradients_on_their_way(&self, so_far: &Progress, layer: &ModelLayer) -> GradientUnits {
        let mut gradients = self.gradient_units(so_far);
        let on_their_way = layer.completes.iter().copied();
        gradients.whole.extend(on_their_way.filter(|unit| self.trained().contains(unit)));
        gradients
    }

    /// The gradients while each unit in turn is summed in the step, where the backward pass leaves that
    /// to it and a rank keeps slices.
    pub(super) fn gradients_of_step(&self) -> impl Iterator<Item = GradientUnits> {
        self.trained().map(|unit| GradientUnits {
            reduced: self.trained().take(unit + 1).collect(),
            whole: self.trained().skip(unit).collect(),
            of_pass: None,
        })
    }

    /// What is kept while each layer runs backward: of the layers below, and of passes that wait.
    fn kept_below(&self) -> Vec<u64> {
        let lowest = self.setup.model.lowest_backward();
        let (mut kept, mut before) = (Vec::new(), 0);
        for (i, cost) in self.layers.iter().enumerate() {
            kept.push(before);
            before += if i < lowest { 0 } else { self.kept(i, cost) };
        }
        // Passes that wait hold all that a pass keeps.
        let waiting =
            (self.setup.in_flight - 1) * before + self.setup.in_flight * self.setup.incoming;
        kept.iter_mut().for_each(|kept| *kept += waiting);
        kept
    }

    /// The gradients that there are behind a layer.
    fn gradient_units(&self, Progress { made, complete, last }: &Progress) -> GradientUnits {
        let is_trained = |unit: &usize| self.trained().contains(unit);
        let made = made.iter().copied().filter(is_trained);
        if !self.reduces_at_once() {
            let whole = if self.accumulates() { self.trained().collect() } else { made.collect() };
            return GradientUnits { whole, ..GradientUnits::default() };
        }
        let mut whole: BTreeSet<_> = made.filter(|unit| !complete.contains(unit)).collect();
        let complete = complete.iter().copied().filter(is_trained);
        let reduced =
            if self.accumulates() { self.trained().collect() } else { complete.collect() };
        // Its buffer exists until the next one begins to travel.
        let under_way = if self.setup.sharding.overlaps() { *last } else { None };
        whole.extend(under_way.filter(is_trained));
        GradientUnits { reduced, whole, of_pass: None }
    }

    /// The gradients of a layer that its forward pass makes: of the first unit that it names, where the
    /// projection is.
    fn gradients_of_forward(&self, layer: &ModelLayer) -> GradientUnits {
        let trained = layer
            .places()
            .all()
            .map(|place| place.unit)
            .filter(|unit| self.trained().contains(unit));
        let of_pass = trained.last();
        GradientUnits { of_pass, ..self.gradient_units(&Progress::default()) }
    }

    /// Bytes of the units that are gathered or dequantized while layer `i` runs.
    fn parameters_in_use(&self, i: usize, direction: Direction) -> u64 {
        let model = &self.setup.model;
        let sharding = self.setup.sharding;
        let gathered = |unit: &usize| self.is_gathered(*unit);
        let following = model.reads_after(i, direction).into_iter().filter(gathered);
        let following = following.map(|unit| (unit, model.units()[unit].numel() as u64));
        let mut here: BTreeSet<_> =
            model.reads(i, direction).iter().copied().filter(gathered).collect();
        here.extend(brought_ahead(following, sharding.prefetch_bucket_size));
        let gathered = here.into_iter().map(|unit| self.stored(unit)).sum::<u64>();
        gathered + model.reads(i, direction).iter().map(|&unit| self.dequantized(unit)).sum::<u64>()
    }
}

/// How far a backward pass has come.
#[derive(Default)]
struct Progress {
    /// Units with a gradient of some layer.
    made: BTreeSet<usize>,
    /// Units that no layer below uses.
    complete: BTreeSet<usize>,
    /// The last one of these.
    last: Option<usize>,
}

impl Progress {
    fn complete(&mut self, layer: &ModelLayer) {
        self.complete.extend(&layer.completes);
        self.last = layer.completes.last().copied().or(self.last);
    }
}
