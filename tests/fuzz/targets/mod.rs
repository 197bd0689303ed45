//! What is fuzzed: one function of bytes for each reader of text or files from outside, which may
//! refuse its input and must not panic.

pub(crate) mod deepspeed;
pub(crate) mod options;
pub(crate) mod recipe;
pub(crate) mod safetensors;
pub(crate) mod split;
