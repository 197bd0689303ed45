//! Behaviour of dsr, seen from outside.
mod hub;
mod support;
