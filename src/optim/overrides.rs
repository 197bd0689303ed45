//! The settings that a config gives to parameters by patterns of their names.

use std::collections::BTreeSet;

use glob::Pattern;

use super::layout::UnitLayout;
use crate::{
    config::{OptimizerConfig, suggest::nearest},
    error::{Code, Error, Result},
};

/// Names that an error shows of a model.
const SHOWN_NAMES: usize = 3;

/// The settings that a config's patterns override.
pub(super) struct GroupOverrides<'a> {
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
    pub(super) fn of(config: &'a OptimizerConfig) -> Self {
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
    pub(super) fn unused(&self, units: &[UnitLayout], frozen: &[&str]) -> Vec<Error> {
        let trained = || units.iter().flat_map(|unit| &unit.params).map(|p| p.name.as_str());
        let names = || trained().chain(frozen.iter().copied());
        let unused = self.patterns.iter().filter(|(p, _)| !names().any(|name| p.matches(name)));
        unused.map(|(pattern, option)| names_nothing(pattern, option, names())).collect()
    }

    /// The learning rate that is chosen for the parameter `name`.
    pub(super) fn lr(&self, name: &str) -> Result<Option<f64>> {
        choose(&self.lr, name, "lr")
    }

    /// The weight decay that is chosen for the parameter `name`.
    pub(super) fn weight_decay(&self, name: &str) -> Result<Option<f64>> {
        choose(&self.weight_decay, name, "weight_decay")
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
    use crate::optim::{
        OptimizerPlan,
        plan::tests::{faults, group, patterns, units},
    };

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
}
