//! The memory by kind, in the lines above the charts.

use crate::{engine::MemoryUse, units::Bytes};

/// The kinds with a word for each, in their order.
pub(super) fn kinds(memory: MemoryUse) -> [(&'static str, u64); 6] {
    memory.kinds().map(|(kind, bytes)| match kind {
        "master_weights" => ("masters", bytes),
        "optimizer_state" => ("optimizer", bytes),
        kind => (kind, bytes),
    })
}

/// The peak with its kinds, in lines of at most `width` characters where that is possible.
pub(super) fn lines(memory: MemoryUse, of_rank: &str, width: usize) -> Vec<String> {
    let mut lines = vec![format!("peak memory{of_rank} {}:", Bytes(memory.peak()))];
    for (kind, bytes) in kinds(memory).into_iter().filter(|(_, bytes)| *bytes > 0) {
        let words = format!("  {kind} {}", Bytes(bytes));
        match lines.last_mut() {
            Some(line) if line.len() + words.len() <= width => line.push_str(&words),
            _ => lines.push(words),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_without_bytes_are_left_out_and_a_long_line_is_broken() {
        let memory =
            MemoryUse { parameters: 1 << 30, optimizer_state: 2 << 30, ..MemoryUse::default() };
        let whole = "peak memory of rank 0 3.0 GiB:  parameters 1.0 GiB  optimizer 2.0 GiB";
        assert_eq!(lines(memory, " of rank 0", 100), [whole]);
        assert_eq!(
            lines(memory, "", 50),
            ["peak memory 3.0 GiB:  parameters 1.0 GiB", "  optimizer 2.0 GiB"]
        );
    }
}
