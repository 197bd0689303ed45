//! The places of parameters in their units, as an optimizer needs them.

/// One unit: parameters in one flat tensor.
#[derive(Debug, Clone)]
pub struct UnitLayout {
    /// Number of elements, padding included.
    pub numel: i64,
    /// The parameters, in the order of the storage.
    pub params: Vec<ParamLayout>,
}

/// One parameter in its unit.
#[derive(Debug, Clone)]
pub struct ParamLayout {
    /// Its Hugging Face name.
    pub name: String,
    /// Its first element in the unit.
    pub offset: i64,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Inputs and outputs of the layer whose weight this is: `(fan_in, fan_out)`, for the matrices
    /// of linear layers between embedding and head, and `None` for anything else.
    pub fan_in_out: Option<(i64, i64)>,
}

impl ParamLayout {
    /// Number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}
