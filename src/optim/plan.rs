//! The parts of units that are updated alike, and their state.
//!
//! Neighbours in a unit that are updated alike are one [`FlatSlice`], padding included, so that a unit
//! without groups is one call of a kernel; all slices with the same settings are one [`UpdateGroup`].

use super::{
    algorithm::rule_of,
    blockwise,
    flat_slice::{FlatSlice, PlanParam, ShardParamInfo},
    group_settings::{GroupSettings, settings_of},
    layout::{ParamLayout, UnitLayout},
    overrides::GroupOverrides,
};
use crate::{
    config::{OptimizerConfig, optimizer::StateDtype},
    dist::ShardSpec,
    error::{Error, Result},
    tensor::{Kind, bytes_of},
};

/// An optimizer's work and state before any memory is taken.
#[derive(Debug)]
pub struct OptimizerPlan {
    pub(super) config: OptimizerConfig,
    pub(super) groups: Vec<UpdateGroup>,
    /// Every parameter, also those of which this rank has nothing.
    pub(super) params: Vec<PlanParam>,
    /// Elements of each unit, padding included.
    pub(super) units: Vec<i64>,
    /// The slice of each unit that this rank updates; `None` for all of it.
    pub(super) shard: Option<ShardSpec>,
}

/// Spans that are updated alike.
#[derive(Debug)]
pub(super) struct UpdateGroup {
    pub(super) settings: GroupSettings,
    /// The parts that this rank updates.
    pub(super) slices: Vec<FlatSlice>,
    /// The units with parameters of the group, the same on all ranks, in order.
    pub(super) units: Vec<usize>,
}

impl OptimizerPlan {
    /// The plan for these units, or for a slice of each.
    pub fn new(
        config: &OptimizerConfig,
        units: &[UnitLayout],
        shard: Option<ShardSpec>,
    ) -> Result<Self> {
        Self::beside(config, units, shard, &[])
    }

    /// As [`OptimizerPlan::new`], of a model that has frozen parameters too: patterns may name them.
    pub fn beside(
        config: &OptimizerConfig,
        units: &[UnitLayout],
        shard: Option<ShardSpec>,
        frozen: &[&str],
    ) -> Result<Self> {
        let choices = GroupOverrides::of(config);
        let mut faults = choices.unused(units, frozen);
        let numels = units.iter().map(|unit| unit.numel).collect();
        let mut plan =
            Self { config: config.clone(), groups: vec![], params: vec![], units: numels, shard };
        for (index, unit) in units.iter().enumerate() {
            let ends = unit.params.iter().skip(1).map(|p| p.offset).chain([unit.numel]);
            let mut last: Option<usize> = None;
            for (param, end) in unit.params.iter().zip(ends) {
                match settings_of(config, &choices, param) {
                    Ok(settings) => last = Some(plan.add(settings, last, (index, param, end))),
                    Err(fault) => faults.push(fault),
                }
            }
        }
        Error::all(faults).map_or(Ok(plan), Err)
    }

    /// Adds a parameter, which ends at `end` with its padding, to the last slice, if that is of the
    /// same group, or in a new one; returns its group, where `last` is the one before.
    fn add(
        &mut self,
        settings: GroupSettings,
        last: Option<usize>,
        (unit, param, end): (usize, &ParamLayout, i64),
    ) -> usize {
        let index = self.params.len();
        let is_blockwise = blockwise::applies(&self.config, &settings.rule, param.numel());
        self.params.push(PlanParam {
            name: param.name.clone(),
            unit,
            offset: param.offset,
            shape: param.shape.clone(),
            states: rule_of(&settings.rule).state_names(),
            is_blockwise,
        });
        let at = self.groups.iter().position(|group| group.settings == settings);
        let at = at.unwrap_or_else(|| {
            self.groups.push(UpdateGroup { settings, slices: vec![], units: vec![] });
            self.groups.len() - 1
        });
        let group = &mut self.groups[at];
        if group.units.last() != Some(&unit) {
            group.units.push(unit);
        }
        let own =
            self.shard.unwrap_or(ShardSpec::WHOLE).overlap(self.units[unit], param.offset, end);
        let Some((from, to, offset)) = own else { return at };
        let follows = |slice: &&mut FlatSlice| {
            let is_next = slice.unit == unit && slice.unit_offset + slice.len == from;
            is_next && !slice.is_blockwise && !is_blockwise
        };
        if last != Some(at) || group.slices.last_mut().filter(follows).is_none() {
            group.slices.push(FlatSlice {
                unit,
                number: unit,
                offset,
                unit_offset: from,
                len: 0,
                is_blockwise,
                params: vec![],
            });
        }
        if let Some(slice) = group.slices.last_mut() {
            slice.len = to - slice.unit_offset;
            let there = to.min(param.offset + param.numel()) - from;
            // There may be nothing but its padding.
            if there > 0 {
                slice.params.push(ShardParamInfo {
                    index,
                    offset: from - slice.unit_offset,
                    start: from - param.offset,
                    len: there,
                    fan_in_out: param.fan_in_out,
                });
            }
        }
        at
    }

    /// The plan for the units of these numbers alone, which it counts anew: those of the other ones
    /// are other ranks' business.
    pub fn keeping(mut self, numbers: &[usize]) -> Self {
        let kept = |unit: usize| numbers.iter().position(|&number| number == unit);
        for group in &mut self.groups {
            group.slices.retain_mut(|slice| {
                kept(slice.number).is_some_and(|unit| {
                    slice.unit = unit;
                    true
                })
            });
            group.units = group.units.iter().filter_map(|&unit| kept(unit)).collect();
        }
        // Parameters are known by their numbers.
        self.params
            .iter_mut()
            .for_each(|param| param.unit = kept(param.unit).unwrap_or(usize::MAX));
        self.units = numbers.iter().map(|&number| self.units[number]).collect();
        self
    }

    /// Elements of all state tensors together.
    pub fn state_numel(&self) -> u64 {
        self.groups
            .iter()
            .map(|group| {
                let elements: i64 = group.slices.iter().map(|slice| slice.len).sum();
                rule_of(&group.settings.rule).state_names().len() as u64 * elements as u64
            })
            .sum()
    }

    /// Bytes of all state tensors together.
    pub fn state_bytes(&self) -> u64 {
        let tensors = self.groups.iter().flat_map(|group| {
            group.slices.iter().flat_map(|slice| state_tensors(&self.config, group, slice))
        });
        tensors.map(|(kind, numel)| bytes_of(kind, numel)).sum()
    }
}

/// The format and the elements of each state tensor of a slice.
pub(super) fn state_tensors(
    config: &OptimizerConfig,
    group: &UpdateGroup,
    slice: &FlatSlice,
) -> Vec<(Kind, i64)> {
    let slots = rule_of(&group.settings.rule).state_names().len();
    match slice.is_blockwise {
        true => blockwise::state_tensors(slots, slice.len),
        false => vec![(state_kind(config), slice.len); slots],
    }
}

/// The dtype of state tensors.
pub(super) fn state_kind(config: &OptimizerConfig) -> Kind {
    match config.state_dtype {
        StateDtype::Fp32 => Kind::Float,
        StateDtype::Bf16 => Kind::BFloat16,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use glob::Pattern;

    use super::*;
    use crate::config::optimizer::{Algorithm, LambConfig, MuonConfig, ParamGroup, SgdConfig};

    fn unit(names: &[&str]) -> UnitLayout {
        let param = |(i, name): (usize, &&str)| ParamLayout {
            name: (*name).to_owned(),
            offset: i as i64 * 16,
            shape: vec![3, 3],
            fan_in_out: name.ends_with("c_fc.weight").then_some((3, 3)),
        };
        let params: Vec<_> = names.iter().enumerate().map(param).collect();
        UnitLayout { numel: params.len() as i64 * 16, params }
    }

    /// An embedding, two blocks and a norm.
    pub(in crate::optim) fn units() -> Vec<UnitLayout> {
        let block = ["h.0.ln.weight", "h.0.ln.bias", "h.0.c_fc.weight", "h.0.c_fc.bias"];
        let second = block.map(|name| name.replace("h.0", "h.1"));
        let second: Vec<_> = second.iter().map(String::as_str).collect();
        vec![unit(&["wte.weight"]), unit(&block), unit(&second), unit(&["ln_f.bias"])]
    }

    pub(in crate::optim) fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
    }

    pub(in crate::optim) fn group(
        params: &[&str],
        lr: Option<f64>,
        weight_decay: Option<f64>,
    ) -> ParamGroup {
        ParamGroup { params: patterns(params), lr, weight_decay }
    }

    /// Unit, offset and length of each slice of each group.
    fn slices(plan: &OptimizerPlan) -> Vec<Vec<(usize, i64, i64)>> {
        let slice = |s: &FlatSlice| (s.unit, s.offset, s.len);
        plan.groups.iter().map(|group| group.slices.iter().map(slice).collect()).collect()
    }

    #[test]
    fn without_groups_a_unit_is_one_span() {
        let plan = OptimizerPlan::new(&OptimizerConfig::default(), &units(), None).unwrap();
        assert_eq!(slices(&plan), [[(0, 0, 16), (1, 0, 64), (2, 0, 64), (3, 0, 16)]]);
        assert_eq!(plan.state_bytes(), 2 * 160 * 4);
        let lamb = OptimizerConfig::new(Algorithm::Lamb(LambConfig::default()), 1e-3);
        assert_eq!(slices(&OptimizerPlan::new(&lamb, &units(), None).unwrap()), slices(&plan));
    }

    #[test]
    fn neighbours_of_one_setting_are_one_span() {
        let config = OptimizerConfig {
            no_decay: patterns(&["*.bias", "*ln*"]),
            groups: vec![group(&["h.1.*"], Some(2e-3), None)],
            state_dtype: StateDtype::Bf16,
            ..OptimizerConfig::default()
        };
        let plan = OptimizerPlan::new(&config, &units(), None).unwrap();
        let found: Vec<_> = plan
            .groups
            .iter()
            .map(|group| (group.settings.lr_factor, group.settings.weight_decay))
            .collect();
        assert_eq!(found, [(1.0, 0.01), (1.0, 0.0), (2.0, 0.0), (2.0, 0.01)]);
        assert_eq!(
            slices(&plan),
            [
                vec![(0, 0, 16), (1, 32, 16)],
                vec![(1, 0, 32), (1, 48, 16), (3, 0, 16)],
                vec![(2, 0, 32), (2, 48, 16)],
                vec![(2, 32, 16)],
            ]
        );
        assert_eq!(plan.state_bytes(), 2 * 160 * 2);
    }

    #[test]
    fn muon_has_the_matrices_of_blocks_and_adamw_the_rest() {
        let muon = MuonConfig { adam_lr: Some(0.005), ..MuonConfig::default() };
        let plan =
            OptimizerPlan::new(&OptimizerConfig::new(Algorithm::Muon(muon), 0.02), &units(), None)
                .unwrap();
        let [rest, matrices] = plan.groups.as_slice() else { panic!("{plan:?}") };
        assert_eq!((rest.settings.rule.name(), rest.settings.lr_factor), ("AdamW", 0.25));
        assert_eq!((matrices.settings.rule.name(), matrices.settings.lr_factor), ("Muon", 1.0));
        assert_eq!(slices(&plan)[1], [(1, 32, 16), (2, 32, 16)]);
        // Two averages of eight parameters, one of two.
        assert_eq!(plan.state_numel(), (2 * 8 + 2) * 16);
    }

    #[test]
    fn without_momentum_there_is_no_state() {
        let sgd = |momentum| {
            let sgd = SgdConfig { momentum, ..SgdConfig::default() };
            let config = OptimizerConfig::new(Algorithm::Sgd(sgd), 0.1);
            OptimizerPlan::new(&config, &units(), None).unwrap().state_bytes()
        };
        assert_eq!((sgd(0.0), sgd(0.9)), (0, 160 * 4));
    }

    pub(in crate::optim) fn faults(config: OptimizerConfig) -> Vec<(String, String)> {
        let e = OptimizerPlan::new(&config, &units(), None).unwrap_err();
        let fault = |e: &Error| (e.option_path().unwrap().to_owned(), e.message().to_owned());
        std::iter::once(&e).chain(e.others()).map(fault).collect()
    }
}
