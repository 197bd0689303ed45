//! Which layers each stage of a pipeline has, and which stages share a unit.

use std::{ops::Range, rc::Rc};

use crate::{
    config::{PartitionMethod, PipelineOptions},
    dist::{Mesh, ProcessGroup},
    error::{Code, Error, Result},
    model::{FlatUnit, Model, ModelLayer},
};

/// The layers of a model by stage.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    ranges: Vec<Range<usize>>,
    /// For each unit of the whole model the stages that use it.
    users: Vec<Vec<usize>>,
}

impl Placement {
    /// The layers of `model` cut as `options` say.
    ///
    /// # Errors
    /// [`Code::BadValue`] for more stages than layers, with the numbers.
    pub(super) fn of(model: &Model, options: PipelineOptions) -> Result<Self> {
        let (layers, units, stages) = (model.all_layers(), model.all_units(), options.stages);
        if stages > layers.len() {
            let message = format!(
                "`pipeline.stages` {stages} is more than the {} layers of the model",
                layers.len()
            );
            return Err(Error::new(Code::BadValue, message)
                .option("pipeline.stages")
                .hint("each stage has a layer at least; the other ranks can be replicas"));
        }
        let weight = |layer: &ModelLayer| match options.partition_method {
            PartitionMethod::Uniform => 1,
            PartitionMethod::Parameters => {
                let units = layer.units().iter().map(|&unit| FlatUnit::numel(&units[unit]) as u64);
                units.sum::<u64>()
            }
        };
        let ranges = balanced(&layers.iter().map(weight).collect::<Vec<_>>(), stages);
        let users = |unit| {
            let uses = |range: &&(usize, Range<usize>)| {
                layers[range.1.clone()].iter().any(|layer| layer.units().contains(&unit))
            };
            let numbered: Vec<_> = ranges.iter().cloned().enumerate().collect();
            numbered.iter().filter(uses).map(|(stage, _)| *stage).collect()
        };
        let users = (0..units.len()).map(users).collect();
        Ok(Self { ranges, users })
    }

    /// The layers of a stage.
    pub(super) fn layers(&self, stage: usize) -> Range<usize> {
        self.ranges[stage].clone()
    }

    /// The stage that speaks for a unit of the whole model: the first that uses it.
    pub(super) fn owner(&self, unit: usize) -> usize {
        self.users[unit].first().copied().unwrap_or(0)
    }

    /// How many stages use a unit of the whole model.
    pub(super) fn users(&self, unit: usize) -> usize {
        self.users[unit].len()
    }

    /// For each unit of `model`, which is cut, the group of the ranks of this pipeline that have it
    /// too. Every rank must call it.
    pub(super) fn sharers(
        &self,
        mesh: &Mesh,
        model: &Model,
    ) -> Result<Vec<Option<Rc<ProcessGroup>>>> {
        let mut groups: Vec<(&[usize], Rc<ProcessGroup>)> = Vec::new();
        let mut sharers = Vec::new();
        for i in 0..model.units().len() {
            let stages = &self.users[model.unit_number(i)][..];
            if stages.len() < 2 {
                sharers.push(None);
                continue;
            }
            let known = groups.iter().find(|(known, _)| *known == stages);
            let group = match known {
                Some((_, group)) => Rc::clone(group),
                None => {
                    let group = Rc::new(mesh.sharers(stages)?);
                    groups.push((stages, Rc::clone(&group)));
                    group
                }
            };
            sharers.push(Some(group));
        }
        Ok(sharers)
    }
}

/// Cuts the weights into so many ranges, none of them empty, whose heaviest is as light as can be;
/// of several such cuts the one that fills the first ranges.
fn balanced(weights: &[u64], stages: usize) -> Vec<Range<usize>> {
    let heaviest = weights.iter().copied().max().unwrap_or(0);
    let (mut low, mut high) = (heaviest, weights.iter().sum::<u64>().max(heaviest));
    while low < high {
        let middle = u64::midpoint(low, high);
        match filled(weights, stages, middle).len() <= stages {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    filled(weights, stages, low)
}

/// Fills range after range with at most `most`, leaving a weight for each range that is to come.
fn filled(weights: &[u64], stages: usize, most: u64) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let (mut start, mut sum) = (0, 0u64);
    for (i, &weight) in weights.iter().enumerate() {
        let left = weights.len() - i;
        let must_end = i > start && left < stages.saturating_sub(ranges.len());
        if i > start && (sum + weight > most || must_end) {
            ranges.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += weight;
    }
    ranges.push(start..weights.len());
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_stage_is_as_light_as_can_be() {
        assert_eq!(balanced(&[1, 1, 1, 1], 2), [0..2, 2..4]);
        assert_eq!(balanced(&[9, 1, 1, 1, 9], 3), [0..1, 1..4, 4..5]);
        assert_eq!(balanced(&[5, 1, 1, 1], 2), [0..1, 1..4]);
        assert_eq!(balanced(&[1, 1, 1, 5], 3), [0..2, 2..3, 3..4]);
        assert_eq!(balanced(&[3], 1).len(), 1);
    }

    /// Beside every cut that there is.
    #[test]
    fn no_other_cut_is_better() {
        let weights = [4, 1, 3, 2, 2, 5, 1];
        for stages in 1..=7 {
            let cut = balanced(&weights, stages);
            assert_eq!(cut.len(), stages);
            assert!(cut.iter().all(|range| !range.is_empty()));
            let heaviest = cut.iter().map(|r| weights[r.clone()].iter().sum::<u64>()).max();
            let best = (0u32..1 << 6)
                .filter(|cuts| cuts.count_ones() as usize == stages - 1)
                .map(|cuts| {
                    let (mut sum, mut most) = (0, 0);
                    for (i, weight) in weights.iter().enumerate() {
                        sum += weight;
                        most = most.max(sum);
                        if cuts >> i & 1 == 1 {
                            sum = 0;
                        }
                    }
                    most
                })
                .min();
            assert_eq!(heaviest, best, "{stages} stages");
        }
    }
}
