//! Options of printing and logging, under DeepSpeed's names and with its defaults.

use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use super::options::{OptionTable, Options, option_table};

/// What an engine reports beside its results; nothing by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MonitorConfig {
    /// After how many optimizer steps a line is shown; `None` is never.
    pub steps_per_print: Option<NonZeroU64>,
    /// Whether the phases of each step are timed and shown.
    pub wall_clock_breakdown: bool,
    /// The profile of one step.
    pub flops_profiler: Option<FlopsProfilerConfig>,
    /// Where values go as CSV.
    pub csv_monitor: Option<LogDir>,
    /// Where values go as TensorBoard's event files.
    pub tensorboard: Option<LogDir>,
}

option_table! {
    /// The options about what is shown and logged on rank 0, with or without a run.
    #[derive(Debug)]
    pub(super) struct MonitorOptions {
        /// after how many steps DeepSpeed's line is shown, with the loss; a run shows its own line at
        /// the same steps
        #[option(optional, range = 1.., deepspeed = "steps_per_print")]
        pub steps_per_print: Option<u64>,
        /// whether each step shows the milliseconds that its forward and backward passes, the reduction
        /// over the ranks, the optimizer and the loader took, summed over the micro batches. The device
        /// is waited for at the ends of each
        #[option(default = false, deepspeed = "wall_clock_breakdown")]
        pub wall_clock_breakdown: bool,
        /// a profile of one step, module by module; it turns `wall_clock_breakdown` on
        #[option(optional)]
        pub flops_profiler: Option<FlopsProfilerConfig>,
        /// writes `Train/Samples/train_loss`, `lr`, `loss_scale` (fp16), `grad_norm`,
        /// `tokens_per_second`, `eval_loss` at each evaluation, and with the phases
        /// `elapsed_time_ms_*` (DeepSpeed's, and `data`), over the samples seen, as CSV. Rows are added
        /// to files that exist
        #[option(optional)]
        pub csv_monitor: Option<LogDir>,
        /// writes the same as TensorBoard's event files
        #[option(optional)]
        pub tensorboard: Option<LogDir>,
    }
}

option_table! {
    /// A profile of the forward pass, module by module.
    #[derive(Debug, Clone, PartialEq)]
    pub struct FlopsProfilerConfig {
        /// whether it is made
        #[option(default = false, deepspeed = "enabled")]
        pub enabled: bool,
        /// how many steps are done before the one that is profiled
        #[option(default = 1, deepspeed = "profile_step")]
        pub profile_step: u64,
        /// the part of the forward pass that the backward pass computes again, for its count of
        /// operations
        #[option(default = 0.0, range = 0.0..=1.0, deepspeed = "recompute_fwd_factor")]
        pub recompute_fwd_factor: f64,
        /// the deepest level that is summed up; -1 is all
        #[option(default = -1, range = -1.., deepspeed = "module_depth")]
        pub module_depth: i64,
        /// how many kinds of modules are named on each level
        #[option(default = 1, range = 1.., deepspeed = "top_modules")]
        pub top_modules: usize,
        /// whether each module is listed
        #[option(default = true, deepspeed = "detailed")]
        pub detailed: bool,
        /// the file that the profile is written to in place of the screen
        #[option(optional, deepspeed = "output_file")]
        pub output_file: Option<PathBuf>,
    }
}

option_table! {
    /// The directory of a monitor: `output_path/job_name`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct LogDir {
        /// whether it is written
        #[option(default = false, deepspeed = "enabled")]
        pub enabled: bool,
        /// the directory of all jobs; the working directory where it is empty
        #[option(default = PathBuf::new(), deepspeed = "output_path")]
        pub output_path: PathBuf,
        /// the name of the job's directory
        #[option(default = "DeepSpeedJobName".to_owned(), deepspeed = "job_name")]
        pub job_name: String,
    }
}

impl MonitorConfig {
    /// Reads the options from `o`, the map of `init_engine`.
    pub fn read(o: &mut Options<'_>) -> Self {
        let given = MonitorOptions::read(o);
        Self {
            steps_per_print: given.steps_per_print.and_then(NonZeroU64::new),
            wall_clock_breakdown: given.wall_clock_breakdown,
            flops_profiler: given.flops_profiler.filter(|profiler| profiler.enabled),
            csv_monitor: given.csv_monitor.filter(|monitor| monitor.enabled),
            tensorboard: given.tensorboard.filter(|monitor| monitor.enabled),
        }
    }

    /// Whether the phases of a step are timed: the profiler needs them too, as in DeepSpeed.
    pub fn times_phases(&self) -> bool {
        self.wall_clock_breakdown || self.flops_profiler.is_some()
    }
}

impl FlopsProfilerConfig {
    /// The deepest level that is summed up; `None` is all.
    pub fn depth(&self) -> Option<usize> {
        usize::try_from(self.module_depth).ok()
    }

    /// The file of the profile; `None` is the screen.
    pub fn file(&self) -> Option<&Path> {
        self.output_file.as_deref().filter(|file| !file.as_os_str().is_empty())
    }
}

impl LogDir {
    /// The directory itself.
    pub fn path(&self) -> PathBuf {
        self.output_path.join(&self.job_name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        config::options::{self, Value},
        error::{Error, Result},
    };

    fn config(json: serde_json::Value) -> Result<MonitorConfig> {
        let Value::Map(map) = json.into() else { panic!("a map") };
        options::read("init_engine", &map, MonitorConfig::read)
    }

    #[test]
    fn nothing_is_on_by_default() {
        for given in [
            json!({}),
            json!({ "csv_monitor": {}, "tensorboard": { "enabled": false, "output_path": "logs" } }),
            json!({ "flops_profiler": { "profile_step": 3 }, "wall_clock_breakdown": false }),
        ] {
            assert_eq!(config(given.clone()).unwrap(), MonitorConfig::default(), "{given}");
        }
    }

    #[test]
    fn defaults_are_deepspeeds() {
        let all =
            json!({ "flops_profiler": { "enabled": true }, "csv_monitor": { "enabled": true } });
        let config = config(all).unwrap();
        let profiler = FlopsProfilerConfig {
            enabled: true,
            profile_step: 1,
            recompute_fwd_factor: 0.0,
            module_depth: -1,
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
        let given = json!({
            "steps_per_print": 0, "wall_clock_breakdown": 1,
            "flops_profiler": { "enabled": true, "module_depth": -2, "top_modules": 0,
                "recompute_fwd_factor": 2, "outputfile": "x" },
            "csv_monitor": { "enabled": "yes", "jobname": "x" }, "tensorboard": true,
        });
        let e = config(given).unwrap_err();
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
