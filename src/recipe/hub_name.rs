//! Names on the hub, as they stand in a recipe.

use rhai::Position;

use crate::hub::RepoKind;

/// The function that a name on the hub is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HubUse {
    /// `load_model`.
    Model,
    /// `dataset`.
    Dataset,
    /// `tokenizer`.
    Tokenizer,
}

impl HubUse {
    /// The kind of its repository.
    pub fn kind(self) -> RepoKind {
        match self {
            Self::Model | Self::Tokenizer => RepoKind::Model,
            Self::Dataset => RepoKind::Dataset,
        }
    }

    /// The word for it in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
            Self::Tokenizer => "tokenizer",
        }
    }
}

/// A name on the hub with its place in a recipe.
#[derive(Debug, Clone)]
pub struct HubName {
    /// The function that takes it.
    pub used_as: HubUse,
    /// The repository: `Owner/name`.
    pub repo: String,
    /// The configuration of a dataset.
    pub config: Option<String>,
    /// The revision, `main` where none is written.
    pub revision: String,
    /// The source that it stands in.
    pub(super) source: String,
    /// The position in it.
    pub(super) position: Position,
}
