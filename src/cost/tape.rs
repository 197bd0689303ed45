//! The operations of a layer, taken down in the order of the forward pass and played back as autograd frees.

use super::{
    layer_cost::{AngleTable, HeldBytes, LayerCost, SummedBytes},
    profile::ModuleProfile,
    workload::Workload,
};

/// The operations of a layer in the order of the forward pass.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    entries: Vec<TapeEntry>,
    summed: SummedBytes,
    mask: u64,
    angles: Option<AngleTable>,
    bias: u64,
    encoded: u64,
    /// The region that was entered.
    region: Region,
}

/// Bytes of a region that ranks divide, where each has a part of the tokens.
#[derive(Debug, Default)]
struct Region {
    /// Of what was gathered.
    gathered: u64,
    /// Of the parts that it is gathered from again.
    kept: u64,
}

#[derive(Debug, Clone, Copy)]
enum TapeEntry {
    Operation(Operation),
    /// The operations that follow are a branch, whose result is added.
    Branch,
    /// The result of the branch is added.
    Joined,
    /// So many bytes are gathered, which the backward pass lets go of here.
    Gathered(u64),
    /// They are not needed any more, until the backward pass comes here.
    Left(u64),
    /// The backward pass goes on with one gradient, of so many bytes. The others stay allocated.
    GoesOnWith(u64),
}

/// One operation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Operation {
    /// Bytes that are freed after its backward: what it alone keeps, or keeps last.
    pub(crate) kept: u64,
    /// Bytes that its backward takes and gives back before the gradient is made.
    pub(crate) transient: u64,
    /// Bytes of the gradient of its input; 0 where that is a view of the one of its output.
    pub(crate) gradient: u64,
    /// Bytes of it that the gradient of its output had already.
    pub(crate) carried: u64,
}

impl Tape {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A mask of so many bytes, which is made once a pass for all layers.
    pub(crate) fn needs_mask(&mut self, bytes: u64) {
        self.mask = self.mask.max(bytes);
    }

    /// A table of angles, which other layers may read too.
    pub(crate) fn reads_angles(&mut self, table: AngleTable) {
        self.angles = Some(table);
    }

    /// A bias of the scores of so many bytes, which the layers behind this one add too.
    pub(crate) fn makes_bias(&mut self, bytes: u64) {
        self.bias = bytes;
    }

    /// The output of an encoder of so many bytes, which is read beside the hidden states.
    pub(crate) fn reads_encoded(&mut self, bytes: u64) {
        self.encoded = bytes;
    }

    /// The backward pass goes on with one gradient, of so many bytes. The others stay allocated: for operations
    /// before, or for other layers.
    pub(crate) fn goes_on_with(&mut self, bytes: u64) {
        self.entries.push(TapeEntry::GoesOnWith(bytes));
    }

    /// Adds an operation.
    pub(crate) fn push(&mut self, operation: Operation) {
        self.entries.push(TapeEntry::Operation(operation));
    }

    /// Enters a region that ranks divide with `width` values of each token of `work`, which is of
    /// whole rows; the input is kept if nothing before keeps it.
    pub(crate) fn enter(&mut self, work: &Workload, width: i64, keeps_input: bool) {
        self.share(work, width);
        if work.has_part_of_tokens() {
            let (all, own) = (work.bytes(width), work.between().bytes(width));
            // A region lets go of the gathered tokens at its end, and gathers them again to go back.
            self.summed.backward += all / 2;
            self.region.gathered += all;
            self.region.kept += if keeps_input { own } else { 0 };
            self.entries.push(TapeEntry::Gathered(all));
        }
    }

    /// The same for what no region leaves.
    pub(crate) fn share(&mut self, work: &Workload, width: i64) {
        if work.sharing.ranks == 1 {
            return;
        }
        let (all, own) = (work.bytes(width), work.between().bytes(width));
        if work.has_part_of_tokens() {
            self.summed.forward += all / 2;
            self.summed.backward += all / 2;
            // The tensor that is scattered stands rank by rank first.
            self.push(Operation { transient: all + own, gradient: own, ..Operation::default() });
            return;
        }
        self.summed.backward += all;
        self.push(Operation { gradient: all, ..Operation::default() });
    }

    /// Leaves a region with a sum.
    pub(crate) fn leave(&mut self, work: &Workload, width: i64) {
        if work.sharing.ranks == 1 {
            return;
        }
        let all = work.bytes(width);
        if work.has_part_of_tokens() {
            self.summed.forward += all / 2;
            self.summed.backward += all / 2;
            let Region { gathered, kept } = std::mem::take(&mut self.region);
            // The gathered tensor stands rank by rank first.
            let transient = 2 * all;
            self.push(Operation { kept, transient, gradient: all, ..Operation::default() });
            self.entries.push(TapeEntry::Left(gathered));
            return;
        }
        self.summed.forward += all;
    }

    /// Begins a branch whose result will be added to what is there: a residual connection.
    pub(crate) fn branch(&mut self) {
        self.entries.push(TapeEntry::Branch);
    }

    /// Adds the result of the branch.
    pub(crate) fn join(&mut self) {
        self.entries.push(TapeEntry::Joined);
    }

    /// Bytes that the operations keep.
    fn kept(&self) -> u64 {
        let bytes = self.entries.iter().map(|entry| match entry {
            TapeEntry::Operation(operation) => operation.kept,
            _ => 0,
        });
        bytes.sum()
    }

    /// The cost of a layer with an output of `output` bytes that no operation keeps.
    pub(crate) fn cost(&self, profile: ModuleProfile, output: u64) -> LayerCost {
        let kept = self.kept() + output;
        let (backward, summed) = (self.backward(kept, output), self.summed);
        let Self { mask, angles, bias, encoded, .. } = *self;
        LayerCost {
            profile,
            kept,
            output,
            backward,
            summed,
            mask,
            angles,
            bias,
            encoded,
            ..LayerCost::default()
        }
    }

    /// Plays the tape back. The gradient of the layer's output comes from outside and stays.
    fn backward(&self, kept: u64, output: u64) -> HeldBytes {
        let mut tally = MemoryCounter::new(kept, output);
        let mut gradient = Gradient { bytes: output, stays: true };
        let mut joined = Vec::new();
        for entry in self.entries.iter().rev() {
            match *entry {
                TapeEntry::Operation(Operation { kept, transient, gradient: made, carried }) => {
                    tally.allocate(transient);
                    tally.free(transient);
                    if made > 0 {
                        tally.allocate(made - carried);
                        gradient.bytes -= carried;
                        tally.free_gradient(gradient);
                        gradient = Gradient { bytes: made, stays: false };
                    }
                    tally.free_kept(kept);
                }
                TapeEntry::Left(bytes) => tally.allocate(bytes),
                TapeEntry::Gathered(bytes) => tally.free(bytes),
                TapeEntry::GoesOnWith(bytes) => gradient = Gradient { bytes, stays: false },
                TapeEntry::Joined => {
                    joined.push(gradient);
                    gradient.stays = true;
                }
                TapeEntry::Branch => {
                    let Some(past) = joined.pop() else { continue };
                    tally.allocate(past.bytes);
                    tally.free_gradient(gradient);
                    tally.free_gradient(past);
                    gradient = Gradient { bytes: past.bytes, stays: false };
                }
            }
        }
        tally.peak
    }
}

/// The gradient that the playback has come to.
#[derive(Debug, Clone, Copy)]
struct Gradient {
    bytes: u64,
    /// Whether it is still needed after what it is consumed by.
    stays: bool,
}

/// A count that goes up and down, and its highest.
struct MemoryCounter {
    now: HeldBytes,
    peak: HeldBytes,
}

impl MemoryCounter {
    fn new(activations: u64, buffers: u64) -> Self {
        let now = HeldBytes { activations, buffers };
        Self { now, peak: now }
    }

    fn allocate(&mut self, bytes: u64) {
        self.now.buffers += bytes;
        if self.now.activations + self.now.buffers > self.peak.activations + self.peak.buffers {
            self.peak = self.now;
        }
    }

    fn free(&mut self, bytes: u64) {
        self.now.buffers = self.now.buffers.saturating_sub(bytes);
    }

    fn free_gradient(&mut self, gradient: Gradient) {
        if !gradient.stays {
            self.free(gradient.bytes);
        }
    }

    fn free_kept(&mut self, bytes: u64) {
        self.now.activations = self.now.activations.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tape_is_played_back_as_autograd_frees() {
        let mut tape = Tape::new();
        tape.branch();
        tape.push(Operation { kept: 5, gradient: 10, ..Operation::default() });
        tape.push(Operation { kept: 40, transient: 3, gradient: 40, carried: 0 });
        tape.join();
        let cost = tape.cost(ModuleProfile::new("", "Block"), 10);
        assert_eq!(cost.kept, 55);
        // The output's gradient stays; 40 are made while all is kept.
        assert_eq!(cost.backward, HeldBytes { activations: 55, buffers: 50 });
    }

    /// Cross-attention makes the gradient of the encoder's output beside that of its queries.
    #[test]
    fn a_gradient_for_other_layers_stays() {
        let mut tape = Tape::new();
        tape.goes_on_with(10);
        tape.push(Operation { gradient: 30, ..Operation::default() });
        tape.goes_on_with(8);
        tape.push(Operation { gradient: 10, ..Operation::default() });
        tape.goes_on_with(4);
        tape.push(Operation { gradient: 12, ..Operation::default() });
        let cost = tape.cost(ModuleProfile::new("", "Block"), 10);
        // The output's; then 4 of queries and 8 of keys and values; 10 and 30 that are made of these.
        assert_eq!(cost.backward.buffers, 10 + 8 + 10 + 30);
    }

    #[test]
    fn the_sum_after_a_branch_needs_both_parts() {
        let mut tape = Tape::new();
        tape.branch();
        tape.push(Operation { gradient: 10, ..Operation::default() });
        tape.join();
        let cost = tape.cost(ModuleProfile::new("", "Block"), 10);
        assert_eq!(cost.backward.buffers, 30, "output's, branch's, sum");
    }
}
