//! Conversations as rows of tokens, of which the assistant's are trained.
//!
//! A row is read as a conversation whatever its form (`conversation.rs`), written by the tokenizer's own
//! template (`template.rs`) within limits (`bounds.rs`, `growth.rs`), and labelled where the assistant speaks
//! (`labels.rs`). `preview.rs` shows it.

mod bounds;
mod conversation;
mod conversations;
mod growth;
mod labels;
mod preview;
mod template;

pub use self::{
    conversations::ChatOptions,
    preview::PreviewRow,
    template::{ChatTemplate, Message},
};
pub(super) use self::{conversations::chat, labels::PlacedToken, preview::preview};
