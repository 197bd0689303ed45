//! The lengths of the rows that a recipe makes, as far as it says them before the first row is read.

use std::cell::Cell;

use crate::engine::fitting::RowShape;

/// The lengths that were noted so far.
#[derive(Debug, Default)]
pub(crate) struct RowLengths {
    packed: Cell<Option<u64>>,
    cut: Cell<Option<u64>>,
    targets: Cell<Option<u64>>,
}

impl RowLengths {
    /// Notes that the recipe makes rows of this many tokens.
    pub(super) fn packs(&self, tokens: u64) {
        self.packed.set(self.packed.get().max(Some(tokens)));
    }

    /// Notes that the recipe cuts rows to so many tokens and so many labels.
    pub(super) fn cuts(&self, tokens: Option<u64>, labels: Option<u64>) {
        self.cut.set(self.cut.get().max(tokens));
        self.targets.set(self.targets.get().max(labels));
    }

    /// The rows as far as they are known; `whole_logits` where a loss of the recipe's own gets them.
    pub(super) fn shape(&self, whole_logits: bool) -> RowShape {
        let tokens = self.packed.get().or(self.cut.get());
        RowShape { tokens, targets: self.targets.get(), whole_logits }
    }
}
