//! Tensor parallelism: which part of a parameter a rank has, and what crosses between the ranks that share
//! a layer.

mod ranks;
mod regions;
mod split;
mod vocabulary;

pub(crate) use self::vocabulary::{LocalIds, VocabularyPart};
pub use self::{
    ranks::{LayerRanks, Sharing},
    regions::TensorParallel,
    split::{RowsHere, Run, Split},
};
