//! Block-sparse attention under DeepSpeed's names: which blocks of keys a block of queries sees.

use super::options::{OptionTable, Options, option_table, option_words};
use crate::error::{Code, Error, Result};

option_words! {
    /// The pattern of a layout.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum SparseMode {
        /// Windows side by side, and blocks of each that all see (Child et al. 2019).
        Fixed = "fixed",
        /// All blocks.
        Dense = "dense",
        /// Windows of several widths, and chosen blocks that all see.
        Variable = "variable",
        /// A sliding window, the first blocks and random ones (Zaheer et al. 2020).
        BigBird = "bigbird",
        /// A sliding window and chosen blocks that all see (Beltagy et al. 2020).
        BsLongformer = "bslongformer",
        /// A sliding window alone.
        LocalSlidingWindow = "local_sliding_window",
    }
}

option_words! {
    /// The sides that a query sees.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Sides {
        /// Itself and what is before it.
        Unidirectional = "unidirectional",
        /// Both.
        Bidirectional = "bidirectional",
    }
}

option_table! {
    /// The blocks of keys that each block of queries sees, as in DeepSpeed: its names, defaults and
    /// layouts.
    #[derive(Debug, Clone, PartialEq, Eq)]
    #[check_map(SparseAttention::check)]
    pub struct SparseAttention {
        /// the pattern of the layout; each has options of its own
        #[option(default = SparseMode::Fixed, deepspeed = "mode")]
        pub mode: SparseMode,
        /// tokens of a block; 64 and more are faster than DeepSpeed's default
        #[option(default = 16, range = 1..=4096, deepspeed = "block")]
        pub block: usize,
        /// whether heads may see different blocks; not with local_sliding_window
        #[option(default = false, deepspeed = "different_layout_per_head")]
        pub different_layout_per_head: bool,
        /// "unidirectional" or "bidirectional"; what the model needs where it is not given
        #[option(optional, deepspeed = "attention")]
        pub attention: Option<Sides>,
        /// fixed: blocks of a window; 4 by default
        #[option(optional, range = 1.., deepspeed = "num_local_blocks")]
        pub num_local_blocks: Option<usize>,
        /// fixed: blocks of each window that all see; bigbird: the first blocks, which see all and all
        /// see; 1 by default
        #[option(optional, range = 0.., deepspeed = "num_global_blocks")]
        pub num_global_blocks: Option<usize>,
        /// fixed: how many different blocks of a window its heads take for the global ones; 1 by default,
        /// and more only with different_layout_per_head
        #[option(optional, range = 1.., deepspeed = "num_different_global_patterns")]
        pub num_different_global_patterns: Option<usize>,
        /// fixed and variable: whether global blocks see all, too; only with both sides
        #[option(optional, deepspeed = "horizontal_global_attention")]
        pub horizontal_global_attention: Option<bool>,
        /// variable and bigbird: random blocks that each block sees; 0 and 1 by default
        #[option(optional, range = 0.., deepspeed = "num_random_blocks")]
        pub num_random_blocks: Option<usize>,
        /// variable: blocks of each window, from the first on, of which the last is repeated; `[4]` by
        /// default
        #[option(optional, deepspeed = "local_window_blocks")]
        pub local_window_blocks: Option<Vec<usize>>,
        /// variable and bslongformer: the blocks that all see; `[0]` by default
        #[option(optional, deepspeed = "global_block_indices")]
        pub global_block_indices: Option<Vec<usize>>,
        /// variable and bslongformer: the ends of as many ranges, which begin at global_block_indices
        #[option(optional, deepspeed = "global_block_end_indices")]
        pub global_block_end_indices: Option<Vec<usize>>,
        /// bigbird, bslongformer and local_sliding_window: blocks of the window, the query's in its
        /// middle; 3 by default
        #[option(optional, range = 1.., deepspeed = "num_sliding_window_blocks")]
        pub num_sliding_window_blocks: Option<usize>,
    }
}

/// The option's name in `init_engine` and in DeepSpeed's file.
pub const SPARSE_ATTENTION: &str = "sparse_attention";

/// The options that only some modes have.
const OF_MODES: &[(&str, &[SparseMode])] = {
    use SparseMode::{BigBird, BsLongformer, Fixed, LocalSlidingWindow, Variable};
    &[
        ("num_local_blocks", &[Fixed]),
        ("num_global_blocks", &[Fixed, BigBird]),
        ("num_different_global_patterns", &[Fixed]),
        ("horizontal_global_attention", &[Fixed, Variable]),
        ("num_random_blocks", &[Variable, BigBird]),
        ("local_window_blocks", &[Variable]),
        ("global_block_indices", &[Variable, BsLongformer]),
        ("global_block_end_indices", &[Variable, BsLongformer]),
        ("num_sliding_window_blocks", &[BigBird, BsLongformer, LocalSlidingWindow]),
        ("attention", &[Fixed, Variable, BigBird, BsLongformer, LocalSlidingWindow]),
        ("different_layout_per_head", &[Fixed, Variable, BigBird, BsLongformer]),
    ]
};

impl SparseAttention {
    /// Blocks of a window of `fixed`.
    pub fn local_blocks(&self) -> usize {
        self.num_local_blocks.unwrap_or(4)
    }

    /// Global blocks, of each window or of the row.
    pub fn global_blocks(&self) -> usize {
        self.num_global_blocks.unwrap_or(1)
    }

    /// How many patterns of global blocks the heads have.
    pub fn global_patterns(&self) -> usize {
        self.num_different_global_patterns.unwrap_or(1)
    }

    /// Whether global blocks see all.
    pub fn is_horizontal(&self) -> bool {
        self.horizontal_global_attention.unwrap_or(false)
    }

    /// Random blocks of each block.
    pub fn random_blocks(&self) -> usize {
        let default = usize::from(self.mode == SparseMode::BigBird);
        self.num_random_blocks.unwrap_or(default)
    }

    /// Blocks of each window of `variable`.
    pub fn window_blocks(&self) -> &[usize] {
        self.local_window_blocks.as_deref().unwrap_or(&[4])
    }

    /// The blocks that all see, as ranges.
    pub fn global_ranges(&self) -> Vec<(usize, usize)> {
        let starts = self.global_block_indices.as_deref().unwrap_or(&[0]);
        let ends = self.global_block_end_indices.as_deref();
        let end = |i: usize, start: usize| {
            ends.and_then(|ends| ends.get(i)).copied().unwrap_or(start + 1)
        };
        starts.iter().enumerate().map(|(i, &start)| (start, end(i, start))).collect()
    }

    /// Blocks of the sliding window.
    pub fn sliding_blocks(&self) -> usize {
        self.num_sliding_window_blocks.unwrap_or(3)
    }

    /// The number of blocks that a row needs, and the option that wants them.
    pub fn least_blocks(&self) -> (usize, &'static str) {
        let (random, global) = (self.random_blocks(), self.global_blocks());
        let sliding = (self.sliding_blocks(), "num_sliding_window_blocks");
        match self.mode {
            SparseMode::Variable => (random, "num_random_blocks"),
            SparseMode::BigBird => {
                let all = [(random, "num_random_blocks"), (global, "num_global_blocks"), sliding];
                all.into_iter().max_by_key(|(blocks, _)| *blocks).unwrap_or(sliding)
            }
            SparseMode::BsLongformer | SparseMode::LocalSlidingWindow => sliding,
            SparseMode::Dense | SparseMode::Fixed => (1, "block"),
        }
    }

    /// Refuses sides that a model has not; `None` in the options takes the model's.
    pub fn check_sides(&self, sides: Sides) -> Result<()> {
        let must = sides.name();
        match self.attention {
            Some(found) if found != sides => Err(Error::new(
                Code::BadValue,
                format!("the attention of this model is {must}, not {}", found.name()),
            )
            .option("sparse_attention.attention")),
            _ if sides == Sides::Unidirectional && self.is_horizontal() => {
                Err(horizontal().option("sparse_attention.horizontal_global_attention"))
            }
            _ if sides == Sides::Unidirectional
                && self.mode == SparseMode::BigBird
                && self.random_blocks() > 1 =>
            {
                let message = "the first block of a unidirectional layout has one block to draw from: \
                               num_random_blocks must be 0 or 1";
                Err(Error::new(Code::BadValue, message)
                    .option("sparse_attention.num_random_blocks"))
            }
            _ => Ok(()),
        }
    }

    /// The options in words: the mode and the block.
    pub fn summary(&self) -> String {
        format!("{} in blocks of {}", self.mode.name(), self.block)
    }

    /// The options for a checkpoint, in which a difference shows.
    pub fn record(&self) -> serde_json::Value {
        let Self {
            mode,
            block,
            different_layout_per_head,
            attention,
            num_local_blocks,
            num_global_blocks,
            num_different_global_patterns,
            horizontal_global_attention,
            num_random_blocks,
            local_window_blocks,
            global_block_indices,
            global_block_end_indices,
            num_sliding_window_blocks,
        } = self;
        serde_json::json!({
            "mode": mode.name(),
            "block": block,
            "different_layout_per_head": different_layout_per_head,
            "attention": attention.map(Sides::name),
            "num_local_blocks": num_local_blocks,
            "num_global_blocks": num_global_blocks,
            "num_different_global_patterns": num_different_global_patterns,
            "horizontal_global_attention": horizontal_global_attention,
            "num_random_blocks": num_random_blocks,
            "local_window_blocks": local_window_blocks,
            "global_block_indices": global_block_indices,
            "global_block_end_indices": global_block_end_indices,
            "num_sliding_window_blocks": num_sliding_window_blocks,
        })
    }

    fn check(&self, o: &mut Options<'_>) {
        for &(name, modes) in OF_MODES {
            if o.has(name) && !modes.contains(&self.mode) {
                let of: Vec<_> = modes.iter().map(|mode| mode.name()).collect();
                let message = format!(
                    "`{}` has no meaning with mode \"{}\": it is for {}",
                    o.path(name),
                    self.mode.name(),
                    of.join(", ")
                );
                o.fault(name, Code::BadValue, message);
            }
        }
        if !o.is_faultless() {
            return;
        }
        self.check_globals(o);
        if self.window_blocks().is_empty() || self.window_blocks().contains(&0) {
            let message = "`local_window_blocks` must be numbers of blocks from 1 on";
            o.fault("local_window_blocks", Code::BadValue, message);
        }
        if self.attention == Some(Sides::Unidirectional) {
            let found = self.check_sides(Sides::Unidirectional);
            let found = found.map_err(|e| {
                let key =
                    e.option_path().and_then(|path| path.rsplit('.').next()).map(str::to_owned);
                match key {
                    Some(key) => e.option(key),
                    None => e,
                }
            });
            o.check(found);
        }
    }

    fn check_globals(&self, o: &mut Options<'_>) {
        let (local, global, patterns) =
            (self.local_blocks(), self.global_blocks(), self.global_patterns());
        if self.mode == SparseMode::Fixed {
            if global == 0 || !local.is_multiple_of(global) {
                let message = format!(
                    "num_global_blocks must divide num_local_blocks, {local}, found {global}"
                );
                o.fault("num_global_blocks", Code::BadValue, message);
            } else if patterns > 1 && !self.different_layout_per_head {
                let message = "several global patterns need different_layout_per_head: true";
                o.fault("num_different_global_patterns", Code::BadValue, message);
            } else if patterns > local / global {
                let message = format!(
                    "num_different_global_patterns must be at most num_local_blocks / \
                     num_global_blocks, {}, found {patterns}",
                    local / global
                );
                o.fault("num_different_global_patterns", Code::BadValue, message);
            }
        }
        let starts = self.global_block_indices.as_ref().map_or(1, Vec::len);
        if let Some(ends) = &self.global_block_end_indices {
            if ends.len() != starts {
                let message = format!(
                    "global_block_end_indices must be as many as global_block_indices, {starts}, \
                     found {}",
                    ends.len()
                );
                o.fault("global_block_end_indices", Code::BadValue, message);
            } else if let Some((start, end)) =
                self.global_ranges().into_iter().find(|(start, end)| start >= end)
            {
                let message =
                    format!("the range of global blocks from {start} to {end} holds no block");
                o.fault("global_block_end_indices", Code::BadValue, message);
            }
        }
    }
}

fn horizontal() -> Error {
    let message = "horizontal_global_attention needs bidirectional attention: global blocks would see \
                   what is behind them";
    Error::new(Code::BadValue, message)
}

const _: () =
    assert!(OF_MODES.len() == SparseAttention::ROWS.len() - 2, "mode and block are all's");
