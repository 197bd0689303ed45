//! Layouts: which blocks of keys each block of queries sees, exactly those of DeepSpeed.
//!
//! DeepSpeed makes a layout for the longest row and cuts it for shorter ones, so that what a block sees does
//! not depend on what comes after it; a text that is generated is then read as it was trained.

use crate::{
    config::{Sides, SparseAttention, SparseMode},
    error::{Code, Error, Result},
    tensor::mix,
};

/// The blocks of keys that each block of queries sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockMatrix {
    blocks: usize,
    seen: Vec<bool>,
}

/// The layouts of all heads for rows of one length.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Each matrix with its heads.
    pub(super) groups: Vec<(BlockMatrix, Vec<i64>)>,
}

impl BlockMatrix {
    /// One that sees nothing.
    pub(super) fn new(blocks: usize) -> Self {
        Self { blocks, seen: vec![false; blocks * blocks] }
    }

    /// The number of blocks of a row.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Whether the queries of block `row` see the keys of block `col`.
    pub(super) fn get(&self, row: usize, col: usize) -> bool {
        self.seen[row * self.blocks + col]
    }

    /// The blocks of keys of a block of queries.
    pub(super) fn row(&self, row: usize) -> &[bool] {
        &self.seen[row * self.blocks..][..self.blocks]
    }

    /// Sets what the queries of block `row` see.
    pub(super) fn set(&mut self, row: usize, col: usize, is_seen: bool) {
        self.seen[row * self.blocks + col] = is_seen;
    }

    /// The same without blocks behind the queries.
    pub(super) fn lower(mut self) -> Self {
        for row in 0..self.blocks {
            for col in row + 1..self.blocks {
                self.set(row, col, false);
            }
        }
        self
    }

    /// The first `blocks` blocks.
    fn cut(&self, blocks: usize) -> Self {
        let mut cut = Self::new(blocks);
        for row in 0..blocks {
            let seen = &self.row(row)[..blocks];
            cut.seen[row * blocks..][..blocks].copy_from_slice(seen);
        }
        cut
    }

    fn fill(&mut self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) {
        let (rows, cols) =
            (rows.start..rows.end.min(self.blocks), cols.start..cols.end.min(self.blocks));
        for row in rows {
            for col in cols.clone() {
                self.set(row, col, true);
            }
        }
    }

    /// A window from `start` to `end`.
    fn fill_window(&mut self, (start, end): (usize, usize), sides: Sides) {
        for row in start..end.min(self.blocks) {
            self.fill(
                row..row + 1,
                start..if sides == Sides::Unidirectional { row + 1 } else { end },
            );
        }
    }

    /// A window around each block.
    fn fill_sliding(&mut self, width: usize) {
        for row in 0..self.blocks {
            self.fill(row..row + 1, row.saturating_sub(width / 2)..row + width / 2 + 1);
        }
    }
}

impl Layout {
    /// Each matrix with its heads among the `heads` from `first` on, counted from there, where it has any.
    pub(super) fn among(
        &self,
        (first, heads): (i64, i64),
    ) -> impl Iterator<Item = (&BlockMatrix, Vec<i64>)> {
        let here = move |head: &i64| Some(head - first).filter(|head| (0..heads).contains(head));
        self.groups.iter().filter_map(move |(matrix, of)| {
            let of: Vec<i64> = of.iter().filter_map(here).collect();
            (!of.is_empty()).then_some((matrix, of))
        })
    }

    /// The layout of `heads` heads for rows of `blocks` blocks, cut from that for rows of `longest` blocks,
    /// where rows have a longest.
    ///
    /// # Errors
    /// Rows have fewer blocks than the options want.
    pub(super) fn new(
        options: &SparseAttention,
        sides: Sides,
        heads: i64,
        (blocks, longest): (usize, Option<usize>),
    ) -> Result<Self> {
        let (least, _) = options.least_blocks();
        // Rows without a longest can have as many blocks as the options want.
        let whole = longest.unwrap_or(least).max(blocks);
        Self::check(options, whole)?;
        // What is far behind has no effect on the first blocks, but for the end of a fixed layout's last
        // window.
        let period = options.local_blocks();
        let made = match options.mode {
            SparseMode::Fixed => whole.min((blocks.div_ceil(period) + 1) * period),
            _ => blocks.max(least),
        };
        let mut groups: Vec<(BlockMatrix, Vec<i64>)> = Vec::new();
        for head in 0..heads {
            let shown = if options.different_layout_per_head { head } else { 0 };
            if shown != head {
                groups[0].1.push(head);
                continue;
            }
            let matrix = of_head(options, sides, head.unsigned_abs() as usize, made).cut(blocks);
            match groups.iter_mut().find(|(known, _)| *known == matrix) {
                Some((_, heads)) => heads.push(head),
                None => groups.push((matrix, vec![head])),
            }
        }
        Ok(Self { groups })
    }

    /// Refuses rows of at most `whole` blocks, where the options want more.
    pub(super) fn check(options: &SparseAttention, whole: usize) -> Result<()> {
        let (least, option) = options.least_blocks();
        if whole < least {
            let tokens = whole * options.block;
            let message = format!(
                "{option} wants {least} blocks of {}, and the longest row has {tokens} tokens: {whole} blocks",
                options.block
            );
            return Err(
                Error::new(Code::BadValue, message).option(format!("sparse_attention.{option}"))
            );
        }
        Ok(())
    }

    /// The same with the blocks of the queries themselves and those before them alone.
    pub(super) fn lower(self) -> Self {
        let groups = self.groups.into_iter().map(|(matrix, heads)| (matrix.lower(), heads));
        Self { groups: groups.collect() }
    }

    /// The part of all elements of the scores that is computed; with `is_causal` of those that causal
    /// attention computes.
    pub(super) fn density(&self, is_causal: bool, block: usize) -> f64 {
        let block = block as f64;
        let (mut seen, mut all) = (0.0, 0.0);
        for (matrix, heads) in &self.groups {
            let blocks = matrix.blocks();
            let tokens = blocks as f64 * block;
            let set = matrix.seen.iter().filter(|&&seen| seen).count() as f64;
            let diagonal = (0..blocks).filter(|&i| matrix.get(i, i)).count() as f64;
            // Half of a block on the diagonal is hidden.
            let hidden = if is_causal { diagonal * block * (block - 1.0) / 2.0 } else { 0.0 };
            let whole = if is_causal { tokens * (tokens + 1.0) / 2.0 } else { tokens * tokens };
            seen += heads.len() as f64 * (set * block * block - hidden);
            all += heads.len() as f64 * whole;
        }
        seen / all
    }
}

/// The layout of one head.
fn of_head(options: &SparseAttention, sides: Sides, head: usize, blocks: usize) -> BlockMatrix {
    let mut matrix = BlockMatrix::new(blocks);
    let is_one_sided = sides == Sides::Unidirectional;
    match options.mode {
        SparseMode::Dense => matrix.fill(0..blocks, 0..blocks),
        SparseMode::Fixed => fixed(&mut matrix, options, sides, head),
        SparseMode::Variable => {
            random(&mut matrix, options.random_blocks(), sides, head);
            variable(&mut matrix, options, sides);
        }
        SparseMode::BigBird => {
            random(&mut matrix, options.random_blocks(), sides, head);
            matrix.fill_sliding(options.sliding_blocks());
            matrix.fill(0..options.global_blocks(), 0..blocks);
            matrix.fill(0..blocks, 0..options.global_blocks());
            return if is_one_sided { matrix.lower() } else { matrix };
        }
        SparseMode::BsLongformer => {
            matrix.fill_sliding(options.sliding_blocks());
            for (start, end) in options.global_ranges() {
                matrix.fill(start..end, 0..blocks);
                matrix.fill(0..blocks, start..end);
            }
            return if is_one_sided { matrix.lower() } else { matrix };
        }
        SparseMode::LocalSlidingWindow => {
            matrix.fill_sliding(options.sliding_blocks());
            return if is_one_sided { matrix.lower() } else { matrix };
        }
    }
    matrix
}

fn fixed(matrix: &mut BlockMatrix, options: &SparseAttention, sides: Sides, head: usize) {
    let (blocks, local, global) =
        (matrix.blocks(), options.local_blocks(), options.global_blocks());
    for start in (0..blocks).step_by(local) {
        matrix.fill_window((start, start + local), sides);
    }
    let first = local - (1 + head % options.global_patterns()) * global;
    let whole = blocks - blocks % local;
    let mut starts: Vec<usize> = (first..whole).step_by(local).collect();
    if whole < blocks {
        // The last window is short.
        starts.push((whole + first).min(blocks.saturating_sub(global)));
    }
    for start in starts {
        let from = if sides == Sides::Bidirectional { 0 } else { start };
        matrix.fill(from..blocks, start..start + global);
        if options.is_horizontal() {
            matrix.fill(start..start + global, 0..blocks);
        }
    }
}

fn variable(matrix: &mut BlockMatrix, options: &SparseAttention, sides: Sides) {
    let blocks = matrix.blocks();
    let widths = options.window_blocks();
    let last = widths.last().copied().unwrap_or(1);
    let mut start = 0;
    for width in widths.iter().copied().chain(std::iter::repeat(last)) {
        if start >= blocks {
            break;
        }
        matrix.fill_window((start, start + width), sides);
        start += width;
    }
    for (start, end) in options.global_ranges() {
        if options.is_horizontal() {
            matrix.fill(start..end, 0..blocks);
        }
        let from = if sides == Sides::Bidirectional { 0 } else { start };
        matrix.fill(from..blocks, start..end);
    }
}

/// `count` different blocks for each row, the same in every run; with one side none behind the row, where
/// nothing is seen.
fn random(matrix: &mut BlockMatrix, count: usize, sides: Sides, head: usize) {
    for row in 0..matrix.blocks() {
        let most = if sides == Sides::Unidirectional { row + 1 } else { matrix.blocks() };
        let mut from: Vec<usize> = (0..most).collect();
        for i in 0..count.min(most) {
            let drawn = mix(&[head as u64, row as u64, i as u64]) as usize % (most - i);
            from.swap(i, i + drawn);
            matrix.set(row, from[i], true);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::{config::options, sparse::golden};

    fn options_of(case: &Value) -> Result<SparseAttention> {
        let mut map = case["params"].as_object().cloned().unwrap_or_else(Map::new);
        map.retain(|_, value| !value.is_null());
        map.insert("mode".into(), case["mode"].clone());
        map.insert("block".into(), case["block"].clone());
        let options::Value::Map(map) = Value::Object(map).into() else { panic!("a map") };
        options::read_table("sparse_attention", &map)
    }

    fn sides(options: &SparseAttention) -> Sides {
        options.attention.unwrap_or(match options.mode {
            SparseMode::LocalSlidingWindow => Sides::Unidirectional,
            _ => Sides::Bidirectional,
        })
    }

    fn layout(case: &Value, options: &SparseAttention, longest: usize) -> Result<Layout> {
        let tokens = case["seq_len"].as_u64().unwrap() as usize;
        let heads = case["num_heads"].as_i64().unwrap();
        let longest = Some(tokens * longest / options.block);
        Layout::new(options, sides(options), heads, (tokens / options.block, longest))
    }

    fn of_heads(layout: &Layout, heads: i64) -> Vec<BlockMatrix> {
        let of = |head: i64| layout.groups.iter().find(|(_, heads)| heads.contains(&head)).unwrap();
        (0..heads).map(|head| of(head).0.clone()).collect()
    }

    /// Those without random blocks exactly.
    #[test]
    fn layouts_are_deepspeeds() {
        let mut count = 0;
        for case in &golden::cases() {
            let options = options_of(case).unwrap();
            if options.random_blocks() > 0
                && matches!(options.mode, SparseMode::BigBird | SparseMode::Variable)
            {
                continue;
            }
            count += 1;
            let heads = case["num_heads"].as_i64().unwrap();
            let expected = |rows| of_heads(&golden::expected(rows, heads), heads);
            let found = of_heads(&layout(case, &options, 1).unwrap(), heads);
            assert_eq!(found, expected(&case["layout"]), "{}", case["id"]);
            let cut = of_heads(&layout(case, &options, 2).unwrap(), heads);
            let shorter = case.get("layout_cut_from_twice_the_length").unwrap_or(&case["layout"]);
            assert_eq!(cut, expected(shorter), "{} cut", case["id"]);
        }
        assert_eq!(count, 58);
    }

    #[test]
    fn options_that_deepspeed_refuses_are_refused() {
        for case in &golden::refused() {
            // Rows are padded to the block.
            if case["seq_len"] == 72 {
                continue;
            }
            let found = options_of(case).and_then(|options| layout(case, &options, 1));
            assert!(found.is_err(), "{case}");
        }
    }

    #[test]
    fn random_blocks_are_as_many_as_asked_for_and_none_is_in_the_future() {
        for (sides, count) in [(Sides::Bidirectional, 3), (Sides::Unidirectional, 1)] {
            let options = SparseAttention {
                mode: SparseMode::BigBird,
                different_layout_per_head: true,
                num_random_blocks: Some(count),
                num_sliding_window_blocks: Some(1),
                num_global_blocks: Some(0),
                ..SparseAttention::default()
            };
            let layout = Layout::new(&options, sides, 4, (32, None)).unwrap();
            assert_eq!(layout.groups.len(), 4, "heads differ");
            assert_eq!(layout, Layout::new(&options, sides, 4, (32, None)).unwrap(), "drawn once");
            let shorter = Layout::new(&options, sides, 4, (9, None)).unwrap();
            for ((matrix, _), (shorter, _)) in layout.groups.iter().zip(&shorter.groups) {
                for row in 0..32 {
                    let seen = matrix.row(row).iter().filter(|&&seen| seen).count();
                    assert!((count..=count + 1).contains(&seen), "with its own");
                }
                if sides == Sides::Unidirectional {
                    assert_eq!(*matrix, matrix.clone().lower());
                    assert_eq!(matrix.cut(9), *shorter, "what comes after changes nothing");
                }
            }
        }
    }

    #[test]
    fn the_density_is_that_of_the_causal_half() {
        let dense = SparseAttention { mode: SparseMode::Dense, ..SparseAttention::default() };
        let density = |options: &SparseAttention, sides, blocks| {
            let layout = Layout::new(options, sides, 2, (blocks, None)).unwrap();
            layout.lower().density(true, options.block)
        };
        assert!((density(&dense, Sides::Unidirectional, 9) - 1.0).abs() < 1e-12);
        let fixed =
            SparseAttention { block: 64, num_local_blocks: Some(16), ..SparseAttention::default() };
        // Windows of 1,024 tokens, and 64 x 1,024 elements for each pair of windows.
        for windows in [4.0, 8.0, 16.0] {
            let tokens = windows * 1024.0;
            let of_windows = windows * 1024.0 * 1025.0 / 2.0;
            let of_globals = windows * (windows - 1.0) / 2.0 * 64.0 * 1024.0;
            let expected = (of_windows + of_globals) / (tokens * (tokens + 1.0) / 2.0);
            let found = density(&fixed, Sides::Unidirectional, tokens as usize / 64);
            assert!((found - expected).abs() < 1e-9, "{tokens}: {found}");
        }
    }
}
