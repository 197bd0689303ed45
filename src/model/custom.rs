//! A model whose layers its maker wrote: a recipe, say.
//!
//! A layer has parameters and a function of them and of what the layer before it gave. The first
//! gets token ids, the last gives logits; in between anything may go, as long as it is one tensor.
//! The engine runs such a model as any other: a layer's parameters are one unit.

use std::{collections::BTreeSet, fmt, rc::Rc};

use super::{
    FlatUnit, Model,
    embedding::Embedding,
    head::Head,
    layer::{Block, BlockContext},
    model_config::{CustomConfig, ModelConfig},
    origin::Origin,
    profile::ModuleProfile,
    unit::{Init, ParamSpec, padded_size},
};
use crate::{
    error::{Code, Error, Result},
    tensor::{Device, Tensor, no_grad},
};

/// Computes a layer: the parameters in the order of [`CustomLayer::params`], the input, and what
/// else there is to know.
pub type LayerFunction = Rc<dyn Fn(&[Tensor], &Tensor, &BlockContext<'_>) -> Result<Tensor>>;

/// One layer.
pub struct CustomLayer {
    /// What its parameters' names begin with.
    pub name: String,
    /// The parameters with their first values, which are copied.
    pub params: Vec<(String, Tensor)>,
    /// Computes it. The input of the first is `[B, T]`, int64; of the others what the one before
    /// gave. The result of the last is `[B, T, V]`.
    pub forward: LayerFunction,
}

/// A layer whose parameters are in their unit.
pub struct CustomBlock {
    name: String,
    forward: LayerFunction,
}

impl Model {
    /// A model of `layers`, of which there are at least two.
    ///
    /// # Errors
    /// [`Code::BadValue`] for too few layers, one without a parameter, and a name that is there
    /// twice; [`Code::Shape`] for a parameter without elements; libtorch refuses.
    pub fn from_layers(
        layers: Vec<CustomLayer>,
        vocab_size: i64,
        n_positions: i64,
        device: Device,
    ) -> Result<Self> {
        check(&layers)?;
        let last = layers.len() - 1;
        let specs: Vec<Vec<ParamSpec>> =
            layers.iter().enumerate().map(|(i, layer)| layer.specs(i > 0 && i < last)).collect();
        let config = CustomConfig {
            vocab_size,
            n_positions,
            layers: layers.iter().map(|layer| layer.name.clone()).collect(),
            unit_sizes: specs.iter().map(|specs| padded_size(specs).unsigned_abs()).collect(),
        };
        let units = specs.into_iter().map(|specs| FlatUnit::absent(specs, device));
        let units = units.collect::<Result<_>>()?;
        let values = layers.iter().map(CustomLayer::values).collect::<Result<_>>()?;
        let mut blocks: Vec<_> = layers
            .into_iter()
            .map(|CustomLayer { name, forward, .. }| CustomBlock { name, forward })
            .collect();
        let (Some(head), embedding) = (blocks.pop(), blocks.remove(0)) else {
            return Err(Error::new(Code::Internal, "a model without layers"));
        };
        Ok(Self {
            config: ModelConfig::Custom(config),
            units,
            embedding: Embedding::Custom(embedding),
            blocks: blocks.into_iter().map(|block| Box::new(block) as Box<dyn Block>).collect(),
            head: Head::Custom(head),
            device,
            tokenizer_json: None,
            origin: Some(Origin::Values(values)).into(),
            residence: None.into(),
        })
    }
}

fn check(layers: &[CustomLayer]) -> Result<()> {
    if layers.len() < 2 {
        return Err(Error::new(
            Code::BadValue,
            format!("a model has at least 2 layers, found {}", layers.len()),
        )
        .hint("the first gets token ids, [batch, tokens], the last gives logits, [batch, tokens, vocabulary]"));
    }
    let mut names = BTreeSet::new();
    for CustomLayer { name, params, .. } in layers {
        if !names.insert(name) {
            bail!(Code::BadValue, "two layers of the model are called {name:?}");
        }
        if params.is_empty() {
            return Err(Error::new(Code::BadValue, format!("the layer {name:?} has no parameter"))
                .hint("let the layer before or after it compute what it does"));
        }
        if let Some((param, value)) = params.iter().find(|(_, value)| value.numel() == 0) {
            let size = value.size();
            bail!(Code::Shape, "the parameter {param} of the layer {name:?} is empty: {size:?}");
        }
    }
    Ok(())
}

impl CustomLayer {
    /// The parameters. Of an `inner` layer a matrix counts as the weight of a linear layer,
    /// `[out, in]`, as in PyTorch's: those are what Muon is for.
    fn specs(&self, inner: bool) -> Vec<ParamSpec> {
        let spec = |(name, value): &(String, Tensor)| {
            let spec = ParamSpec::new(format!("{}.{name}", self.name), &value.size(), Init::Zeros);
            match value.size().as_slice() {
                &[fan_out, fan_in] if inner => spec.linear(fan_in, fan_out),
                _ => spec,
            }
        };
        self.params.iter().map(spec).collect()
    }

    /// Copies of the parameters' values, on the CPU.
    fn values(&self) -> Result<Vec<Tensor>> {
        let copy = |(_, value): &(String, Tensor)| {
            no_grad(|| {
                let mut copy = Tensor::f_empty(value.size(), (value.kind(), Device::Cpu))?;
                copy.f_copy_(value)?;
                Ok(copy)
            })
        };
        self.params.iter().map(copy).collect()
    }
}

impl CustomBlock {
    /// Logits of `x`: `[B, T, V]`.
    pub(super) fn logits(&self, params: &[Tensor], x: &Tensor) -> Result<Tensor> {
        (self.forward)(params, x, &BlockContext::default())
    }
}

impl Block for CustomBlock {
    fn forward(&self, params: &[Tensor], x: &Tensor, context: BlockContext<'_>) -> Result<Tensor> {
        (self.forward)(params, x, &context)
    }

    fn profile(&self, _rows: i64, _tokens: i64) -> Option<ModuleProfile> {
        None
    }
}

impl fmt::Debug for CustomBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CustomBlock({})", self.name)
    }
}
