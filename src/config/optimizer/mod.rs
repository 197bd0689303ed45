//! The optimizers and their settings, under DeepSpeed's names and with its defaults.
//!
//! | type | lr | weight_decay | defaults of |
//! |---|---|---|---|
//! | AdamW | 1e-3 | 0.01 | `torch.optim.AdamW` |
//! | AdamW8bit | 1e-3 | 0.01 | `bitsandbytes.optim.AdamW8bit`, but for AdamW's decay of 0.01 as PyTorch has it |
//! | Adam8bit | 1e-3 | 0 | `bitsandbytes.optim.Adam8bit` |
//! | Adam | 1e-3 | 0 | DeepSpeed's `FusedAdam`: AdamW's rule unless `adam_w_mode` is false |
//! | Lamb | 1e-3 | 0 | DeepSpeed's `FusedLamb` |
//! | Lion | 1e-3 | 0 | DeepSpeed's `FusedLion` |
//! | SGD | 1e-3 | 0 | `torch.optim.SGD`, to which DeepSpeed hands the options |
//! | Adagrad | 1e-2 | 0 | `torch.optim.Adagrad`, and DeepSpeed's `DeepSpeedCPUAdagrad` |
//! | Muon | 0.02 and 3e-4 | 0 | DeepSpeed's `MuonWithAuxAdam` |
//!
//! The other defaults stand at the settings of each, in `algorithm.rs`. `given.rs` reads the option
//! `optimizer`, and `fit.rs` fits it to the scheduler beside it.

mod algorithm;
mod fit;
mod given;
mod settings;

pub(super) use self::given::{GivenOptimizer, OPTIMIZER_ROWS, optimizer_tables};
pub use self::{
    algorithm::{
        AdagradConfig, AdamConfig, Algorithm, BlockwiseConfig, LambConfig, LionConfig, MuonConfig,
        NsMethod, SgdConfig,
    },
    fit::check_momentum,
    settings::{OptimizerConfig, ParamGroup, StateDtype},
};
