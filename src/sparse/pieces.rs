//! A layout as dense pieces: rectangles of blocks that queries see whole, and triangles on the diagonal.
//!
//! Rows of blocks are halved again and again. Whatever all rows of one part see, and no larger part had in
//! common, is one piece. A fixed layout becomes its windows and a few rectangles, a sliding window a
//! triangle and squares that halve; parts of one size give pieces of one shape, which are one call.

use std::{collections::BTreeMap, ops::Range};

use super::layout::BlockMatrix;

/// Pieces of one shape.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    /// The blocks of queries of each piece in turn.
    pub(super) queries: Vec<i64>,
    /// The blocks of keys of each piece in turn.
    pub(super) keys: Vec<i64>,
    /// How many pieces.
    pub(super) count: i64,
    /// Whether they lie on the diagonal, and a query sees no key behind itself.
    pub(super) is_causal: bool,
}

/// The shape of a piece: blocks of queries and of keys, and whether it is a triangle.
type Shape = (bool, usize, usize);

struct Cutter {
    left: BlockMatrix,
    made: BTreeMap<Shape, Pieces>,
}

/// The pieces of a matrix, the largest first; with `is_causal` blocks on the diagonal are triangles, and there
/// is none behind it.
pub(super) fn pieces(matrix: &BlockMatrix, is_causal: bool) -> Vec<Pieces> {
    let blocks = matrix.blocks();
    let mut cutter = Cutter { left: matrix.clone(), made: BTreeMap::new() };
    let whole = blocks.next_power_of_two();
    if is_causal {
        cutter.triangles(0, whole);
    }
    cutter.rectangles(0, whole);
    cutter.made.into_values().rev().collect()
}

impl Cutter {
    fn part(&self, start: usize, len: usize) -> Range<usize> {
        start..(start + len).min(self.left.blocks())
    }

    fn triangles(&mut self, start: usize, len: usize) {
        let part = self.part(start, len);
        if part.is_empty() {
            return;
        }
        let is_whole =
            part.clone().all(|row| (part.start..=row).all(|col| self.left.get(row, col)));
        if is_whole {
            for row in part.clone() {
                for col in part.start..=row {
                    self.left.set(row, col, false);
                }
            }
            let keys: Vec<usize> = part.clone().collect();
            self.add(true, part, &keys);
        } else if len > 1 {
            self.triangles(start, len / 2);
            self.triangles(start + len / 2, len / 2);
        } else {
            // A block that does not see itself.
            self.left.set(start, start, false);
        }
    }

    fn rectangles(&mut self, start: usize, len: usize) {
        let part = self.part(start, len);
        if part.is_empty() {
            return;
        }
        let mut common = self.left.row(part.start).to_vec();
        for row in part.clone().skip(1) {
            for (common, seen) in common.iter_mut().zip(self.left.row(row)) {
                *common &= seen;
            }
        }
        let keys: Vec<usize> = (0..common.len()).filter(|&col| common[col]).collect();
        if !keys.is_empty() {
            for row in part.clone() {
                for &col in &keys {
                    self.left.set(row, col, false);
                }
            }
            self.add(false, part, &keys);
        }
        if len > 1 {
            self.rectangles(start, len / 2);
            self.rectangles(start + len / 2, len / 2);
        }
    }

    fn add(&mut self, is_causal: bool, rows: Range<usize>, keys: &[usize]) {
        let pieces = self.made.entry((is_causal, rows.len(), keys.len())).or_default();
        pieces.is_causal = is_causal;
        pieces.count += 1;
        pieces.queries.extend(rows.map(|row| row as i64));
        pieces.keys.extend(keys.iter().map(|&col| col as i64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Sides, SparseAttention, SparseMode},
        sparse::layout::Layout,
    };

    fn matrix(options: &SparseAttention, sides: Sides, blocks: usize) -> BlockMatrix {
        let layout = Layout::new(options, sides, 1, (blocks, None)).unwrap();
        layout.groups.into_iter().next().unwrap().0
    }

    /// Counts how often pieces have each block.
    fn counts(pieces: &[Pieces], blocks: usize) -> Vec<u32> {
        let mut counts = vec![0; blocks * blocks];
        for of_shape in pieces {
            let (q, k) = (of_shape.queries.len(), of_shape.keys.len());
            let (q, k) = (q / of_shape.count as usize, k / of_shape.count as usize);
            for (rows, cols) in of_shape.queries.chunks(q).zip(of_shape.keys.chunks(k)) {
                for (i, &row) in rows.iter().enumerate() {
                    for (j, &col) in cols.iter().enumerate() {
                        if !of_shape.is_causal || j <= i {
                            counts[row as usize * blocks + col as usize] += 1;
                        }
                    }
                }
            }
        }
        counts
    }

    #[test]
    fn every_block_is_in_one_piece_and_few_shapes_arise() {
        use SparseMode::{BigBird, BsLongformer, Dense, Fixed, LocalSlidingWindow, Variable};
        for mode in [Dense, Fixed, Variable, BigBird, BsLongformer, LocalSlidingWindow] {
            for (sides, is_causal) in [(Sides::Unidirectional, true), (Sides::Bidirectional, false)]
            {
                for blocks in [1, 3, 7, 64, 100] {
                    let options = SparseAttention { mode, ..SparseAttention::default() };
                    if blocks < options.least_blocks().0 {
                        continue;
                    }
                    let matrix = matrix(&options, sides, blocks);
                    let matrix = if is_causal { matrix.lower() } else { matrix };
                    let pieces = pieces(&matrix, is_causal);
                    let found = counts(&pieces, blocks);
                    for row in 0..blocks {
                        for col in 0..blocks {
                            let expected = u32::from(matrix.get(row, col));
                            assert_eq!(found[row * blocks + col], expected, "{mode:?} {row} {col}");
                        }
                    }
                    if mode == Dense {
                        assert_eq!((pieces.len(), pieces[0].count), (1, 1), "one call");
                    }
                }
            }
        }
    }

    #[test]
    fn a_long_row_of_fixed_windows_is_few_calls() {
        let options =
            SparseAttention { block: 64, num_local_blocks: Some(16), ..SparseAttention::default() };
        let matrix = matrix(&options, Sides::Unidirectional, 128).lower();
        let pieces = pieces(&matrix, true);
        assert!(pieces.len() <= 4, "{} shapes", pieces.len());
    }
}
