//! Ranges of numbers, for errors and documentation.

use std::{
    fmt::Display,
    ops::{Bound, RangeBounds},
};

/// The range of a number.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// In words.
    pub words: String,
    /// The lower end, which may be excluded.
    pub least: f64,
    /// The upper end, which may be excluded.
    pub most: f64,
}

impl Limits {
    /// Those of a range.
    pub fn of<T: Display>(range: &impl RangeBounds<T>) -> Self {
        let number = |bound: Bound<&T>, open: f64| match bound {
            // The text of a number is that number.
            Bound::Included(n) | Bound::Excluded(n) => n.to_string().parse().unwrap_or(open),
            Bound::Unbounded => open,
        };
        Self {
            words: limits(range),
            least: number(range.start_bound(), f64::MIN),
            most: number(range.end_bound(), f64::MAX),
        }
    }
}

/// A range in words.
pub fn limits<T: Display>(range: &impl RangeBounds<T>) -> String {
    use Bound::{Excluded, Included, Unbounded};
    match (range.start_bound(), range.end_bound()) {
        (Included(a), Included(b)) => format!("from {a} to {b}"),
        (Included(a), Excluded(b)) => format!("at least {a} and below {b}"),
        (Included(a), Unbounded) => format!("{a} or more"),
        (Excluded(a), Included(b)) => format!("above {a} and at most {b}"),
        (Excluded(a), Excluded(b)) => format!("above {a} and below {b}"),
        (Excluded(a), Unbounded) => format!("above {a}"),
        (Unbounded, Included(b)) => format!("at most {b}"),
        (Unbounded, Excluded(b)) => format!("below {b}"),
        (Unbounded, Unbounded) => "a number".to_owned(),
    }
}

/// Whether a number is finite, for options.
pub fn is_finite(number: &f64) -> bool {
    number.is_finite()
}
