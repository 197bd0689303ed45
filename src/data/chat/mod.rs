//! Conversations as rows of tokens, of which the assistant's are trained.
//!
//! A row is read as a conversation whatever its form (`conversation.rs`), written by the tokenizer's own
//! template (`template.rs`), and labelled where the assistant speaks (`labels.rs`). `preview.rs` shows it.

mod conversation;
mod conversations;
mod labels;
mod preview;
mod template;

pub use self::{
    conversations::ChatOptions,
    preview::PreviewRow,
    template::{ChatTemplate, Message},
};
pub(super) use self::{conversations::chat, labels::PlacedToken, preview::preview};
