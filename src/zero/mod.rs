//! Flat parameter units.
