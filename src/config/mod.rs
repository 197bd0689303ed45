//! Settings after validation: plain structs, no input or output.

pub mod suggest;
