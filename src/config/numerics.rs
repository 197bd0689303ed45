//! How exactly libtorch computes: what it may round, and whether it repeats itself.

/// The rounding that products of float32 matrices may use, as
/// `torch.set_float32_matmul_precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MatmulPrecision {
    /// Nothing: float32 throughout.
    #[default]
    Highest,
    /// On CUDA TensorFloat-32, which has 11 bits of precision.
    High,
    /// As `High`; on CPUs that can, bfloat16, which has 8.
    Medium,
}

impl MatmulPrecision {
    /// All of them by their names in options.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("highest", Self::Highest), ("high", Self::High), ("medium", Self::Medium)];

    /// The name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Highest => "highest",
            Self::High => "high",
            Self::Medium => "medium",
        }
    }
}

/// Settings of libtorch that an engine computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numerics {
    /// The precision of matrix products.
    pub matmul_precision: MatmulPrecision,
    /// Whether two runs on the same GPUs are equal to the bit. An operation that cannot be is then an
    /// error.
    pub deterministic: bool,
}
