//! Settings after validation: plain structs, no input or output.

mod batch;
mod engine;
pub mod optimizer;
pub mod schedule;
pub mod suggest;

pub use batch::BatchSizes;
pub use engine::{EngineConfig, LossAverage};
pub use optimizer::OptimizerConfig;
pub use schedule::Schedule;
