//! What a learning rate is.

/// Whether a number can be a learning rate: finite, and 0 or more.
pub fn is_rate(number: &f64) -> bool {
    number.is_finite() && *number >= 0.0
}
