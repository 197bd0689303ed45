//! The optimizer, over whole parameter units, and the norm that gradients are clipped by.

mod adamw;
mod clip;

pub use adamw::{AdamW, Moments, StepRates};
pub use clip::{clip_coefficient, norm};
