//! Generation: texts that a model goes on with, many at a time.
//!
//! A text enters a slot of the caches whole, and all running texts then grow by one token a pass. A
//! text that ends makes room for the next prompt (continuous batching: Orca, Yu et al. 2022), so that
//! nothing is padded and lengths may differ.

mod batch;
mod ended;
mod passes;
mod prompt;
mod sampling;
mod score;
mod text;

pub use self::{
    batch::generate,
    ended::{Ended, FinishReason, Watch},
    prompt::Prompt,
    sampling::Sampling,
    score::{Score, Windows, score},
    text::{Continued, Texts, check_texts, continue_texts, continue_tokens},
};
