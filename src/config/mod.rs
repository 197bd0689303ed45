//! Settings after validation: plain structs, no input or output.

mod batch;
mod engine;
pub mod schedule;
pub mod suggest;

pub use batch::BatchSizes;
pub use engine::{ActivationCheckpointing, AdamWConfig, EngineConfig, LossAverage};
pub use schedule::Schedule;
