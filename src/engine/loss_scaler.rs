//! The loss scale over the steps: DeepSpeed's `DynamicLossScaler`, and the cases without one.
//!
//! The state machine is the one that DeepSpeed runs with ZeRO (`runtime/fp16/loss_scaler.py`), here
//! at every stage. A gradient is always unscaled by the scale that its backward pass used: the scale
//! changes only after that.

use serde::{Deserialize, Serialize};

use crate::config::{DynamicLossScale, LossScale};

/// The factor by which the scale grows or shrinks.
const FACTOR: f64 = 2.0;

/// The scale, and what decides when it changes.
#[derive(Debug)]
pub(super) struct LossScaler {
    config: LossScale,
    state: LossScalerState,
}

/// The state of a dynamic scale, as a checkpoint holds it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScalerState {
    /// The scale of the next step.
    pub loss_scale: f64,
    /// Steps so far, skipped ones included.
    pub steps: u64,
    /// The last of them that overflowed, counted from 0.
    pub last_overflow: Option<u64>,
    /// Overflows left before the scale halves.
    pub hysteresis: u32,
}

/// The scale is as low as it may be, and gradients still overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AtMinimum;

impl LossScaler {
    pub(super) fn new(config: LossScale) -> Self {
        let (loss_scale, hysteresis) = match config {
            LossScale::None => (1.0, 0),
            LossScale::Static(scale) => (scale, 0),
            LossScale::Dynamic(dynamic) => (dynamic.initial_scale(), dynamic.hysteresis),
        };
        let state = LossScalerState { loss_scale, steps: 0, last_overflow: None, hysteresis };
        Self { config, state }
    }

    /// The loss scale of the next step; 1 without one.
    pub(super) fn scale(&self) -> f64 {
        self.state.loss_scale
    }

    /// The scale, where there is one.
    pub(super) fn shown(&self) -> Option<f64> {
        (self.config != LossScale::None).then_some(self.state.loss_scale)
    }

    /// Whether an overflow changes the scale sooner or later.
    pub(super) fn is_dynamic(&self) -> bool {
        matches!(self.config, LossScale::Dynamic(_))
    }

    /// Takes note of whether a step's gradients overflowed, which all ranks must agree on.
    pub(super) fn update(&mut self, overflow: bool) -> Result<(), AtMinimum> {
        let LossScale::Dynamic(config) = self.config else { return Ok(()) };
        if overflow {
            self.shrink(config)?
        } else {
            self.grow(config)
        }
        self.state.steps += 1;
        Ok(())
    }

    fn shrink(&mut self, config: DynamicLossScale) -> Result<(), AtMinimum> {
        let state = &mut self.state;
        // Once it is used up it stays so: every further overflow halves the scale.
        if config.hysteresis == 1 || state.hysteresis == 1 {
            if state.loss_scale == config.min_loss_scale {
                return Err(AtMinimum);
            }
            state.loss_scale = (state.loss_scale / FACTOR).max(config.min_loss_scale);
        } else {
            state.hysteresis -= 1;
        }
        state.last_overflow = Some(state.steps);
        Ok(())
    }

    fn grow(&mut self, config: DynamicLossScale) {
        let state = &mut self.state;
        if config.consecutive_hysteresis {
            state.hysteresis = config.hysteresis;
        }
        // Steps without overflow before this one.
        let stable = state.steps - state.last_overflow.map_or(0, |step| step + 1);
        if stable > 0 && stable.is_multiple_of(config.loss_scale_window) {
            if !config.consecutive_hysteresis {
                state.hysteresis = config.hysteresis;
            }
            state.loss_scale *= FACTOR;
        }
    }

    /// The state for a checkpoint; none for a scale that never changes.
    pub(super) fn state(&self) -> Option<LossScalerState> {
        self.is_dynamic().then_some(self.state)
    }

    /// Goes on from a checkpoint; one of another precision has no state, and the scale starts anew.
    pub(super) fn restore(&mut self, state: Option<LossScalerState>) {
        *self = Self::new(self.config);
        if let (LossScale::Dynamic(config), Some(state)) = (self.config, state) {
            let loss_scale = state.loss_scale.max(config.min_loss_scale);
            let hysteresis = state.hysteresis.clamp(1, config.hysteresis);
            self.state = LossScalerState { loss_scale, hysteresis, ..state };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaler(initial_scale_power: u32, consecutive_hysteresis: bool) -> LossScaler {
        LossScaler::new(LossScale::Dynamic(DynamicLossScale {
            initial_scale_power,
            loss_scale_window: 3,
            hysteresis: 2,
            consecutive_hysteresis,
            min_loss_scale: 1.0,
        }))
    }

    /// The scale and the hysteresis after each step; `1` in `overflows` is an overflow.
    fn trace(scaler: &mut LossScaler, overflows: &str) -> Vec<(f64, u32)> {
        let step = |overflow| {
            scaler.update(overflow == '1').unwrap();
            (scaler.scale(), scaler.state.hysteresis)
        };
        overflows.chars().map(step).collect()
    }

    /// The traces are those of DeepSpeed 0.19.8's DynamicLossScaler.
    #[test]
    fn the_scale_goes_deepspeeds_way() {
        assert_eq!(
            trace(&mut scaler(4, false), "1111000010"),
            [
                (16.0, 1),
                (8.0, 1),
                (4.0, 1),
                (2.0, 1),
                (2.0, 1),
                (2.0, 1),
                (2.0, 1),
                (4.0, 2),
                (4.0, 1),
                (4.0, 1)
            ]
        );
        let scales = trace(&mut scaler(4, false), "0000000000").into_iter().map(|(scale, _)| scale);
        assert_eq!(
            scales.collect::<Vec<_>>(),
            [16.0, 16.0, 16.0, 32.0, 32.0, 32.0, 64.0, 64.0, 64.0, 128.0]
        );
        assert_eq!(
            trace(&mut scaler(4, true), "101010"),
            [(16.0, 1), (16.0, 2), (16.0, 1), (16.0, 2), (16.0, 1), (16.0, 2)]
        );
    }

    #[test]
    fn an_overflow_at_the_minimum_is_the_end() {
        let mut scaler = scaler(1, false);
        assert_eq!(trace(&mut scaler, "11"), [(2.0, 1), (1.0, 1)]);
        assert_eq!(scaler.update(true), Err(AtMinimum));
    }

    #[test]
    fn a_static_scale_never_changes() {
        let mut scaler = LossScaler::new(LossScale::Static(128.0));
        assert_eq!(trace(&mut scaler, "1101"), [(128.0, 0); 4]);
        assert_eq!((scaler.shown(), scaler.state()), (Some(128.0), None));
        assert_eq!(LossScaler::new(LossScale::None).shown(), None);
    }

    #[test]
    fn a_restored_scale_goes_on_as_if_never_stopped() {
        let mut whole = scaler(4, false);
        let all = trace(&mut whole, "0110001000");
        let mut first = scaler(4, false);
        trace(&mut first, "01100");
        let mut second = scaler(4, false);
        second.restore(first.state());
        assert_eq!(trace(&mut second, "01000"), all[5..]);
    }
}
