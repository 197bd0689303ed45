//! The lines of `steps_per_print` and `wall_clock_breakdown`.

use std::time::Duration;

use crate::engine::{Engine, PhaseTimes};

/// DeepSpeed's line of the last step, with the loss that DeepSpeed leaves out; lists have one
/// element for each group of parameters.
pub(super) fn progress(engine: &Engine) -> Option<String> {
    let outcome = engine.last_step()?;
    let groups = engine.group_rates();
    let list = |words: Vec<String>| words.join(", ");
    Some(format!(
        "step={}, skipped={}, lr=[{}], mom=[{}], loss={:.4}",
        engine.global_step(),
        engine.skipped_steps(),
        list(groups.iter().map(|group| format!("{:?}", group.lr)).collect()),
        list(groups.iter().map(|group| momentum(&group.betas)).collect()),
        outcome.loss
    ))
}

/// As Python writes it; DeepSpeed has 0.0 where there is none.
fn momentum(betas: &[f64]) -> String {
    match betas {
        [] => "0.0".to_owned(),
        [momentum] => format!("{momentum:?}"),
        _ => {
            let betas: Vec<_> = betas.iter().map(|beta| format!("{beta:?}")).collect();
            format!("({})", betas.join(", "))
        }
    }
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
    fn momenta_are_as_python_writes_them() {
        assert_eq!([&[][..], &[0.9], &[0.9, 0.999]].map(momentum), ["0.0", "0.9", "(0.9, 0.999)"]);
    }

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
