//! Learning-rate schedules: the learning rate of an optimizer step, and the betas that go with it.
//!
//! A schedule is a function of the number of steps already applied, and has no state of its own:
//! what resumes is the step, and a step that was skipped advances nothing. Each family has the
//! values of its Python original: `deepspeed.rs` those of DeepSpeed's `runtime/lr_schedules.py`,
//! `huggingface.rs` those of transformers' `optimization.py`. `given.rs` reads the option
//! `scheduler`.

mod deepspeed;
mod given;
mod huggingface;
mod one_cycle;
mod rate;
mod rates;

pub(super) use self::given::{SCHEDULER_ROWS, required_options, scheduler_tables};
pub use self::{
    deepspeed::{
        DeepSpeedSchedule, LrRangeTest, Warmup, WarmupCosineLr, WarmupDecayLr, WarmupLr, WarmupType,
    },
    huggingface::{
        ConstantWithWarmup, Cosine, HuggingFaceSchedule, InverseSqrt, Linear, Ramp,
        WarmupStableDecay,
    },
    one_cycle::OneCycle,
    rate::is_rate,
    rates::{LrFunction, Schedule},
};
