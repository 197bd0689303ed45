//! A run's directory, metrics and progress.
