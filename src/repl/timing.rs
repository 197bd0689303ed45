//! The time of an input: its median and spread over as many runs as give them.

use std::time::Duration;

/// Runs at most, and how long all of them may take once there are [`LEAST`].
const MOST: usize = 1000;
const LEAST: usize = 5;
const LONGEST: Duration = Duration::from_secs(2);

/// Whether one more run would tell more. A very long input is run twice.
pub(super) fn tells_more(times: &[Duration]) -> bool {
    let all: Duration = times.iter().sum();
    match times.len() {
        n if n >= MOST => false,
        n if n < 2 => all < 5 * LONGEST,
        n if n < LEAST => all < 5 * LONGEST,
        _ => all < LONGEST,
    }
}

/// The median, and between which times the middle half lies.
pub(super) fn summary(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part).round() as usize];
    let runs = if times.len() == 1 { "1 run".to_owned() } else { format!("{} runs", times.len()) };
    format!(
        "median {}   middle half {} .. {}   {runs}",
        shown(at(0.5)),
        shown(at(0.25)),
        shown(at(0.75))
    )
}

fn shown(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds < 1e-3 => format!("{:.1} us", seconds * 1e6),
        _ if seconds < 1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_things_run_often_and_slow_ones_twice() {
        let times = |ms: u64, n: usize| vec![Duration::from_millis(ms); n];
        assert!(tells_more(&times(1, 4)) && tells_more(&times(1, 900)));
        assert!(!tells_more(&times(1, 1000)) && !tells_more(&times(500, 5)));
        assert!(!tells_more(&times(20_000, 1)) && tells_more(&times(3000, 1)));
    }

    #[test]
    fn the_median_and_the_middle_half() {
        let times: Vec<_> = (1..=5).map(Duration::from_millis).collect();
        assert_eq!(summary(&times), "median 3.00 ms   middle half 2.00 ms .. 4.00 ms   5 runs");
    }
}
