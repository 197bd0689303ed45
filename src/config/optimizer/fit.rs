//! What the scheduler beside an optimizer gives it, and what it leaves without an effect.

use super::{algorithm::Algorithm, given::GivenOptimizer, settings::OptimizerConfig};
use crate::{
    config::{options::Options, schedule::Schedule},
    error::{Code, Error, Result},
};

const OPTION: &str = "optimizer";

/// Refuses a cycle of the momentum where the optimizer has none.
pub fn check_momentum(optimizer: &OptimizerConfig, scheduler: &Schedule) -> Result<()> {
    let Some(cycle) = scheduler.cycled_momentum() else { return Ok(()) };
    let reason = match optimizer.algorithm {
        Algorithm::Adagrad(_) => "Adagrad has no momentum".to_owned(),
        Algorithm::Sgd(sgd) if sgd.momentum == 0.0 => {
            format!("SGD without momentum has none to cycle up to {}", cycle.cycle_max_mom)
        }
        _ => return Ok(()),
    };
    let message = format!("OneCycle cycles the momentum, and {reason}");
    let fault = Error::new(Code::BadValue, message).option("scheduler.cycle_momentum");
    Err(fault.hint("give the scheduler cycle_momentum: false"))
}

impl OptimizerConfig {
    /// Reads the option `optimizer` of the map `o`, in which no scheduler stands beside it.
    pub fn read(o: &mut Options<'_>) -> Self {
        o.map_or_empty(OPTION, GivenOptimizer::read).with(o, &Schedule::Constant)
    }
}

impl GivenOptimizer {
    /// The optimizer beside this scheduler; `o` is the map that both stand in.
    pub(in crate::config) fn with(
        mut self,
        o: &mut Options<'_>,
        scheduler: &Schedule,
    ) -> OptimizerConfig {
        if let Err(fault) = scheduler.check_replaced(self.lr.map(|(lr, _)| lr), None) {
            let option = self.lr.map_or("lr", |(_, option)| option);
            o.check::<()>(Err(fault.option(format!("{OPTION}.{option}"))));
        }
        self.fit_momentum(o, scheduler);
        self.fit_rates(o, scheduler);
        self.check_sgd(o);
        self.config
    }

    /// Gives SGD the momentum that is cycled, and refuses one that would not be used.
    fn fit_momentum(&mut self, o: &mut Options<'_>, scheduler: &Schedule) {
        o.check(scheduler.check_replaced(None, self.betas));
        let Some(cycle) = scheduler.cycled_momentum() else { return };
        if self.has_momentum {
            let path = format!("{OPTION}.momentum");
            let message = format!("`{path}` would not be used: OneCycle cycles the momentum");
            let fault = Error::new(Code::BadValue, message).option(path);
            let hint = "leave momentum out, or give the scheduler cycle_momentum: false";
            o.check::<()>(Err(fault.hint(hint)));
            return;
        }
        if let Algorithm::Sgd(sgd) = &mut self.config.algorithm {
            sgd.momentum = cycle.cycle_max_mom;
        }
        o.check(check_momentum(&self.config, scheduler));
    }

    /// Takes the schedule's own rate as the optimizer's, to which others have their proportion.
    fn fit_rates(&mut self, o: &mut Options<'_>, scheduler: &Schedule) {
        let is_function = matches!(scheduler, Schedule::Function(_));
        if self.lr.is_none() && (is_function || scheduler.own_lr().is_some()) {
            self.config.lr = scheduler.own_lr().unwrap_or(self.config.lr);
            if let Algorithm::Muon(muon) = &mut self.config.algorithm {
                muon.adam_lr = self.adam_lr;
            }
        }
        if !is_function {
            return;
        }
        let groups = self.config.groups.iter().enumerate();
        let with_lr = groups.filter(|(_, group)| group.lr.is_some());
        let options = with_lr.map(|(i, _)| format!("groups[{i}].lr"));
        for option in options.chain(self.adam_lr.map(|_| "adam_lr".to_owned())) {
            let path = format!("{OPTION}.{option}");
            let message = format!(
                "`{path}` has no meaning beside a scheduler's function, which gives the learning rate of all parameters"
            );
            let fault = Error::new(Code::BadValue, message).option(path);
            o.check::<()>(Err(fault.hint("use a named schedule, which scales each rate")));
        }
    }

    /// Refuses options of SGD that its momentum leaves without an effect.
    fn check_sgd(&self, o: &mut Options<'_>) {
        let Algorithm::Sgd(sgd) = &self.config.algorithm else { return };
        let mut refuse = |key: &str, why: &str| {
            let path = format!("{OPTION}.{key}");
            o.fault(&path, Code::BadValue, format!("`{path}` {why}"));
        };
        if sgd.momentum == 0.0 {
            let given = [
                ("dampening", sgd.dampening != 0.0),
                ("nesterov", sgd.nesterov),
                ("state_dtype", self.has_state_dtype),
            ];
            for (key, _) in given.iter().filter(|(_, given)| *given) {
                refuse(key, "has no effect without momentum");
            }
        } else if sgd.nesterov && sgd.dampening != 0.0 {
            refuse("nesterov", "needs a dampening of 0, as in PyTorch");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::{
        super::{
            SgdConfig,
            given::tests::{messages, read},
        },
        *,
    };
    use crate::config::{
        options::{self, Value},
        schedule::LrFunction,
    };

    fn beside_cycle(map: Json) -> Result<OptimizerConfig> {
        let cycle = json!({ "type": "OneCycle", "cycle_min_lr": 1e-4, "cycle_max_lr": 2e-3,
            "cycle_min_mom": 0.7, "cycle_max_mom": 0.8 });
        Ok(read(json!({ "optimizer": map, "scheduler": cycle }))?.optimizer)
    }

    #[test]
    fn the_rate_of_the_schedule_is_the_optimizers() {
        let group = json!({ "params": ["a"], "lr": 1e-3 });
        let found = beside_cycle(json!({ "groups": [group] })).unwrap();
        assert_eq!(found.lr, 2e-3);
        let found = beside_cycle(json!({ "type": "Muon" })).unwrap();
        let Algorithm::Muon(muon) = found.algorithm else { panic!("{found:?}") };
        assert_eq!((found.lr, muon.adam_lr), (2e-3, None));
        let error = beside_cycle(json!({ "type": "Muon", "muon_lr": 0.1 })).unwrap_err();
        assert_eq!(messages(&error)[0].0, "muon_lr");
    }

    #[test]
    fn the_momentum_of_the_schedule_is_the_optimizers() {
        let found = beside_cycle(json!({ "type": "SGD", "nesterov": true })).unwrap();
        let sgd = SgdConfig { momentum: 0.8, dampening: 0.0, nesterov: true };
        assert_eq!(found.algorithm, Algorithm::Sgd(sgd));
        // The betas of Muon's AdamW are not cycled.
        beside_cycle(json!({ "type": "Muon", "betas": [0.8, 0.9] })).unwrap();
        for (map, option) in [
            (json!({ "type": "SGD", "momentum": 0.9 }), "momentum"),
            (json!({ "type": "Muon", "momentum": 0.9 }), "momentum"),
            (json!({ "type": "Lamb", "betas": [0.8, 0.9] }), "betas"),
            (json!({ "type": "Adagrad" }), "scheduler.cycle_momentum"),
        ] {
            let found = messages(&beside_cycle(map.clone()).unwrap_err());
            assert_eq!(found.len(), 1, "{map}: {found:?}");
            assert_eq!(found[0].0, option, "{map}");
        }
    }

    #[test]
    fn a_function_gives_the_rate_of_all_parameters() {
        let found = |map: Json| {
            let Value::Map(map) = json!({ "optimizer": map }).into() else { panic!("a map") };
            let function = Schedule::Function(LrFunction::new(|_| Ok(1.0)));
            options::read("init_engine", &map, |o| {
                let given = o.map_or_empty(OPTION, GivenOptimizer::read);
                given.with(o, &function)
            })
        };
        let muon = found(json!({ "type": "Muon" })).unwrap();
        let Algorithm::Muon(config) = muon.algorithm else { panic!("{muon:?}") };
        assert_eq!(config.adam_lr, None);
        let groups = json!([{ "params": ["a"], "lr": 1 }, { "params": ["b"], "weight_decay": 1 }]);
        let error = found(json!({ "type": "Muon", "adam_lr": 1, "groups": groups })).unwrap_err();
        let found: Vec<_> = messages(&error).into_iter().map(|(option, _)| option).collect();
        assert_eq!(found, ["groups[0].lr", "adam_lr"]);
    }
}
