//! A model as a family describes it: layers with names, and the facts beside them.
//!
//! Everything else is derived from the layers: files in and out, units, first values, plans, profiles.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use serde_json::{Map, Value};

use super::{
    layer::Layer,
    param_spec::{ParamPlace, ParamSpec},
    params::{LayerBuilder, Places},
};
use crate::{
    companions,
    error::{Code, Error, Result},
};

/// A model without its parameters.
pub(super) struct Architecture {
    /// In the order of the forward pass.
    pub(super) layers: Vec<LayerSpec>,
    /// Its properties.
    pub(super) facts: ModelInfo,
}

/// The properties of a model beside its layers.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The settings as a `config.json` has them.
    pub config: Map<String, Value>,
    /// Rows of logits: ids are below.
    pub vocab_size: i64,
    /// The most tokens of a row; `None` where positions have no end.
    pub max_positions: Option<i64>,
    /// The prediction that the model makes.
    pub objective: Prediction,
    /// The tokens behind which keys that were kept are of no use any more: positions then turn
    /// otherwise.
    pub cache_ends_behind: Option<i64>,
    /// The token that begins a text.
    pub bos_token_id: Option<i64>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<i64>,
    /// The token that pads rows.
    pub pad_token_id: Option<i64>,
    /// How its files name its parameters; `None` for a model of a recipe's own, which no other
    /// program knows.
    pub names: Option<WeightNames>,
    /// The family, or whose it is.
    pub kind: String,
    /// Sizes in words.
    pub summary: String,
}

/// The prediction that a model makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The next token, with keys and values that may be kept, or all anew for each token.
    Causal {
        /// Whether layers use a cache.
        is_cached: bool,
    },
    /// A second text, which begins with this token, from a first.
    Seq2Seq {
        /// The decoder's first token.
        decoder_start_token_id: i64,
    },
}

/// How the files of a family name parameters beside the names that its model has.
#[derive(Debug, Clone, Copy)]
pub struct WeightNames {
    /// The prefix that the names of the model without its head lack.
    pub prefix: &'static str,
    /// Names that may stand for a parameter, which it must then equal: `(alias, name)`.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Ends of the names of tensors that are no parameters.
    pub buffers: &'static [&'static str],
}

/// A layer with its parameters.
pub(super) struct LayerSpec {
    /// Its name in profiles and errors.
    pub(super) name: String,
    pub(super) layer: Box<dyn Layer>,
    /// Its own: one unit.
    pub(super) params: Vec<ParamSpec>,
    /// Names of other layers' parameters.
    pub(super) borrowed: Vec<String>,
    /// Whether it is one of the equal ones that activation checkpointing is for.
    pub(super) is_block: bool,
}

impl ModelInfo {
    /// The facts that the files beside config and weights repeat.
    pub(super) fn for_companions(&self) -> companions::Facts<'_> {
        companions::Facts {
            config: &self.config,
            max_positions: self.max_positions,
            bos_token_id: self.bos_token_id,
            eos_token_id: self.eos_token_ids.first().copied(),
        }
    }

    /// Whether the model predicts a second text from a first.
    pub fn is_seq2seq(&self) -> bool {
        matches!(self.objective, Prediction::Seq2Seq { .. })
    }
}

impl LayerSpec {
    /// A layer whose parameters `builder` collected.
    pub(super) fn new(
        name: impl Into<String>,
        builder: LayerBuilder,
        layer: impl Layer + 'static,
    ) -> Self {
        let (params, borrowed) = builder.into_parts();
        Self { name: name.into(), layer: Box::new(layer), params, borrowed, is_block: false }
    }

    /// The same as a block.
    pub(super) fn block(self) -> Self {
        Self { is_block: true, ..self }
    }
}

/// A layer in a model.
#[derive(Clone)]
pub struct ModelLayer {
    /// Its name.
    pub name: String,
    /// Its number in the whole model.
    pub number: usize,
    pub(super) layer: Rc<dyn Layer>,
    /// Where its parameters are.
    pub(super) places: Places,
    /// The units that it uses, those of borrowed parameters first.
    pub(super) units: Vec<usize>,
    /// The units that no layer before it uses: a backward pass is done with them after it.
    pub completes: Vec<usize>,
    /// Its number among the blocks.
    pub block: Option<usize>,
}

impl Architecture {
    /// Number of parameters, a tied one counted once.
    pub(super) fn num_params(&self) -> i128 {
        let specs = self.layers.iter().flat_map(|layer| &layer.params);
        specs.map(|spec| spec.shape.iter().map(|&size| i128::from(size)).product::<i128>()).sum()
    }

    /// The layers with the places of their parameters, and the parameters of each unit.
    pub(super) fn placed(layers: Vec<LayerSpec>) -> Result<(Vec<ModelLayer>, Vec<Vec<ParamSpec>>)> {
        let mut places = BTreeMap::new();
        let mut units: Vec<Vec<ParamSpec>> = Vec::new();
        let mut made = Vec::with_capacity(layers.len());
        for LayerSpec { params, layer, name, borrowed, is_block } in layers {
            let own = (!params.is_empty()).then_some(units.len());
            if let Some(unit) = own {
                let named = params.iter().enumerate();
                places.extend(
                    named.map(|(index, spec)| (spec.name.clone(), ParamPlace { unit, index })),
                );
                units.push(params);
            }
            made.push((own, layer, name, borrowed, is_block));
        }
        let (mut seen, mut blocks) = (BTreeSet::new(), 0..);
        let placed: Result<_> = made
            .into_iter()
            .enumerate()
            .map(|(number, (own, layer, name, borrowed, is_block))| {
                let place = |param: &String| {
                    places.get(param).copied().ok_or_else(|| {
                        Error::new(
                            Code::Internal,
                            format!("{name} borrows {param}, which is not there"),
                        )
                    })
                };
                let borrowed: Vec<ParamPlace> =
                    borrowed.iter().map(place).collect::<Result<_>>()?;
                let own = own.map_or(Vec::new(), |unit| {
                    (0..units[unit].len()).map(|index| ParamPlace { unit, index }).collect()
                });
                let block = if is_block { blocks.next() } else { None };
                let places = Places { own, borrowed, attached: Vec::new() };
                Ok(ModelLayer::new((number, name, layer.into(), block), places, &mut seen))
            })
            .collect();
        Ok((placed?, units))
    }
}

impl ModelLayer {
    /// The units that it uses.
    pub fn units(&self) -> &[usize] {
        &self.units
    }

    /// A layer behind those that use the units in `seen`.
    pub(super) fn new(
        (number, name, layer, block): (usize, String, Rc<dyn Layer>, Option<usize>),
        places: Places,
        seen: &mut BTreeSet<usize>,
    ) -> Self {
        let borrowed = places.borrowed.iter().map(|place| place.unit);
        let mut units: Vec<usize> = Vec::new();
        for unit in borrowed.chain(places.all().map(|place| place.unit)) {
            if !units.contains(&unit) {
                units.push(unit);
            }
        }
        let completes = units.iter().copied().filter(|unit| seen.insert(*unit)).collect();
        Self { name, number, layer, places, units, completes, block }
    }

    /// The computation of the layer.
    pub fn layer(&self) -> &dyn Layer {
        &*self.layer
    }

    /// Whether its forward pass draws random numbers while it trains.
    pub fn draws(&self) -> bool {
        self.layer.draws() || self.places.draws()
    }

    /// Where its parameters are.
    pub fn places(&self) -> &Places {
        &self.places
    }
}
