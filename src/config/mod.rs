//! Settings after validation: plain structs, no input or output.

mod engine;
pub mod schedule;
pub mod suggest;

pub use engine::{AdamWConfig, EngineConfig};
pub use schedule::Schedule;
