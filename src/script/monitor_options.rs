//! The options of `init_engine` about what is printed and logged, with DeepSpeed's defaults.

use std::num::NonZeroU64;

use super::options::Options;
use crate::config::{FlopsProfilerConfig, LogDir, MonitorConfig};

/// Reads them; `o` is the map of `init_engine`.
pub(crate) fn read(o: &mut Options<'_>) -> MonitorConfig {
    let steps_per_print = o.get::<u64>("steps_per_print").range(1..).optional();
    MonitorConfig {
        steps_per_print: steps_per_print.and_then(NonZeroU64::new),
        wall_clock_breakdown: o.get("wall_clock_breakdown").or(false),
        flops_profiler: o.map("flops_profiler", flops_profiler).flatten(),
        csv_monitor: o.map("csv_monitor", log_dir).flatten(),
        tensorboard: o.map("tensorboard", log_dir).flatten(),
    }
}

fn flops_profiler(o: &mut Options<'_>) -> Option<FlopsProfilerConfig> {
    let enabled = o.get("enabled").or(false);
    let output_file = o.get::<String>("output_file").optional();
    let config = FlopsProfilerConfig {
        profile_step: o.get("profile_step").or(1),
        recompute_fwd_factor: o.get("recompute_fwd_factor").range(0.0..=1.0).or(0.0),
        // -1, and not a depth, is all.
        module_depth: usize::try_from(o.get::<i64>("module_depth").range(-1..).or(-1)).ok(),
        top_modules: o.get("top_modules").range(1..).or(1),
        detailed: o.get("detailed").or(true),
        output_file: output_file.filter(|file| !file.is_empty()).map(Into::into),
    };
    enabled.then_some(config)
}

fn log_dir(o: &mut Options<'_>) -> Option<LogDir> {
    let enabled = o.get("enabled").or(false);
    let dir = LogDir {
        output_path: o.get("output_path").optional().unwrap_or_default(),
        job_name: o.get("job_name").or("DeepSpeedJobName".to_owned()),
    };
    enabled.then_some(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::{Error, Result},
        script::options,
    };

    fn config(source: &str) -> Result<MonitorConfig> {
        options::read("init_engine", &rhai::Engine::new().eval(source).unwrap(), read)
    }

    #[test]
    fn nothing_is_on_by_default() {
        for source in [
            "#{}",
            "#{ csv_monitor: #{}, tensorboard: #{ enabled: false, output_path: \"logs\" } }",
            "#{ flops_profiler: #{ profile_step: 3 }, wall_clock_breakdown: false }",
        ] {
            assert_eq!(config(source).unwrap(), MonitorConfig::default(), "{source}");
        }
    }

    #[test]
    fn defaults_are_deepspeeds() {
        let all = "#{ flops_profiler: #{ enabled: true }, csv_monitor: #{ enabled: true } }";
        let config = config(all).unwrap();
        let profiler = FlopsProfilerConfig {
            profile_step: 1,
            recompute_fwd_factor: 0.0,
            module_depth: None,
            top_modules: 1,
            detailed: true,
            output_file: None,
        };
        assert_eq!(config.flops_profiler, Some(profiler));
        assert_eq!(config.csv_monitor.as_ref().unwrap().path().to_str(), Some("DeepSpeedJobName"));
        assert!(config.times_phases() && !config.wall_clock_breakdown);
    }

    #[test]
    fn all_mistakes_are_listed() {
        let source = "#{ steps_per_print: 0, wall_clock_breakdown: 1,
            flops_profiler: #{ enabled: true, module_depth: -2, top_modules: 0,
                recompute_fwd_factor: 2, outputfile: \"x\" },
            csv_monitor: #{ enabled: \"yes\", jobname: \"x\" }, tensorboard: true }";
        let e = config(source).unwrap_err();
        let all = std::iter::once(&e).chain(e.others());
        let paths: Vec<_> = all.filter_map(Error::option_path).collect();
        assert_eq!(
            paths,
            [
                "steps_per_print",
                "wall_clock_breakdown",
                "flops_profiler.recompute_fwd_factor",
                "flops_profiler.module_depth",
                "flops_profiler.top_modules",
                "flops_profiler.outputfile",
                "csv_monitor.enabled",
                "csv_monitor.jobname",
                "tensorboard"
            ]
        );
        assert!(e.others()[4].hints()[0].contains("did you mean `output_file`?"), "{e:?}");
    }
}
