//! A layer: the unit that the engine runs, differentiates and recomputes.
//!
//! The embedding, each block and the head with the loss are layers. A layer is a function of its
//! parameters and of the [`Flow`] that the layer before handed on; a [`Context`] has what else it may
//! know. Layers hold no state: an engine may run one again to get its graph back.

use super::{
    cost::{LayerCost, Workload},
    loss::Objective,
    masks::Masks,
    param_id::ParamId,
    params::Params,
    profile::Recorder,
};
use crate::{
    config::TiledMlp,
    error::Result,
    kv_cache::{CachePass, DecodeRows, LayerCache},
    sparse::BlockSparse,
    tensor::Tensor,
    tensor_parallel::Split,
};

/// The tensors that one layer hands to the next, or their gradients.
#[derive(Debug)]
pub struct Flow<T = Tensor> {
    /// Token ids `[B, T]` for the first layer, hidden states `[B, T, C]` between layers, logits or a
    /// sum of losses after the last.
    pub hidden: T,
    /// The output of the encoder, for the layers of a decoder behind it.
    pub encoded: Option<T>,
    /// The bias of attention scores by relative position, which the first layer of a stack makes.
    pub bias: Option<T>,
}

impl<T> Flow<T> {
    /// A flow of hidden states alone.
    pub fn of(hidden: T) -> Self {
        Self { hidden, encoded: None, bias: None }
    }

    /// Each part as a function of it gives it.
    pub fn try_map<U>(self, mut each: impl FnMut(T) -> Result<U>) -> Result<Flow<U>> {
        Ok(Flow {
            hidden: each(self.hidden)?,
            encoded: self.encoded.map(&mut each).transpose()?,
            bias: self.bias.map(&mut each).transpose()?,
        })
    }
}

impl Flow {
    /// The same with other hidden states.
    pub fn with_hidden(&self, hidden: Tensor) -> Self {
        let clone = |x: &Option<Tensor>| x.as_ref().map(Tensor::shallow_clone);
        Self { hidden, encoded: clone(&self.encoded), bias: clone(&self.bias) }
    }

    /// The flow cut off from the graph that made it; with `needs_grad` each tensor is where a new
    /// graph begins.
    pub fn detach(&self, needs_grad: bool) -> Self {
        let clone = |x: &Tensor| x.detach().set_requires_grad(needs_grad);
        Self {
            hidden: clone(&self.hidden),
            encoded: self.encoded.as_ref().map(clone),
            bias: self.bias.as_ref().map(clone),
        }
    }
}

/// The context of a layer's forward pass, beside its parameters and the flow.
#[derive(Debug)]
pub struct Context<'a> {
    /// Whether dropout is on.
    pub train: bool,
    /// The tokens of the batch: which are padding, and what the decoder is given.
    pub masks: &'a Masks,
    /// Makes the last layer give the sum of the losses instead of logits.
    pub objective: Option<Objective<'a>>,
    /// How the pass uses the cache of this layer, while generating.
    pub cache: Option<(&'a CachePass, &'a mut LayerCache)>,
    /// Whether the last layer gives the logits of the last position alone.
    pub last_only: bool,
    /// The recorder of the modules inside, where they are profiled.
    pub recorder: Option<&'a Recorder>,
    /// The blocks of keys that the model's attention sees; `None` is all.
    pub sparse: Option<&'a BlockSparse>,
    /// How MLPs run over slices of tokens; `None` is over all at once.
    pub tiled_mlp: Option<TiledMlp>,
}

impl<'a> Context<'a> {
    /// The rows of a pass of one token a text.
    pub fn decode_rows(&self) -> Option<&'a DecodeRows> {
        match self.cache {
            Some((CachePass::Decode(rows), _)) => Some(rows),
            _ => None,
        }
    }

    /// The tokens of each text, in a pass that puts several texts into their slots and has `tokens`
    /// in all: whole texts, or the first token of each behind an encoder.
    pub fn texts(&self, tokens: i64) -> Option<Vec<i64>> {
        let Some((CachePass::Prefill(_), _)) = self.cache else { return None };
        let lengths = self.masks.documents()?.lengths().first()?;
        match lengths.iter().sum::<i64>() == tokens {
            true => Some(lengths.clone()),
            false => Some(vec![1; tokens as usize]),
        }
    }

    /// The rows of each text in the input of a product, `rows` in all, in a pass that generates for
    /// several.
    pub fn rows_of_texts(&self, rows: i64) -> Option<Vec<i64>> {
        match self.decode_rows() {
            Some(_) => Some(vec![1; rows as usize]),
            None => self.texts(rows),
        }
    }

    /// Without dropout, loss and cache.
    pub fn new(masks: &'a Masks) -> Self {
        let (objective, cache, recorder, sparse, tiled_mlp) = (None, None, None, None, None);
        let (train, last_only) = (false, false);
        Self { train, masks, objective, cache, last_only, recorder, sparse, tiled_mlp }
    }
}

/// The facts of an attention, by which it may see other keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionFacts {
    /// Its heads.
    pub heads: i64,
    /// The width of a head.
    pub head_dim: i64,
    /// Whether a query sees nothing behind itself.
    pub is_causal: bool,
    /// Whether its scores have a bias that is trained.
    pub has_bias: bool,
    /// How many tokens a query sees; `None` is all.
    pub window: Option<i64>,
    /// Of its weights.
    pub dropout: f64,
}

/// One layer of a model.
///
/// Pure but for dropout, which draws from libtorch's default generator: the engine seeds it before
/// each call, so that a recomputation draws the same masks.
pub trait Layer {
    /// Runs the layer; panics where libtorch refuses, to be called under [`crate::tensor::guard`].
    fn forward(&self, params: &Params<'_>, flow: &Flow, context: &mut Context<'_>) -> Result<Flow>;

    /// The cost of the layer; `None` where shapes do not tell it.
    fn cost(&self, work: &Workload) -> Option<LayerCost>;

    /// Whether the forward pass draws random numbers while it trains.
    fn draws(&self) -> bool;

    /// Whether the layer is where a decoder begins, behind the last layer of an encoder.
    fn begins_decoder(&self) -> bool {
        false
    }

    /// How the ranks that share the layer divide its parameters: those that are not named they have
    /// whole.
    fn splits(&self) -> Vec<(ParamId, Split)> {
        Vec::new()
    }

    /// The numbers that as many ranks as share the layer must divide, each with its name.
    fn divisible(&self) -> Vec<(&'static str, i64)> {
        Vec::new()
    }

    /// The attention of its tokens to each other, if it has one that may be block-sparse.
    fn attention(&self) -> Option<AttentionFacts> {
        None
    }

    /// Whether it has an MLP that may run over slices of tokens.
    fn has_mlp(&self) -> bool {
        false
    }

    /// Whether the backward pass reads the parameters.
    fn backward_reads_params(&self) -> bool {
        true
    }
}
