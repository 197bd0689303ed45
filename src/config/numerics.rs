//! How exactly libtorch computes: what it may round, and whether it repeats itself.

use super::options::{option_table, option_words};

option_words! {
    /// The rounding that products of float32 matrices may use, as
    /// `torch.set_float32_matmul_precision`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum MatmulPrecision {
        /// Nothing: float32 throughout.
        Highest = "highest",
        /// On CUDA TensorFloat-32, which has 11 bits of precision.
        High = "high",
        /// As `High`; on CPUs that can, bfloat16, which has 8.
        Medium = "medium",
    }
}

option_table! {
    /// Settings of libtorch that an engine computes with.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Numerics {
        /// the precision of products of float32 matrices, as `torch.set_float32_matmul_precision`: on a
        /// GPU "high" and "medium" use TensorFloat-32, which is several times as fast, on a CPU that can
        /// "medium" uses bf16
        #[option(default = MatmulPrecision::Highest)]
        pub matmul_precision: MatmulPrecision,
        /// whether two runs on the same GPUs are equal to the bit, as
        /// `torch.use_deterministic_algorithms`, for some speed; an operation that cannot be is then an
        /// error that names it. Runs on CPUs always are
        #[option(default = false)]
        pub deterministic: bool,
    }
}

impl Numerics {
    /// The settings that are not the default, each behind a comma.
    pub fn unusual(self) -> String {
        let precision = match self.matmul_precision {
            MatmulPrecision::Highest => String::new(),
            other => format!(", matmul_precision {}", other.name()),
        };
        precision + if self.deterministic { ", deterministic" } else { "" }
    }
}
