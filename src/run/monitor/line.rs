//! The lines of `steps_per_print` and `wall_clock_breakdown`.

use std::time::Duration;

use crate::engine::{Engine, PhaseTimes};

/// DeepSpeed's line of the last step, with the loss that DeepSpeed leaves out; lists have one
/// element for each group of parameters.
pub(super) fn progress(engine: &Engine) -> Option<String> {
    let outcome = engine.last_step()?;
    Some(format!(
        "step={}, skipped={}, lr=[{:?}], mom=[{:?}], loss={:.4}",
        engine.global_step(),
        engine.skipped_steps(),
        outcome.lr,
        outcome.betas,
        outcome.loss
    ))
}

/// The phases of a step in milliseconds, summed over its micro batches.
pub(super) fn breakdown(times: &PhaseTimes) -> String {
    let PhaseTimes { forward, backward, reduce, step, data } = times;
    let ms = |duration: &Duration| format!("{:.2}", duration.as_secs_f64() * 1e3);
    format!(
        "time (ms) | forward: {} | backward: {} | reduce: {} | step: {} | data: {}",
        ms(forward),
        ms(backward),
        ms(reduce),
        ms(step),
        ms(data)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_named() {
        let times = PhaseTimes {
            forward: Duration::from_micros(12_344),
            step: Duration::from_millis(1),
            ..PhaseTimes::default()
        };
        assert_eq!(
            breakdown(&times),
            "time (ms) | forward: 12.34 | backward: 0.00 | reduce: 0.00 | step: 1.00 | data: 0.00"
        );
    }
}
