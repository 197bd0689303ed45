//! The law of the code.
