//! The descriptions of parameters.

/// How a parameter starts when a model is made from scratch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// This number everywhere.
    Constant(f64),
    /// Normally distributed around zero with this standard deviation.
    Normal(f64),
    /// Normally distributed as well, but for zeros in one row: the `padding_idx` of torch's `nn.Embedding`.
    Padded {
        /// The standard deviation.
        std: f64,
        /// The row.
        padding_idx: i64,
    },
    /// Equally distributed between this and its negative.
    Uniform(f64),
    /// The value of the base's parameter of an adapter's.
    Saved,
    /// The lengths of the rows of the base's matrix for each of its outputs.
    Magnitude,
}

impl Init {
    /// The same with zeros in the row of padding, where there is one.
    pub(crate) fn padded(self, padding_idx: Option<i64>) -> Self {
        match (self, padding_idx) {
            (Self::Normal(std), Some(padding_idx)) => Self::Padded { std, padding_idx },
            _ => self,
        }
    }

    /// The row of padding.
    pub(crate) fn padding_idx(self) -> Option<i64> {
        match self {
            Self::Padded { padding_idx, .. } => Some(padding_idx),
            _ => None,
        }
    }
}

/// One parameter: its Hugging Face name, shape and first values.
#[derive(Debug, Clone)]
pub struct ParamSpec {
    /// The name in Hugging Face's `model.safetensors`.
    pub name: String,
    /// Its shape, as stored there.
    pub shape: Vec<i64>,
    /// How it starts from scratch.
    pub init: Init,
    /// Inputs and outputs of the linear layer of a block whose weight this is: `(fan_in, fan_out)`.
    pub fan_in_out: Option<(i64, i64)>,
    /// Whether such a weight is stored `[in, out]`, not `[out, in]`.
    pub is_by_inputs: bool,
    /// Whether it has a row for each token: an embedding, or the projection to the vocabulary.
    pub is_of_tokens: bool,
}

/// A parameter among those of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamPlace {
    /// The number of its unit.
    pub unit: usize,
    /// Its number in the unit.
    pub index: usize,
}

impl ParamSpec {
    /// A parameter with its name, shape and start.
    pub fn new(name: impl Into<String>, shape: &[i64], init: Init) -> Self {
        let (name, shape) = (name.into(), shape.to_vec());
        Self { name, shape, init, fan_in_out: None, is_by_inputs: false, is_of_tokens: false }
    }

    /// The same, known as the weight of a block's linear layer.
    pub fn linear(self, fan_in: i64, fan_out: i64) -> Self {
        Self { fan_in_out: Some((fan_in, fan_out)), ..self }
    }

    /// Inputs and outputs of a matrix: the weight of a block's linear layer, or a row for each token.
    pub fn matrix(&self) -> Option<(i64, i64)> {
        match (self.fan_in_out, &self.shape[..]) {
            (None, &[tokens, width]) if self.is_of_tokens => Some((width, tokens)),
            (fans, _) => fans,
        }
    }

    /// The dimension of the inputs of such a weight.
    pub fn input_dim(&self) -> i64 {
        i64::from(!self.is_by_inputs)
    }

    /// Number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}
