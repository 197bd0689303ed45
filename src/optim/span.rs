//! Parameters and the parts of units that a plan and the rules speak of.

/// A parameter with its state tensors.
#[derive(Debug)]
pub(super) struct PlanParam {
    pub(super) name: String,
    pub(super) unit: usize,
    /// Its first element in the unit.
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) states: &'static [&'static str],
}

/// A part of a unit.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) unit: usize,
    /// Its first element in what this rank updates of the unit.
    pub(super) offset: i64,
    /// Its first element in the unit.
    pub(super) place: i64,
    /// Padding included.
    pub(super) len: i64,
    pub(super) params: Vec<SpanParam>,
}

/// A parameter in a span, or the part of it that is there.
#[derive(Debug)]
pub(super) struct SpanParam {
    /// Its number in [`super::Plan`]'s parameters.
    pub(super) index: usize,
    /// Its first element in the span.
    pub(super) offset: i64,
    /// The first element that is there, of those of the parameter.
    pub(super) start: i64,
    /// How many elements are there.
    pub(super) len: i64,
    pub(super) fan_in_out: Option<(i64, i64)>,
}
