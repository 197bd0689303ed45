//! `nn::sequential` in scripts: a model whose layers the recipe wrote, for the engine to train.

use std::rc::Rc;

use rhai::{FnPtr, Map, plugin::*};

use super::position::at_call;
use crate::{
    config::options::{Kind, OptionTable, ROW, Row, Value, option_table},
    error::{Code, Error, Result},
    model::{Context, CustomLayer, LayerFunction, custom},
    recipe::{
        error::ScriptResult,
        options::{self, Options, held},
        value::describe,
    },
    script::{
        api::tensor::{Handle, check},
        callback::Callback,
        host,
    },
    tensor::{self, Device, Tensor, is_floating},
};

/// The parameters of the function of a layer, for errors.
const ARGUMENTS: &str = "|params, x| or |params, x, context|";

/// Models of a recipe's own.
#[export_module]
pub mod api {
    use crate::script::api::model::api::Model;

    /// Makes a model of layers that the recipe computes itself, for `init_engine` to train as any
    /// other: with every optimizer, precision and stage of ZeRO, a layer at a time.
    ///
    /// The first layer gets the token ids, `[batch, tokens]`; the last gives the logits, `[batch,
    /// tokens, vocab_size]`. Only what comes in through `params` is trained. A tensor that two layers
    /// have is one parameter, as in PyTorch: tied weights.
    ///
    /// ```rhai
    /// let model = nn::sequential(#{
    ///     vocab_size: 100,
    ///     n_positions: 32,
    ///     layers: [
    ///         #{ name: "wte", params: #{ weight: randn([100, 16]) * 0.02 },
    ///            forward: |p, ids| nn::embedding(ids, p.weight) },
    ///         #{ name: "lm_head", params: #{ weight: randn([100, 16]) * 0.02 },
    ///            forward: |p, x| nn::linear(x, p.weight) },
    ///     ],
    /// });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn sequential(ctx: NativeCallContext, options: Map) -> ScriptResult<Model> {
        at_call(&ctx, || {
            let spec = super::read(&options, |function| super::keep(&ctx, function))?;
            let device = host::of(&ctx)?.group()?.device();
            let Spec { vocab_size, n_positions, .. } = spec;
            let layers = spec.into_layers()?;
            Ok(Model::new(custom::model(layers, vocab_size, n_positions, device)?))
        })
    }
}

/// The options of `nn::sequential`.
pub(crate) struct Spec {
    vocab_size: i64,
    n_positions: i64,
    layers: Vec<Layer>,
}

option_table! {
    /// The sizes of the model.
    #[derive(Debug)]
    struct Sizes {
        /// the rows of the logits
        #[option(required, range = 1..)]
        pub vocab_size: i64,
        /// the most tokens of a row
        #[option(required, range = 1..)]
        pub n_positions: i64,
    }
}

option_table! {
    /// The option of a layer that is plain data.
    #[derive(Debug)]
    struct LayerName {
        /// what the names of its parameters begin with; its number by default, from "0"
        #[option(optional)]
        pub name: Option<String>,
    }
}

/// The options of `nn::sequential`, table by table.
pub(crate) const TABLES: &[&[Row]] = &[Sizes::ROWS, LAYERS];

const LAYERS: &[Row] = &[Row {
    name: "layers",
    help: &["at least two layers"],
    kind: || Kind::Maps(&[LayerName::ROWS, LAYER]),
    is_required: true,
    ..ROW
}];

const LAYER: &[Row] = &[
    Row {
        name: "params",
        help: &[
            "the first values of the parameters, which are copied, by their names; rank 0's are those of",
            "all ranks",
        ],
        kind: || Kind::Handle("a map of tensors"),
        is_required: true,
        ..ROW
    },
    Row {
        name: "forward",
        help: &[
            "computes the layer: `params` are the parameters in the format of the training, `x` is what",
            "the layer before gave, `context.training` says whether dropout is on, `context.attn_mask` is",
            "what `nn::scaled_dot_product_attention` needs where rows begin with padding, else `()`",
        ],
        kind: || Kind::Function(ARGUMENTS),
        is_required: true,
        ..ROW
    },
];

/// A layer as the recipe gives it.
struct Layer {
    name: Option<String>,
    params: Vec<(String, Handle)>,
    forward: Option<Callback>,
}

/// Reads the options; `keep` keeps a function of the script.
pub(crate) fn read(map: &Map, keep: impl Fn(FnPtr) -> Result<Callback>) -> Result<Spec> {
    options::read("sequential", map, |o| {
        let _ = o.raw_required("layers");
        let Sizes { vocab_size, n_positions } = Sizes::read(o);
        Spec {
            vocab_size,
            n_positions,
            layers: o.maps("layers", |o| Layer {
                name: LayerName::read(o).name,
                params: params(o),
                forward: function(o, &keep),
            }),
        }
    })
}

/// The tensors of a layer by their names.
fn params(o: &mut Options<'_>) -> Vec<(String, Handle)> {
    let Some(found) = o.raw_required("params") else { return Vec::new() };
    let Value::Map(map) = &found else {
        o.refuse_value("params", "a map of tensors", &found);
        return Vec::new();
    };
    let mut read = Vec::new();
    for (name, value) in map {
        let key = format!("params.{name}");
        let Some(handle) = held::<Handle>(value) else {
            o.refuse_value(&key, "a tensor", value);
            continue;
        };
        if o.check(check::floating(&o.path(&key), handle.tensor())).is_some() {
            read.push((name.clone(), handle));
        }
    }
    read
}

fn function(o: &mut Options<'_>, keep: impl Fn(FnPtr) -> Result<Callback>) -> Option<Callback> {
    let found = o.raw_required("forward")?;
    let Some(function) = held(&found) else {
        o.refuse_value("forward", &format!("a function {ARGUMENTS}"), &found);
        return None;
    };
    let path = o.path("forward");
    let kept = keep(function).map_err(|e| e.option(path));
    o.check(kept)
}

/// Keeps the function of a layer. Captured tensors are not trained, and must not look as if.
fn keep(ctx: &NativeCallContext<'_>, function: FnPtr) -> Result<Callback> {
    let trained = |value: &Dynamic| {
        value.read_lock::<Handle>().is_some_and(|handle| handle.tensor().requires_grad())
    };
    if function.iter_curry().any(trained) {
        return Err(Error::new(
            Code::BadValue,
            "the function of a layer uses a tensor with requires_grad from outside, which would not be trained",
        )
        .hint("give it in `params`, or as `t.detach()` where it is to stay as it is"));
    }
    Callback::new(ctx, function)?.taking(2..=3, ARGUMENTS)
}

impl Spec {
    /// The layers as the model has them.
    fn into_layers(self) -> Result<Vec<CustomLayer>> {
        let Self { vocab_size, layers, .. } = self;
        let last = layers.len().saturating_sub(1);
        let layers = layers.into_iter().enumerate().map(|(i, layer)| {
            let name = layer.name.unwrap_or_else(|| i.to_string());
            let callback = layer.forward.ok_or_else(|| {
                Error::new(Code::Internal, "a layer without a function passed the reader")
            })?;
            let names = layer.params.iter().map(|(name, _)| name.clone()).collect();
            let params = layer
                .params
                .into_iter()
                .map(|(name, handle)| (name, handle.tensor().shallow_clone()))
                .collect();
            let vocab = (i == last).then_some(vocab_size);
            let forward = forward(callback, name.clone(), names, vocab);
            Ok(CustomLayer { name, params, forward })
        });
        layers.collect()
    }
}

/// A function of the script as the engine calls it; that of the last layer gives `vocab` logits.
fn forward(
    callback: Callback,
    layer: String,
    names: Vec<String>,
    vocab: Option<i64>,
) -> LayerFunction {
    Rc::new(move |params, x, context| {
        let handle = |tensor: &Tensor| Dynamic::from(Handle::new(tensor.shallow_clone()));
        let map: Map =
            names.iter().zip(params).map(|(name, p)| (name.as_str().into(), handle(p))).collect();
        let args = vec![map.into(), handle(x), script_context(context, x.device())];
        let found = callback.call_with(args)?;
        let wrong = |code, found: &str| {
            let must = match vocab {
                None => "a tensor of floating point numbers".to_owned(),
                Some(vocab) => format!("logits of the shape [batch, tokens, {vocab}]"),
            };
            let message = format!("layer {layer:?} of the model must give {must}, found {found}");
            Err(callback.at_its_call(Error::new(code, message).option("layers")))
        };
        let Some(result) = found.clone().try_cast::<Handle>() else {
            return wrong(Code::WrongType, &describe(&found));
        };
        let result = result.tensor();
        let shape = result.size();
        if !is_floating(result.kind())
            || vocab.is_some_and(|vocab| shape.len() != 3 || shape[2] != vocab)
        {
            return wrong(Code::Shape, &check::shown(result));
        }
        Ok(result.shallow_clone())
    })
}

fn script_context(context: &Context<'_>, device: Device) -> Dynamic {
    let masks = context.masks;
    let mask = masks
        .padding()
        .and_then(|padding| masks.causal(padding.size()[1], None, (tensor::Kind::Bool, device)));
    let mask = mask.map_or(Dynamic::UNIT, |mask| Dynamic::from(Handle::new(mask)));
    Map::from([("training".into(), context.train.into()), ("attn_mask".into(), mask)]).into()
}
