//! Which parameters of a model are trained.

use glob::Pattern;

use super::options::option_table;

option_table! {
    /// The options of `init_engine` that choose parameters.
    #[derive(Debug, Clone)]
    pub struct TrainableConfig {
        /// patterns of the names of parameters that are frozen: they have no gradient, master weights or
        /// optimizer state, and the backward pass ends above the lowest layer that is trained
        #[option(default = Vec::new())]
        pub freeze: Vec<Pattern>,
        /// patterns of the names of the parameters that are trained, beside an adapter's; all others are
        /// frozen
        #[option(default = Vec::new())]
        pub trainable: Vec<Pattern>,
    }
}

impl TrainableConfig {
    /// Every pattern with its option.
    pub fn patterns(&self) -> impl Iterator<Item = (&Pattern, String)> {
        let numbered =
            |patterns: &'static str| move |(i, pattern)| (pattern, format!("{patterns}[{i}]"));
        let freeze = self.freeze.iter().enumerate().map(numbered("freeze"));
        freeze.chain(self.trainable.iter().enumerate().map(numbered("trainable")))
    }
}
