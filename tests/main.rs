//! Behaviour of dsr, seen from outside.

mod checkpoint;
mod tidy;
