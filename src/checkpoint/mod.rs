//! Checkpoints on disk: a directory of them, of which one is the latest and each is provably whole.
//!
//! ```text
//! checkpoints/
//!     latest                  a line of text: step-00000120
//!     step-00000060/          manifest.json and what the engine wrote
//!     step-00000120/
//! ```
//!
//! A [`Store`] decides where a checkpoint stands, when it counts and when it goes; the
//! [`manifest`] lists its files and detects damage. The engine decides what the files hold. A missing or damaged checkpoint is an error that names the file, never a fresh start.

pub mod manifest;
mod resolve;
mod step_dir;
mod store;

pub use store::{BEST, LATEST, Retention, Saved, Store};
