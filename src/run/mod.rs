//! A run seen from outside: its directory, its metrics, its progress and its interruption.
//!
//! [`RunDir`] is where everything of a run lies. [`Training`] accompanies the loop: after each step
//! it hands [`StepValues`] to the [`Meter`], which adds speed, memory and the time left, and the
//! resulting [`StepReport`] to the [`RunLog`], which appends it to `metrics.jsonl` and answers with
//! the line to show, if it is time for one. [`Monitors`] look on an engine with or without a run:
//! DeepSpeed's lines and logs. [`Interrupt`] is how a signal asks the loop to stop.
//!
//! Nothing here prints, catches signals or reads the environment: that is `cli`. With several ranks
//! all of it is rank 0's.

mod best;
mod branch;
mod catalog;
mod checkpoints;
mod dir;
mod header;
mod interrupt;
mod last_values;
mod lock;
mod log;
mod meter;
mod metrics;
mod monitor;
mod opened;
mod options;
mod output_log;
mod picture;
mod plot;
mod plot_points;
mod ranks;
mod record;
mod renewal;
mod samples;
mod scratch;
mod series;
mod step_log;
mod tail;
mod training;
mod trial;
mod watched;

pub use catalog::{Losses, Removal, RunSummary, State, differences, list as list_runs, lowest};
pub use checkpoints::{load_checkpoint, save_checkpoint};
pub use dir::{RunDir, check_name, find_latest};
pub use interrupt::{Interrupt, Keeping, resume_command, shell_line};
pub use last_values::{EvaluationAt, LastValues};
pub use log::{LineInterval, RunLog};
pub use meter::{Elapsed, Memory, Meter, StepReport, StepValues};
pub use metrics::Evaluated;
pub use monitor::{Monitors, ShowLine};
pub use options::{Start, TrainingOptions};
pub use output_log::OutputLog;
pub use picture::Picture;
pub use plot::{curve_svg, loss_svg, losses_svg};
pub use plot_points::{Axes, points_svg};
pub use ranks::RankRecord;
pub use record::RunEnding;
pub use samples::Sample;
pub use scratch::Scratch;
pub use series::Series;
pub use step_log::StepLog;
pub use training::{Shown, TOLD_DIR, Training};
pub use watched::{Quantity, Watched};
