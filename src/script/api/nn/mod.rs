//! `nn::...` in scripts: the functions that models are made of, as `torch.nn.functional` has them.

pub mod loss;
pub mod sequential;

mod position;

use rhai::{Map, plugin::*};

use self::position::at_call;
use super::tensor::{
    Handle,
    check::{self, floating, one_dtype},
    read::ints,
};
use crate::{
    error::{Code, Error},
    recipe::{error::ScriptResult, options, value::argument},
    tensor::{Kind, Tensor},
};

const GELU: &[(&str, &str)] = &[("none", "none"), ("tanh", "tanh")];

/// Layers.
#[export_module]
pub mod api {
    use crate::script::api::tensor::api::Tensor;

    /// Returns `x` times the transposed `weight`, which is `[out, in]`.
    ///
    /// ```rhai
    /// let y = nn::linear(randn([4, 3]), randn([2, 3]));            // [4, 2]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn linear(ctx: NativeCallContext, x: Tensor, weight: Tensor) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::linear(x.tensor(), weight.tensor(), None))
    }

    /// Returns `x` times the transposed `weight`, which is `[out, in]`, plus `bias`, which is `[out]`.
    ///
    /// ```rhai
    /// let y = nn::linear(randn([4, 3]), randn([2, 3]), zeros([2]));
    /// ```
    #[rhai_fn(name = "linear", return_raw)]
    pub fn linear_with_bias(
        ctx: NativeCallContext,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::linear(x.tensor(), weight.tensor(), Some(bias.tensor())))
    }

    /// Normalizes the last dimensions, of the shape `shape`, to mean 0 and variance 1.
    #[rhai_fn(return_raw)]
    pub fn layer_norm(ctx: NativeCallContext, x: Tensor, shape: Dynamic) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::norm("layer_norm", x.tensor(), &shape, &Map::new()))
    }

    /// Normalizes the last dimensions, of the shape `shape`, to mean 0 and variance 1, then multiplies
    /// with `weight` and adds `bias`, if they are given; `eps` (1e-5).
    ///
    /// ```rhai
    /// let x = randn([2, 8]);
    /// let y = nn::layer_norm(x, [8], #{ weight: ones([8]), bias: zeros([8]), eps: 1e-5 });
    /// ```
    #[rhai_fn(name = "layer_norm", return_raw)]
    pub fn layer_norm_with(
        ctx: NativeCallContext,
        x: Tensor,
        shape: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::norm("layer_norm", x.tensor(), &shape, &options))
    }

    /// Divides the last dimensions, of the shape `shape`, by the root of their mean square.
    #[rhai_fn(return_raw)]
    pub fn rms_norm(ctx: NativeCallContext, x: Tensor, shape: Dynamic) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::norm("rms_norm", x.tensor(), &shape, &Map::new()))
    }

    /// Divides the last dimensions, of the shape `shape`, by the root of their mean square, then
    /// multiplies with `weight`, if it is given; `eps` (that of the dtype).
    #[rhai_fn(name = "rms_norm", return_raw)]
    pub fn rms_norm_with(
        ctx: NativeCallContext,
        x: Tensor,
        shape: Dynamic,
        options: Map,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::norm("rms_norm", x.tensor(), &shape, &options))
    }

    /// Returns the Gaussian error linear units of the elements.
    #[rhai_fn(return_raw)]
    pub fn gelu(ctx: NativeCallContext, x: Tensor) -> ScriptResult<Tensor> {
        gelu_with(ctx, x, Map::new())
    }

    /// Returns the Gaussian error linear units, `approximate` "none" or "tanh", which is GPT-2's.
    ///
    /// ```rhai
    /// let y = nn::gelu(randn([4]), #{ approximate: "tanh" });
    /// ```
    #[rhai_fn(name = "gelu", return_raw)]
    pub fn gelu_with(ctx: NativeCallContext, x: Tensor, options: Map) -> ScriptResult<Tensor> {
        at_call(&ctx, || {
            let how = options::read("gelu", &options, |o| {
                o.choice("approximate", super::GELU).or("none")
            })?;
            floating("gelu", x.tensor())?;
            check::op("gelu", &[x.tensor()], || x.tensor().f_gelu(how))
        })
    }

    /// Returns each element, or 0 where it is negative.
    #[rhai_fn(return_raw)]
    pub fn relu(ctx: NativeCallContext, x: Tensor) -> ScriptResult<Tensor> {
        at_call(&ctx, || check::op("relu", &[x.tensor()], || x.tensor().f_relu()))
    }

    /// Returns each element times its sigmoid.
    #[rhai_fn(return_raw)]
    pub fn silu(ctx: NativeCallContext, x: Tensor) -> ScriptResult<Tensor> {
        at_call(&ctx, || {
            floating("silu", x.tensor())?;
            check::op("silu", &[x.tensor()], || x.tensor().f_silu())
        })
    }

    /// Returns exponentials that add up to 1 along a dimension.
    ///
    /// ```rhai
    /// let p = nn::softmax(randn([4, 10]), -1);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn softmax(ctx: NativeCallContext, x: Tensor, dim: Dynamic) -> ScriptResult<Tensor> {
        at_call(&ctx, || {
            floating("softmax", x.tensor())?;
            let dim = check::dim("softmax", x.tensor(), argument("dim", &dim)?)?;
            check::op("softmax", &[x.tensor()], || x.tensor().f_softmax(dim, None))
        })
    }

    /// Returns the logarithms of `softmax`.
    #[rhai_fn(return_raw)]
    pub fn log_softmax(ctx: NativeCallContext, x: Tensor, dim: Dynamic) -> ScriptResult<Tensor> {
        at_call(&ctx, || {
            floating("log_softmax", x.tensor())?;
            let dim = check::dim("log_softmax", x.tensor(), argument("dim", &dim)?)?;
            check::op("log_softmax", &[x.tensor()], || x.tensor().f_log_softmax(dim, None))
        })
    }

    /// Sets half of the elements, by chance, to 0 and doubles the others.
    #[rhai_fn(return_raw)]
    pub fn dropout(ctx: NativeCallContext, x: Tensor) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::dropout(&x, 0.5, true))
    }

    /// Sets elements to 0 with a probability `p`, and divides the others by 1 - p. `p` is a number, or
    /// options: `p` (0.5) and `training` (true); without it nothing is done.
    ///
    /// ```rhai
    /// let y = nn::dropout(randn([4, 8]), 0.1);
    /// let y = nn::dropout(y, #{ p: 0.1, training: false });
    /// ```
    #[rhai_fn(name = "dropout", return_raw)]
    pub fn dropout_with(ctx: NativeCallContext, x: Tensor, p: Dynamic) -> ScriptResult<Tensor> {
        at_call(&ctx, || {
            let (p, training) = match p.as_map_ref() {
                Ok(map) => options::read("dropout", &map, |o| {
                    (o.get("p").range(0.0..=1.0).or(0.5), o.get("training").or(true))
                })?,
                Err(_) => (argument("p", &p)?, true),
            };
            super::dropout(&x, p, training)
        })
    }

    /// Returns the row of `weight` for each of the int64 `ids`.
    ///
    /// ```rhai
    /// let x = nn::embedding(tensor([[1, 2]]), randn([10, 4]));     // [1, 2, 4]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn embedding(ctx: NativeCallContext, ids: Tensor, weight: Tensor) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::embedding(ids.tensor(), weight.tensor()))
    }

    /// Returns 1 where the class of each of the `ids` is among `classes`, and 0 elsewhere, int64.
    #[rhai_fn(return_raw)]
    pub fn one_hot(ctx: NativeCallContext, ids: Tensor, classes: Dynamic) -> ScriptResult<Tensor> {
        at_call(&ctx, || {
            let classes: i64 = argument("classes", &classes)?;
            check::indices("one_hot", "ids", ids.tensor(), classes)?;
            let mut shape = ids.tensor().size();
            shape.push(classes);
            check::room("one_hot", &shape, Kind::Int64, ids.tensor().device())?;
            check::op("one_hot", &[ids.tensor()], || ids.tensor().f_one_hot(classes))
        })
    }

    /// Returns the attention of queries to keys, applied to values: tensors `[..., tokens, channels]`.
    ///
    /// ```rhai
    /// let q = randn([1, 2, 4, 8]);
    /// let y = nn::scaled_dot_product_attention(q, q, q);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn scaled_dot_product_attention(
        ctx: NativeCallContext,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::attention([q.tensor(), k.tensor(), v.tensor()], &Map::new()))
    }

    /// Returns the attention with options: `is_causal` (false), whether a token sees only itself and
    /// those before it; `attn_mask`, bool for who is seen or floats to add to the scores; `dropout_p`
    /// (0); `scale` (1 / sqrt(channels)).
    ///
    /// ```rhai
    /// let q = randn([1, 2, 4, 8]);
    /// let y = nn::scaled_dot_product_attention(q, q, q, #{ is_causal: true, dropout_p: 0.1 });
    /// ```
    #[rhai_fn(name = "scaled_dot_product_attention", return_raw)]
    pub fn attention_with(
        ctx: NativeCallContext,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        options: Map,
    ) -> ScriptResult<Tensor> {
        at_call(&ctx, || super::attention([q.tensor(), k.tensor(), v.tensor()], &options))
    }
}

fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> ScriptResult<Handle> {
    let (from, size) = (x.size(), weight.size());
    let fits = match (from.last(), size.as_slice()) {
        (Some(channels), [_, inputs]) => channels == inputs,
        _ => false,
    };
    if !fits {
        let message = format!("`linear` cannot apply a weight of shape {size:?} to shape {from:?}");
        return Err(Error::new(Code::Shape, message)
            .hint("the weight is [out, in], where in is the last size of x")
            .into());
    }
    let mut inputs = vec![x, weight];
    if let Some(bias) = bias {
        if bias.size() != size[..1] {
            let found = bias.size();
            let message = format!("`linear` needs a bias of shape [{}], found {found:?}", size[0]);
            return Err(Error::new(Code::Shape, message).into());
        }
        inputs.push(bias);
    }
    one_dtype("linear", &inputs)?;
    let mut shape = from;
    shape.pop();
    shape.push(size[0]);
    check::room("linear", &shape, x.kind(), x.device())?;
    check::op("linear", &inputs, || x.f_linear(weight, bias))
}

fn norm(name: &'static str, x: &Tensor, shape: &Dynamic, options: &Map) -> ScriptResult<Handle> {
    floating(name, x)?;
    let shape = ints("shape", shape)?;
    let (weight, bias, eps) = options::read(name, options, |o| {
        let eps = o.get("eps").range(0.0..).optional();
        let weight = options::handed::<Handle>(o, "weight");
        let bias = match name {
            "layer_norm" => options::handed::<Handle>(o, "bias"),
            _ => None,
        };
        (weight, bias, eps)
    })?;
    if shape.is_empty() || !x.size().ends_with(&shape) {
        let found = x.size();
        let message = format!("`{name}` over {shape:?}: shape {found:?} does not end in it");
        return Err(Error::new(Code::Shape, message).into());
    }
    let mut inputs = vec![x];
    for (key, given) in [("weight", &weight), ("bias", &bias)] {
        let Some(given) = given else { continue };
        if given.tensor().size() != shape {
            let found = given.tensor().size();
            let message =
                format!("`{key}` of {name} must have the shape {shape:?}, found {found:?}");
            return Err(Error::new(Code::Shape, message).option(key).into());
        }
        inputs.push(given.tensor());
    }
    one_dtype(name, &inputs)?;
    let (weight, bias) = (weight.as_ref().map(Handle::tensor), bias.as_ref().map(Handle::tensor));
    check::op(name, &inputs, || match name {
        "layer_norm" => x.f_layer_norm(&shape, weight, bias, eps.unwrap_or(1e-5), false),
        _ => x.f_rms_norm(&shape, weight, eps),
    })
}

fn dropout(x: &Handle, p: f64, training: bool) -> ScriptResult<Handle> {
    if !(0.0..=1.0).contains(&p) {
        let message = format!("`p` of dropout must be from 0 to 1, found {p}");
        return Err(Error::new(Code::BadValue, message).into());
    }
    floating("dropout", x.tensor())?;
    check::op("dropout", &[x.tensor()], || x.tensor().f_dropout(p, training))
}

fn embedding(ids: &Tensor, weight: &Tensor) -> ScriptResult<Handle> {
    let &[rows, channels] = weight.size().as_slice() else {
        let message = format!("`embedding` needs a matrix as weight, found {:?}", weight.size());
        return Err(Error::new(Code::Shape, message).into());
    };
    check::indices("embedding", "ids", ids, rows).map_err(|e| match e.code() {
        Code::BadValue => Error::new(Code::TokenId, e.message()),
        _ => e,
    })?;
    let mut shape = ids.size();
    shape.push(channels);
    check::room("embedding", &shape, weight.kind(), weight.device())?;
    check::op("embedding", &[ids, weight], || Tensor::f_embedding(weight, ids, -1, false, false))
}

fn attention([q, k, v]: [&Tensor; 3], options: &Map) -> ScriptResult<Handle> {
    let name = "scaled_dot_product_attention";
    let (is_causal, p, scale, mask) = options::read(name, options, |o| {
        let is_causal = o.get("is_causal").or(false);
        let mask = options::handed::<Handle>(o, "attn_mask");
        if is_causal && mask.is_some() {
            o.fault("attn_mask", Code::BadValue, "is_causal is a mask already: give one of both");
        }
        let p = o.get("dropout_p").range(0.0..=1.0).or(0.0);
        (is_causal, p, o.get("scale").optional(), mask)
    })?;
    floating(name, q)?;
    one_dtype(name, &[q, k, v])?;
    let (from, keys, values) = (q.size(), k.size(), v.size());
    let ndim = from.len();
    let fits = ndim >= 2
        && keys.len() == ndim
        && values.len() == ndim
        && keys[ndim - 1] == from[ndim - 1]
        && keys[ndim - 2] == values[ndim - 2]
        && from[..ndim - 2] == keys[..ndim - 2]
        && from[..ndim - 2] == values[..ndim - 2];
    if !fits {
        let message = format!("`{name}` cannot take q {from:?}, k {keys:?} and v {values:?}");
        return Err(Error::new(Code::Shape, message)
            .hint("q is [..., L, E], k [..., S, E] and v [..., S, V], with one batch and one E")
            .into());
    }
    let mut scores = from;
    scores[ndim - 1] = keys[ndim - 2];
    let mask = mask.as_ref().map(Handle::tensor);
    if let Some(mask) = mask {
        if mask.kind() != Kind::Bool {
            one_dtype(name, &[q, mask])?;
        }
        if check::broadcast_shapes(name, &scores, &mask.size())? != scores {
            let found = mask.size();
            let message = format!("`attn_mask` must fit the scores {scores:?}, found {found:?}");
            return Err(Error::new(Code::Shape, message).option("attn_mask").into());
        }
    }
    if mask.is_some() || p > 0.0 {
        // Then the scores may be held whole.
        check::room(name, &scores, q.kind(), q.device())?;
    }
    check::op(name, &[q, k, v], || {
        Tensor::f_scaled_dot_product_attention(q, k, v, mask, p, is_causal, scale, false)
    })
}
