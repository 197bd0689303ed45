//! The update of each parameter: the groups of a config, applied to the names of a model.
//!
//! Neighbours in a unit that are updated alike are one [`FlatSlice`], padding included, so that a unit
//! without groups is one call of a kernel; all slices with the same settings are one [`UpdateGroup`].

use std::collections::BTreeSet;

use glob::Pattern;

use super::{
    algorithm::rule_of,
    blockwise,
    flat_slice::{FlatSlice, PlanParam, ShardParamInfo},
    layout::{ParamLayout, UnitLayout},
};
use crate::{
    config::{
        OptimizerConfig,
        optimizer::{AdamConfig, Algorithm, StateDtype},
        suggest::nearest,
    },
    dist::ShardSpec,
    error::{Code, Error, Result},
    tensor::{Kind, bytes_of},
};

/// Names that an error shows of a model.
const SHOWN_NAMES: usize = 3;

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

/// How a parameter is updated.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GroupSettings {
    pub(super) rule: Algorithm,
    /// Its learning rate is that of the schedule times this.
    pub(super) lr_factor: f64,
    pub(super) weight_decay: f64,
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

/// How this parameter is updated.
fn settings_of(
    config: &OptimizerConfig,
    choices: &GroupOverrides<'_>,
    param: &ParamLayout,
) -> Result<GroupSettings> {
    let (rule, usual_lr) = rule(config, param);
    let lr = choose(&choices.lr, &param.name, "lr")?.unwrap_or(usual_lr);
    let weight_decay = choose(&choices.weight_decay, &param.name, "weight_decay")?;
    let weight_decay = weight_decay.unwrap_or(config.weight_decay);
    if lr != config.lr && config.lr == 0.0 {
        let message = format!(
            "the learning rate {lr} of {} has no proportion to the optimizer's, which is 0",
            param.name
        );
        return Err(Error::new(Code::BadValue, message).option("optimizer.lr"));
    }
    let lr_factor = if lr == config.lr { 1.0 } else { lr / config.lr };
    Ok(GroupSettings { rule, lr_factor, weight_decay })
}

/// The rule for this parameter, and the learning rate that it has without a group.
fn rule(config: &OptimizerConfig, param: &ParamLayout) -> (Algorithm, f64) {
    match &config.algorithm {
        Algorithm::Muon(muon) if param.fan_in_out.is_none() => {
            let adam = AdamConfig { betas: muon.betas, eps: muon.eps, ..AdamConfig::default() };
            (Algorithm::Adam(adam), muon.adam_lr.unwrap_or(config.lr))
        }
        algorithm => (algorithm.clone(), config.lr),
    }
}

/// The settings that a config's patterns override.
struct GroupOverrides<'a> {
    lr: Vec<Override<'a>>,
    weight_decay: Vec<Override<'a>>,
    /// Every pattern with its option.
    patterns: Vec<(&'a Pattern, String)>,
}

/// A value for the parameters with a name of these.
struct Override<'a> {
    patterns: &'a [Pattern],
    value: f64,
    option: String,
}

impl<'a> GroupOverrides<'a> {
    fn of(config: &'a OptimizerConfig) -> Self {
        let (mut lr, mut weight_decay) = (Vec::new(), Vec::new());
        let mut patterns: Vec<_> = numbered(&config.no_decay, "optimizer.no_decay");
        if !config.no_decay.is_empty() {
            let option = "optimizer.no_decay".to_owned();
            weight_decay.push(Override { patterns: &config.no_decay, value: 0.0, option });
        }
        for (i, group) in config.groups.iter().enumerate() {
            let option = format!("optimizer.groups[{i}]");
            patterns.extend(numbered(&group.params, &format!("{option}.params")));
            for (value, list, key) in
                [(group.lr, &mut lr, "lr"), (group.weight_decay, &mut weight_decay, "weight_decay")]
            {
                let option = format!("{option}.{key}");
                list.extend(value.map(|value| Override { patterns: &group.params, value, option }));
            }
        }
        Self { lr, weight_decay, patterns }
    }

    /// A fault for each pattern that names no parameter.
    fn unused(&self, units: &[UnitLayout], frozen: &[&str]) -> Vec<Error> {
        let trained = || units.iter().flat_map(|unit| &unit.params).map(|p| p.name.as_str());
        let names = || trained().chain(frozen.iter().copied());
        let unused = self.patterns.iter().filter(|(p, _)| !names().any(|name| p.matches(name)));
        unused.map(|(pattern, option)| names_nothing(pattern, option, names())).collect()
    }
}

fn numbered<'a>(patterns: &'a [Pattern], option: &str) -> Vec<(&'a Pattern, String)> {
    patterns.iter().enumerate().map(|(i, p)| (p, format!("{option}[{i}]"))).collect()
}

/// The one value that is chosen for `name`, if one is.
fn choose(choices: &[Override<'_>], name: &str, what: &str) -> Result<Option<f64>> {
    let mut chosen: Option<&Override<'_>> = None;
    for choice in choices.iter().filter(|c| c.patterns.iter().any(|p| p.matches(name))) {
        let Some(first) = chosen else {
            chosen = Some(choice);
            continue;
        };
        if first.value != choice.value {
            let message = format!(
                "{name} has two values of {what}: {} by `{}` and {} by `{}`",
                first.value, first.option, choice.value, choice.option
            );
            return Err(Error::new(Code::BadValue, message)
                .option(&choice.option)
                .hint("write patterns that do not name the same parameters"));
        }
    }
    Ok(chosen.map(|choice| choice.value))
}

/// The error of a pattern of an option that no parameter of a model has a name like.
pub fn names_nothing<'a>(
    pattern: &Pattern,
    option: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Error {
    let message = format!("`{option}`: no parameter of the model has a name like \"{pattern}\"");
    let mut error = Error::new(Code::BadValue, message).option(option);
    let literal = pattern.as_str().trim_matches(['*', '.']);
    let parts: BTreeSet<&str> = names.clone().flat_map(suffixes_and_parts).collect();
    if let Some(near) = nearest(literal, parts) {
        error = error.hint(format!("did you mean `{}`?", pattern.as_str().replace(literal, near)));
    }
    let shown: Vec<_> = names.take(SHOWN_NAMES).collect();
    error.hint(format!("names are such as {}", shown.join(", ")))
}

/// `a.b.c` as `a.b.c`, `b.c`, `c`, and `a`, `b`, `c`.
fn suffixes_and_parts(name: &str) -> impl Iterator<Item = &str> {
    let suffixes = name.match_indices('.').map(move |(at, _)| &name[at + 1..]);
    name.split('.').chain([name]).chain(suffixes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::optimizer::{LambConfig, MuonConfig, ParamGroup, SgdConfig};

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
    fn units() -> Vec<UnitLayout> {
        let block = ["h.0.ln.weight", "h.0.ln.bias", "h.0.c_fc.weight", "h.0.c_fc.bias"];
        let second = block.map(|name| name.replace("h.0", "h.1"));
        let second: Vec<_> = second.iter().map(String::as_str).collect();
        vec![unit(&["wte.weight"]), unit(&block), unit(&second), unit(&["ln_f.bias"])]
    }

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
    }

    fn group(params: &[&str], lr: Option<f64>, weight_decay: Option<f64>) -> ParamGroup {
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

    fn faults(config: OptimizerConfig) -> Vec<(String, String)> {
        let e = OptimizerPlan::new(&config, &units(), None).unwrap_err();
        let fault = |e: &Error| (e.option_path().unwrap().to_owned(), e.message().to_owned());
        std::iter::once(&e).chain(e.others()).map(fault).collect()
    }

    #[test]
    fn patterns_that_name_nothing_are_refused_together() {
        let config = OptimizerConfig {
            no_decay: patterns(&["*.bias", "*.bais"]),
            groups: vec![group(&["h.7.*", "wte*"], Some(1.0), None)],
            ..OptimizerConfig::default()
        };
        let e = OptimizerPlan::new(&config, &units(), None).unwrap_err();
        assert_eq!(e.hints()[0], "did you mean `*.bias`?");
        assert_eq!(e.hints()[1], "names are such as wte.weight, h.0.ln.weight, h.0.ln.bias");
        let found = faults(config);
        assert_eq!(found[0].0, "optimizer.no_decay[1]");
        assert_eq!(
            found[0].1,
            "`optimizer.no_decay[1]`: no parameter of the model has a name like \"*.bais\""
        );
        assert_eq!(found[1].0, "optimizer.groups[0].params[0]");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn two_values_for_one_parameter_are_refused_and_one_twice_is_not() {
        let config = |decay| OptimizerConfig {
            no_decay: patterns(&["*.bias"]),
            groups: vec![
                group(&["ln_f.*"], None, Some(decay)),
                group(&["*f.bias"], Some(1.0), None),
            ],
            ..OptimizerConfig::default()
        };
        OptimizerPlan::new(&config(0.0), &units(), None).unwrap();
        assert_eq!(
            faults(config(0.2)),
            [(
                "optimizer.groups[0].weight_decay".to_owned(),
                "ln_f.bias has two values of weight_decay: 0 by `optimizer.no_decay` and 0.2 by \
                 `optimizer.groups[0].weight_decay`"
                    .to_owned()
            )]
        );
    }

    #[test]
    fn a_rate_of_zero_has_no_proportion() {
        let config = OptimizerConfig {
            lr: 0.0,
            groups: vec![group(&["wte*"], Some(1e-3), None)],
            ..OptimizerConfig::default()
        };
        assert_eq!(faults(config.clone())[0].0, "optimizer.lr");
        let still = OptimizerConfig { lr: 1e-3, ..config };
        let still = OptimizerConfig { groups: vec![group(&["wte*"], Some(0.0), None)], ..still };
        let plan = OptimizerPlan::new(&still, &units(), None).unwrap();
        assert_eq!(plan.groups[0].settings.lr_factor, 0.0);
    }
}
