//! Behaviour of dsr, seen from outside.

mod data;
