//! Settings after validation: plain structs, no input or output.

mod batch;
pub mod deepspeed;
mod ema;
mod engine;
mod lora;
mod mesh;
mod monitor;
mod numerics;
mod offload;
pub mod optimizer;
pub mod options;
mod outliers;
mod precision;
mod quantize;
pub mod schedule;
mod sparse_attention;
pub mod suggest;
mod trainable;
pub mod words;
mod zero;

pub use batch::{BatchChoice, BatchSizes, FittedBatch, MicroBatchSize, OpenBatch};
pub use ema::{EmaConfig, EmaWarmup};
pub use engine::{ActivationCheckpointing, ENGINE_TABLES, EngineConfig, LossAverage, TiledMlp};
pub use lora::{LoraOptions, TargetModules};
pub use mesh::{
    MeshConfig, MeshPlace, MeshShape, PartitionMethod, PipelineOptions, TensorParallelOptions,
};
pub use monitor::{FlopsProfilerConfig, LogDir, MonitorConfig};
pub use numerics::{MatmulPrecision, Numerics};
pub use offload::{OffloadDevice, OptimizerOffload};
pub use optimizer::OptimizerConfig;
pub use outliers::OutlierConfig;
pub use precision::{Dtype, DtypeChoice, DynamicLossScale, LossScale, PrecisionConfig};
pub use quantize::{Quantization, QuantizationKind, QuantizeOptions, QuantizedFormat};
pub use schedule::Schedule;
pub use sparse_attention::{SPARSE_ATTENTION, Sides, SparseAttention, SparseMode};
pub use trainable::TrainableConfig;
pub use zero::{ZeroConfig, overlaps};
