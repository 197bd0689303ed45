//! The slices of flat units that are updated alike, and the parameters in them.

/// A parameter with its state tensors.
#[derive(Debug)]
pub(super) struct PlanParam {
    pub(super) name: String,
    pub(super) unit: usize,
    /// Its first element in the unit.
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) states: &'static [&'static str],
    /// Whether its state is in 8 bits.
    pub(super) is_blockwise: bool,
}

/// A slice of a unit's flat tensor that is updated alike.
#[derive(Debug)]
pub(super) struct FlatSlice {
    pub(super) unit: usize,
    /// The number of the unit in the whole model.
    pub(super) number: usize,
    /// Its first element in what this rank updates of the unit.
    pub(super) offset: i64,
    /// Its first element in the unit.
    pub(super) unit_offset: i64,
    /// Padding included.
    pub(super) len: i64,
    /// Whether its state is in 8 bits; it is then of one parameter, and begins with a block.
    pub(super) is_blockwise: bool,
    pub(super) params: Vec<ShardParamInfo>,
}

/// A parameter in a slice, or the part of it that is there.
#[derive(Debug)]
pub(super) struct ShardParamInfo {
    /// Its number in [`OptimizerPlan`](super::OptimizerPlan)'s parameters.
    pub(super) index: usize,
    /// Its first element in the slice.
    pub(super) offset: i64,
    /// The first element that is there, of those of the parameter.
    pub(super) start: i64,
    /// How many elements are there.
    pub(super) len: i64,
    pub(super) fan_in_out: Option<(i64, i64)>,
}
