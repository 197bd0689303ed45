//! MLPs that run over slices of tokens.

use super::Model;
use crate::{
    config::TiledMlp,
    error::{Code, Error, Result},
};

impl Model {
    /// Makes all MLPs run over slices of tokens, in training and evaluation; `None` makes them run over all
    /// at once again.
    ///
    /// # Errors
    /// The model has no MLP of dsr's.
    pub fn tile_mlps(&self, tiles: Option<TiledMlp>) -> Result<()> {
        if tiles.is_some() && !self.layers.iter().any(|layer| layer.layer().has_mlp()) {
            let message = "`tiled_mlp` cannot be honoured: this model has no MLP of dsr's";
            return Err(Error::new(Code::BadValue, message)
                .option("tiled_mlp")
                .hint("a layer of the recipe's own can call its functions on slices itself"));
        }
        self.tiled_mlp.set(tiles);
        Ok(())
    }

    /// How MLPs run over slices of tokens; `None` is over all at once.
    pub fn tiled_mlp(&self) -> Option<TiledMlp> {
        self.tiled_mlp.get()
    }
}
