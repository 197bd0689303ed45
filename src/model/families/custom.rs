//! A model whose layers its maker wrote: a recipe, say.
//!
//! A layer has parameters and a function of them and of what the layer before it gave. The first
//! gets token ids, the last gives logits; in between anything may go, as long as it is one tensor.
//! The engine runs such a model as any other: a layer's parameters are one unit. A tensor that is given
//! to two layers is one parameter, as in PyTorch: the first layer's, which the other borrows.

use std::{collections::BTreeSet, fmt, rc::Rc};

use serde_json::{Value, json};

use crate::{
    bridge::memory::{self, count_as},
    error::{Code, Error, Result},
    model::{
        Model,
        architecture::{Architecture, LayerSpec, ModelInfo, Prediction},
        cost::{LayerCost, Workload},
        layer::{Context, Flow, Layer},
        loss,
        param_id::ParamId,
        param_spec::Init,
        params::{LayerBuilder, Params},
    },
    tensor::{Device, Kind, Tensor, no_grad},
};

/// Computes a layer: the parameters in the order of [`CustomLayer::params`], the input, and what
/// else there is to know.
pub type LayerFunction = Rc<dyn Fn(&[Tensor], &Tensor, &Context<'_>) -> Result<Tensor>>;

/// One layer.
pub struct CustomLayer {
    /// The prefix of its parameters' names.
    pub name: String,
    /// The parameters with their first values, which are copied. The same tensor again is the same
    /// parameter.
    pub params: Vec<(String, Tensor)>,
    /// Computes it. The input of the first is `[B, T]`, int64; of the others what the one before
    /// gave. The result of the last is `[B, T, V]`.
    pub forward: LayerFunction,
}

/// A layer whose parameters are in their unit.
struct Custom {
    name: String,
    params: Vec<ParamId>,
    forward: LayerFunction,
    is_last: bool,
}

/// A model of `layers`, of which there are at least two.
pub fn model(
    layers: Vec<CustomLayer>,
    vocab_size: i64,
    n_positions: i64,
    device: Device,
) -> Result<Model> {
    check(&layers)?;
    let last = layers.len() - 1;
    let names: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
    let mut owners = Vec::new();
    let (mut values, mut specs) = (Vec::new(), Vec::new());
    for (i, layer) in layers.into_iter().enumerate() {
        let (spec, own) = layer.spec((i, last), &mut owners)?;
        values.push(own);
        specs.push(spec);
    }
    let config: [(&str, Value); 4] = [
        ("model_type", json!("dsr_custom")),
        ("vocab_size", json!(vocab_size)),
        ("n_positions", json!(n_positions)),
        ("layers", json!(names)),
    ];
    let facts = ModelInfo {
        config: config.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        vocab_size,
        max_positions: Some(n_positions),
        cache_ends_behind: None,
        objective: Prediction::Causal { is_cached: false },
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        names: None,
        kind: "of a recipe".to_owned(),
        summary: format!(
            "layers {}; {n_positions} positions, vocabulary {vocab_size}",
            names.join(", ")
        ),
    };
    Model::from_values(Architecture { layers: specs, facts }, values, device)
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
    /// Layer `i` of which `last` is the last, with copies of its own parameters' values on the CPU. Of an
    /// inner layer a matrix counts as the weight of a linear layer, `[out, in]`, as in PyTorch's: those are
    /// what Muon is for. `owners` has the tensors of the layers so far.
    fn spec(
        self,
        (i, last): (usize, usize),
        owners: &mut Vec<Owner>,
    ) -> Result<(LayerSpec, Vec<Tensor>)> {
        let Self { name, params, forward } = self;
        let is_inner = i > 0 && i < last;
        let mut b = LayerBuilder::new(&*name);
        let (mut ids, mut values) = (Vec::new(), Vec::new());
        for (param, value) in params {
            if let Some(owner) = owners.iter().find(|owner| is_same(&owner.tensor, &value)) {
                ids.push(if owner.layer == i { owner.id } else { b.borrow(&owner.name) });
                continue;
            }
            let id = match value.size()[..] {
                [fan_out, fan_in] if is_inner => {
                    b.add_matrix(&param, &[fan_out, fan_in], (fan_in, fan_out), Init::Zeros)
                }
                _ => b.add(&param, &value.size(), Init::Zeros),
            };
            ids.push(id);
            values.push(copy(&value)?);
            owners.push(Owner { tensor: value, layer: i, id, name: format!("{name}.{param}") });
        }
        let layer = Custom { name: name.clone(), params: ids, forward, is_last: i == last };
        let spec = LayerSpec::new(name, b, layer);
        Ok((if is_inner { spec.block() } else { spec }, values))
    }
}

/// A tensor that a layer has as its parameter.
struct Owner {
    tensor: Tensor,
    layer: usize,
    id: ParamId,
    /// The full name of the parameter.
    name: String,
}

/// Whether two handles are of the same values in memory.
fn is_same(a: &Tensor, b: &Tensor) -> bool {
    a.data_ptr() == b.data_ptr()
        && a.kind() == b.kind()
        && a.size() == b.size()
        && a.stride() == b.stride()
}

fn copy(value: &Tensor) -> Result<Tensor> {
    no_grad(|| {
        let mut copy = Tensor::f_empty(value.size(), (value.kind(), Device::Cpu))?;
        copy.f_copy_(value)?;
        Ok(copy)
    })
}

impl Layer for Custom {
    fn forward(&self, params: &Params<'_>, flow: &Flow, context: &mut Context<'_>) -> Result<Flow> {
        let kind = if self.is_last { memory::Kind::Buffers } else { memory::Kind::Activations };
        let _counting = count_as(kind)?;
        let tensors: Vec<_> =
            self.params.iter().map(|id| params.tensor(*id).shallow_clone()).collect();
        let made = (self.forward)(&tensors, &flow.hidden, context)?;
        Ok(Flow::of(match context.objective.filter(|_| self.is_last) {
            Some(objective) => loss::sum_of_logits(&made, objective)?,
            None if self.is_last => made.f_to_kind(Kind::Float)?,
            None => made,
        }))
    }

    fn cost(&self, _: &Workload) -> Option<LayerCost> {
        None
    }

    fn draws(&self) -> bool {
        true
    }
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Custom({})", self.name)
    }
}
