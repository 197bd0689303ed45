//! Numbers that are compared.

use serde_json::Value;

/// The numbers of an array.
pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Asserts that a number is another one, within a relative tolerance.
#[track_caller]
pub(crate) fn assert_relative(what: &str, found: f64, expected: f64, tolerance: f64) {
    let relative = (found / expected - 1.0).abs();
    assert!(relative <= tolerance, "{what}: {found} is not {expected} ({relative:.1e})");
}
