//! `sparse_attention`: the blocks of keys that queries see, which DeepSpeed has given up.

use super::{
    draft::Draft,
    found::Found,
    key::{Key, Kind, becomes, block},
    options::with_options,
};
use crate::config::{
    options::OptionTable,
    sparse_attention::{SparseAttention, SparseMode},
};

pub(super) fn key() -> Key {
    let name = "sparse_attention";
    block(name, with_options(LISTS, &[SparseAttention::ROWS], name))
}

/// An object without a mode is DeepSpeed's first one.
pub(super) fn translate(found: &Found, draft: &mut Draft) {
    if found.mentions("sparse_attention") {
        draft.imply("sparse_attention.mode", SparseMode::default().name().into());
    }
}

const LISTS: &[Key] = &[
    becomes("local_window_blocks", Kind::Wholes, "sparse_attention.local_window_blocks"),
    becomes("global_block_indices", Kind::Wholes, "sparse_attention.global_block_indices"),
    becomes(
        "global_block_end_indices",
        Kind::OrNull(&Kind::Wholes),
        "sparse_attention.global_block_end_indices",
    ),
];
