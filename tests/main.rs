//! Behaviour of dsr, seen from outside.
// A test's own functions may fail as loudly as the test.
#![allow(clippy::unwrap_used)]

mod checkpoint;
mod tidy;
