//! The speed of a device, measured on what a training step is made of.

use std::time::{Duration, Instant};

use super::{Device, Kind, Tensor, guard, no_grad, synchronize};
use crate::error::Result;

/// Operations of one measured round at most, so that a slow device needs no more than seconds.
const MOST_FLOPS: f64 = 2e10;

/// Elements that are copied: more than the caches hold.
const COPIED: i64 = 32 << 20;

/// Operations a second in the three products of a linear layer of a matrix `[inputs, outputs]` over
/// `rows` rows in the format `kind`, measured for about `time`.
pub fn product_rate(
    device: Device,
    kind: Kind,
    (rows, inputs, outputs): (i64, i64, i64),
    time: Duration,
) -> Result<f64> {
    let each = 6.0 * inputs as f64 * outputs as f64;
    let rows = rows.min((MOST_FLOPS / each) as i64).max(1);
    guard("measuring a product", || {
        no_grad(|| {
            let random = |a, b| Tensor::randn([a, b], (kind, device));
            let (x, weight, gradient) =
                (random(rows, inputs), random(inputs, outputs), random(rows, outputs));
            let round = || {
                let _ = x.f_matmul(&weight)?;
                let _ = gradient.f_matmul(&weight.tr())?;
                let _ = x.tr().f_matmul(&gradient)?;
                Ok(())
            };
            Ok(each * rows as f64 / seconds(device, time, round)?)
        })
    })
}

/// Bytes a second that are read and written in order, measured for about `time`.
pub fn copy_rate(device: Device, time: Duration) -> Result<f64> {
    guard("measuring a copy", || {
        no_grad(|| {
            let from = Tensor::f_zeros([COPIED], (Kind::Float, device))?;
            let to = from.f_empty_like()?;
            let round = || -> Result<()> {
                to.shallow_clone().f_copy_(&from)?;
                Ok(())
            };
            Ok(2.0 * 4.0 * COPIED as f64 / seconds(device, time, round)?)
        })
    })
}

/// The shortest time of a round among those that fit in `time`, after one that is not counted.
fn seconds(device: Device, time: Duration, round: impl Fn() -> Result<()>) -> Result<f64> {
    let timed = || -> Result<Duration> {
        let began = Instant::now();
        round()?;
        synchronize(device);
        Ok(began.elapsed())
    };
    timed()?;
    let began = Instant::now();
    let mut best = timed()?;
    while began.elapsed() < time {
        best = best.min(timed()?);
    }
    Ok(best.as_secs_f64().max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_rate_is_a_number() {
        let time = Duration::from_millis(1);
        for kind in [Kind::Float, Kind::BFloat16] {
            let rate = product_rate(Device::Cpu, kind, (64, 32, 48), time).unwrap();
            assert!(rate.is_finite() && rate > 0.0);
        }
        let rate = copy_rate(Device::Cpu, time).unwrap();
        assert!(rate.is_finite() && rate > 0.0);
    }
}
