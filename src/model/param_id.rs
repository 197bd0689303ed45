//! A parameter among those of its layer.

/// A parameter among those of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamId {
    /// One of the layer's own.
    Own(usize),
    /// One that it borrows.
    Borrowed(usize),
}
