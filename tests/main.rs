//! Behaviour of dsr, seen from outside.
