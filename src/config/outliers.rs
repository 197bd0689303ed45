//! Steps that are skipped as outliers, under llm.c's names.

use super::options::option_table;

option_table! {
    /// The z-scores from which a step is skipped.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct OutlierConfig {
        /// skips a step whose loss has a larger z-score among the losses of the last 128 steps, its own
        /// included, as llm.c does; no score can be larger than 11.2
        #[option(optional, range = 0.1..=11.0)]
        pub skip_update_lossz: Option<f64>,
        /// the same for the norm of the gradient before clipping
        #[option(optional, range = 0.1..=11.0)]
        pub skip_update_gradz: Option<f64>,
    }
}
