//! Models as lists of layers over flat parameter units.
//!
//! A [`Model`] is an embedding, blocks and a head, each with the units that hold its parameters.
//! The engine walks them one by one; nothing here knows of optimizers, gradients of units or ranks.
//! Shapes in comments: B batch, T tokens, C channels (hidden_size), H heads, D head dim, V vocab.

mod build;
mod config;
mod config_json;
mod custom;
mod embedding;
mod export;
mod footprint;
mod generate;
mod gpt2;
mod head;
mod layer;
mod linear;
mod loss;
mod model_config;
mod origin;
mod profile;
mod unit;
mod unit_gradient;
mod visit;
mod weights;

pub use config::{Activation, Gpt2Config};
pub use custom::{CustomBlock, CustomLayer, LayerFunction};
pub use embedding::{Embedding, Gpt2Embedding};
pub use footprint::{Footprint, Held, Workload};
pub use generate::Sampling;
pub use head::{Head, HeadGrads, HeadOutput};
pub use layer::{Block, BlockContext, KeyValues, padding_mask};
pub use loss::{LossFunction, LossGradient, Targets};
pub use model_config::{CustomConfig, ModelConfig};
pub use profile::{ModuleProfile, Recorder, record};
pub use unit::{FlatUnit, Init, ParamSpec};
pub use unit_gradient::{Sink, UnitGradient};
pub use visit::{Direction, HeadUnits, Present, Residence, Visit};

use std::{cell::RefCell, path::Path, rc::Rc};

use self::origin::Origin;
use crate::{
    error::{Code, Error, Result},
    tensor::{Device, Kind, Tensor, guard, no_grad, safetensors::Entry},
};

/// A language model: layers in the order of the forward pass, and the units of their parameters.
pub struct Model {
    config: ModelConfig,
    units: Vec<FlatUnit>,
    embedding: Embedding,
    blocks: Vec<Box<dyn Block>>,
    head: Head,
    device: Device,
    tokenizer_json: Option<Vec<u8>>,
    /// What gives the units their first values; `None` once all have them.
    origin: RefCell<Option<Origin>>,
    /// Where parameters are while they are not used; `None` where all of them are here.
    residence: RefCell<Option<Rc<dyn Residence>>>,
}

impl Model {
    /// The kind of model, and its settings.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameter units, in the order of the forward pass: embedding, blocks, head.
    pub fn units(&self) -> &[FlatUnit] {
        &self.units
    }

    /// The first layer.
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The blocks in order; block `i` has the parameters of unit `i + 1`.
    pub fn blocks(&self) -> &[Box<dyn Block>] {
        &self.blocks
    }

    /// The last layer.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The index of the unit with the head's own parameters.
    pub fn head_unit(&self) -> usize {
        self.units.len() - 1
    }

    /// Unit and parameter index of the matrix that turns hidden states into logits: the head's own,
    /// or the token embedding where they are tied. Of a custom head the first parameter stands for
    /// it.
    pub fn projection_place(&self) -> (usize, usize) {
        match (&self.head, self.config.is_tied()) {
            (Head::Custom(_), _) => (self.head_unit(), 0),
            (Head::Gpt2 { .. }, true) => (0, 0),
            (Head::Gpt2 { .. }, false) => (self.head_unit(), 2),
        }
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number of parameters, a tied head counted once.
    pub fn num_params(&self) -> u64 {
        self.units.iter().map(|u| u.numel() as u64).sum()
    }

    /// The `tokenizer.json` of the directory that the model was loaded from.
    pub fn tokenizer_json(&self) -> Option<&[u8]> {
        self.tokenizer_json.as_deref()
    }

    /// Writes the model as a directory that transformers loads, in its own format (that of the
    /// `precision` it was trained with last), with `tokenizer_json` or else the
    /// one that the model was loaded with.
    ///
    /// # Errors
    /// [`Code::DiskFull`], [`Code::Io`]; nothing is then changed. A directory that holds anything
    /// but an earlier export is not overwritten. [`Code::BadValue`] for a model that transformers
    /// does not have.
    pub fn export_hf(&self, dir: &Path, tokenizer_json: Option<&[u8]>) -> Result<()> {
        let config = self.exported_config()?;
        let tokenizer_json = tokenizer_json.or(self.tokenizer_json());
        let (entries, mut fetch) = self.entries();
        export::export(dir, config, &entries, &mut fetch, tokenizer_json)
    }

    /// Takes part in the [`Model::export_hf`] of another rank. Where the parameters are
    /// [shared out](Model::is_shared_out), every other rank must call it.
    ///
    /// # Errors
    /// Memory is exhausted; another rank fails.
    pub fn attend_export(&self) -> Result<()> {
        self.exported_config()?;
        let (entries, mut fetch) = self.entries();
        export::attend(&entries, &mut fetch)
    }

    fn exported_config(&self) -> Result<&Gpt2Config> {
        self.config.gpt2().ok_or_else(|| {
            Error::new(Code::BadValue, "transformers has no model with layers of your own")
                .hint("a checkpoint of the engine holds the weights as safetensors, under the names of the parameters")
        })
    }

    /// Every parameter as it is exported, and what brings it by its number; unit after unit.
    fn entries(&self) -> (Vec<Entry<'_>>, impl FnMut(usize) -> Result<Tensor>) {
        let (mut entries, mut places) = (Vec::new(), Vec::new());
        for (i, unit) in self.units.iter().enumerate() {
            for (j, ParamSpec { name, shape, .. }) in unit.specs().iter().enumerate() {
                entries.push(Entry { name, kind: unit.kind(), shape });
                places.push((i, j));
            }
        }
        let mut present = None;
        let fetch = move |param: usize| {
            let (i, j) = places[param];
            if present.as_ref().is_none_or(|&(unit, _)| unit != i) {
                // The old one goes before the new one comes.
                present = None;
                present = Some((i, self.present(i)?));
            }
            let unit = present.as_ref().map(|(_, unit)| unit.params()[j].shallow_clone());
            unit.ok_or_else(|| Error::new(Code::Internal, "a unit that was brought is gone"))
        };
        (entries, fetch)
    }

    /// Every parameter with its Hugging Face name, empty where its unit is not on this rank now.
    pub fn named_params(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.units
            .iter()
            .flat_map(|u| u.specs().iter().zip(u.params()))
            .map(|(spec, param)| (spec.name.as_str(), param))
    }

    /// Refuses token ids and lengths that the model has no embedding for.
    ///
    /// # Errors
    /// [`Code::Shape`] for a length over `n_positions` or a tensor that is not `[B, T]`,
    /// [`Code::TokenId`] for an id outside the vocabulary.
    pub fn check_input_ids(&self, input_ids: &Tensor) -> Result<()> {
        let size = input_ids.size();
        let &[rows, tokens] = size.as_slice() else {
            bail!(Code::Shape, "input_ids must have the shape [batch, tokens], not {size:?}");
        };
        if input_ids.kind() != Kind::Int64 {
            bail!(Code::Shape, "input_ids must be int64, not {:?}", input_ids.kind());
        }
        if rows == 0 || tokens == 0 {
            bail!(Code::Shape, "input_ids of the shape {size:?} hold no token");
        }
        self.check_length(tokens)?;
        self.check_ids(input_ids.f_min()?.int64_value(&[]), input_ids.f_max()?.int64_value(&[]))
    }

    /// Refuses rows of so many `tokens`, where the model has no position for the last ones.
    ///
    /// # Errors
    /// [`Code::Shape`].
    pub fn check_length(&self, tokens: i64) -> Result<()> {
        let positions = self.config.n_positions();
        if tokens <= positions {
            return Ok(());
        }
        let message = format!("{tokens} tokens are more than the model's {positions} positions");
        Err(Error::new(Code::Shape, message)
            .hint(format!("pack or truncate the rows to at most {positions} tokens")))
    }

    /// Refuses token ids, of which these are the lowest and the highest, that are outside the
    /// vocabulary.
    ///
    /// # Errors
    /// [`Code::TokenId`].
    pub fn check_ids(&self, low: i64, high: i64) -> Result<()> {
        let vocab = self.config.vocab_size();
        if low >= 0 && high < vocab {
            return Ok(());
        }
        let id = if low < 0 { low } else { high };
        Err(Error::new(
            Code::TokenId,
            format!(
                "token id {id} is outside the model's vocabulary ({vocab} rows: ids 0..={})",
                vocab - 1
            ),
        )
        .hint(
            "load the tokenizer that belongs to the model, or make the model with its vocab_size",
        ))
    }

    /// The logits of every position: `input_ids` `[B, T]` to `[B, T, V]`, float32, without dropout.
    ///
    /// # Errors
    /// As [`Model::check_input_ids`], or memory is exhausted.
    pub fn logits(&self, input_ids: &Tensor) -> Result<Tensor> {
        self.check_input_ids(input_ids)?;
        guard("logits", || {
            no_grad(|| {
                let mut units = self.visit(Direction::Forward);
                let hidden = self.hidden(&mut units, input_ids, None, None)?;
                let head = units.head()?;
                let logits = self.head.logits(head.params(), head.projection(), &hidden)?;
                Ok(logits.to_kind(Kind::Float))
            })
        })
    }

    /// The input of the head, `[B, T, C]`, without dropout; with a cache, `input_ids` go on after
    /// what it holds. `attention_mask` is that of [`BlockContext`]. `units` are those of a forward
    /// pass, of which the head's are left.
    ///
    /// Panics where libtorch refuses, to be called under [`guard`].
    ///
    /// # Errors
    /// Those of the visit.
    pub fn hidden(
        &self,
        units: &mut Visit<'_>,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        mut cache: Option<&mut [KeyValues]>,
    ) -> Result<Tensor> {
        let past = cache.as_ref().and_then(|c| c.first()).map_or(0, KeyValues::tokens);
        let mut x = self.embedding.lookup(units.unit()?.params(), input_ids, past)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let key_values = cache.as_mut().map(|c| &mut c[i]);
            let context = BlockContext { attention_mask, key_values, ..BlockContext::default() };
            x = block.forward(units.unit()?.params(), &x, context)?;
        }
        Ok(x)
    }
}
