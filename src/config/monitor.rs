//! What is printed and logged of a training, under DeepSpeed's names.

use std::{num::NonZeroU64, path::PathBuf};

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

impl MonitorConfig {
    /// Whether the phases of a step are timed: the profiler needs them too, as in DeepSpeed.
    pub fn times_phases(&self) -> bool {
        self.wall_clock_breakdown || self.flops_profiler.is_some()
    }
}

/// A profile of the forward pass, module by module.
#[derive(Debug, Clone, PartialEq)]
pub struct FlopsProfilerConfig {
    /// How many steps are done before the one that is profiled.
    pub profile_step: u64,
    /// The part of the forward pass that the backward pass computes again, from 0 to 1.
    pub recompute_fwd_factor: f64,
    /// The deepest level that is summed up; `None` is all.
    pub module_depth: Option<usize>,
    /// How many kinds of modules are named on each level.
    pub top_modules: usize,
    /// Whether each module is listed.
    pub detailed: bool,
    /// The file that the profile is written to instead of the screen.
    pub output_file: Option<PathBuf>,
}

/// The directory of a monitor: `output_path/job_name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDir {
    /// The directory of all jobs; the working directory where it is empty.
    pub output_path: PathBuf,
    /// The name of this one's directory.
    pub job_name: String,
}

impl LogDir {
    /// The directory itself.
    pub fn path(&self) -> PathBuf {
        self.output_path.join(&self.job_name)
    }
}
