//! The values of a step and of an evaluation that go to the logs.
//!
//! The tags are DeepSpeed's. `grad_norm` and `tokens_per_second`, for which it has none, are the names
//! of `metrics.jsonl`.

use std::time::Duration;

use crate::engine::{Engine, Evaluation, PhaseTimes};

pub(super) const TRAIN_LOSS: &str = "Train/Samples/train_loss";
pub(super) const LR: &str = "Train/Samples/lr";
pub(super) const LOSS_SCALE: &str = "Train/Samples/loss_scale";
pub(super) const GRAD_NORM: &str = "Train/Samples/grad_norm";
pub(super) const TOKENS_PER_SECOND: &str = "Train/Samples/tokens_per_second";
pub(super) const EVAL_LOSS: &str = "Train/Samples/eval_loss";

/// One value of a log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Event {
    pub(super) tag: &'static str,
    pub(super) value: f64,
    /// The place on the x axis: samples seen.
    pub(super) samples: u64,
}

/// The events of the last step, in DeepSpeed's order.
pub(super) fn events(engine: &Engine) -> Vec<Event> {
    let samples = engine.global_samples();
    let Some(outcome) = engine.last_step() else { return Vec::new() };
    let event = |tag, value| Event { tag, value, samples };
    let mut events = vec![event(TRAIN_LOSS, outcome.loss), event(LR, outcome.lr)];
    events.extend(outcome.loss_scale.map(|scale| event(LOSS_SCALE, scale)));
    // TensorBoard cannot draw the norm of a gradient that is not finite.
    let norm = Some(outcome.grad_norm).filter(|norm| norm.is_finite());
    events.extend(norm.map(|norm| event(GRAD_NORM, norm)));
    events.extend(engine.tokens_per_second().map(|speed| event(TOKENS_PER_SECOND, speed)));
    if let Some(times) = engine.phase_times() {
        events.extend(elapsed(&times).map(|(tag, ms)| event(tag, ms)));
    }
    events
}

/// The event of an evaluation.
pub(super) fn evaluated(engine: &Engine, evaluation: &Evaluation) -> Event {
    Event { tag: EVAL_LOSS, value: evaluation.loss, samples: engine.global_samples() }
}

/// In DeepSpeed the backward pass includes the reduction of the gradients, and `_inner` does not.
fn elapsed(times: &PhaseTimes) -> [(&'static str, f64); 6] {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    [
        ("Train/Samples/elapsed_time_ms_forward", ms(times.forward)),
        ("Train/Samples/elapsed_time_ms_backward", ms(times.backward + times.reduce)),
        ("Train/Samples/elapsed_time_ms_backward_inner", ms(times.backward)),
        ("Train/Samples/elapsed_time_ms_backward_allreduce", ms(times.reduce)),
        ("Train/Samples/elapsed_time_ms_step", ms(times.step)),
        ("Train/Samples/elapsed_time_ms_data", ms(times.data)),
    ]
}
