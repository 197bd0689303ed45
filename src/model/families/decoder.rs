//! The decoder that Llama has made common: RMS norms before attention and MLP, rotary positions, groups of
//! queries that share keys, a gated MLP. Families differ in settings.

use std::rc::Rc;

use crate::{
    config_json::{Activation, Config, Default, Key, KeyKind, Neutral, Refused},
    error::Result,
    model::{
        architecture::{Architecture, LayerSpec, ModelInfo, WeightNames},
        modules::{
            Attention, Block, Branch, Embed, Embedding, Gate, Head, Linear, Mlp, Norm, Position,
            Projections, Rotary,
        },
        param_spec::Init,
        params::LayerBuilder,
    },
    rope::{Rope, RopeContext},
};

const EMBEDDING: &str = "model.embed_tokens.weight";

/// The positions before frequencies were stretched, which may stand inside of these too.
pub(super) const ORIGINAL_POSITIONS: Key =
    Key::new("original_max_position_embeddings", KeyKind::OptionalSize, Default::Absent);

/// Keys by which other families choose the layers with a window.
pub(super) const WINDOW_KEYS: &[Refused] =
    &[own_window("use_sliding_window"), own_window("layer_types")];

const fn own_window(key: &'static str) -> Refused {
    let why =
        "all layers of this family have the window of sliding_window, or none: leave the key out";
    Refused { key, why, also_off: &[Neutral::Text("full_attention")] }
}

/// The names in the files of these families.
pub(super) const NAMES: WeightNames = WeightNames {
    prefix: "model.",
    aliases: &[("lm_head.weight", EMBEDDING)],
    buffers: &[".rotary_emb.inv_freq"],
};

/// The decoder of a family.
pub(super) struct Decoder<'a> {
    pub(super) c: &'a Config,
    pub(super) qkv_bias: bool,
    pub(super) out_bias: bool,
    pub(super) mlp_bias: bool,
    /// Whether each head's queries and keys have norms.
    pub(super) has_qk_norm: bool,
    /// Whether one layer makes queries, keys and values, and one gate and up.
    pub(super) is_fused: bool,
    /// Whether norms stand behind each part too, and are stored less one.
    pub(super) is_gemma: bool,
    pub(super) activation: Activation,
    /// The factor of the scores, unless it is the usual.
    pub(super) scale: Option<f64>,
    pub(super) embedding_scale: Option<f64>,
    pub(super) embedding_dropout: f64,
    /// Of what a block adds.
    pub(super) dropout: f64,
    pub(super) layers: Vec<LayerPositions>,
    /// The part of a head that turns, where the family has a key for it.
    pub(super) partial_rotary_factor: Option<f64>,
    /// Whether a part of a head may stay.
    pub(super) may_turn_partly: bool,
    /// The positions before frequencies were stretched, where the file does not say them.
    pub(super) original_max_positions: Option<i64>,
    pub(super) head_dim: i64,
    pub(super) kv_heads: i64,
}

/// How a layer's attention knows of places.
pub(super) struct LayerPositions {
    pub(super) rotary: Rc<Rotary>,
    /// Tokens that a query sees.
    pub(super) window: Option<i64>,
}

impl<'a> Decoder<'a> {
    /// Llama without biases, from the settings that all families have.
    pub(super) fn new(c: &'a Config) -> Result<Self> {
        let decoder = Self { activation: c.activation("hidden_act")?, ..Self::without_layers(c)? };
        Ok(Self { layers: decoder.layers_with(|_| None)?, ..decoder })
    }

    /// The same without the places of its layers.
    pub(super) fn without_layers(c: &'a Config) -> Result<Self> {
        let (width, heads) = (c.int("hidden_size")?, c.int("num_attention_heads")?);
        let kv_heads = c.optional_int("num_key_value_heads")?.unwrap_or(heads);
        let head_dim = c.optional_int("head_dim")?;
        let mut faults = Vec::new();
        if head_dim.is_none() && width % heads != 0 {
            faults.push(format!(
                "hidden_size {width} must be divisible by num_attention_heads {heads}"
            ));
        }
        if heads % kv_heads != 0 {
            faults.push(format!(
                "num_attention_heads {heads} must be divisible by num_key_value_heads {kv_heads}"
            ));
        }
        c.refuse(faults)?;
        Ok(Self {
            c,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            has_qk_norm: false,
            is_fused: false,
            is_gemma: false,
            activation: Activation::Silu,
            scale: None,
            embedding_scale: None,
            embedding_dropout: 0.0,
            dropout: 0.0,
            layers: Vec::new(),
            partial_rotary_factor: None,
            may_turn_partly: false,
            original_max_positions: None,
            head_dim: head_dim.unwrap_or(width / heads),
            kv_heads,
        })
    }

    /// Layers with one kind of rotary positions, and a window by their number.
    pub(super) fn layers_with(
        &self,
        window: impl Fn(i64) -> Option<i64>,
    ) -> Result<Vec<LayerPositions>> {
        let c = self.c;
        let original = c.optional_int(ORIGINAL_POSITIONS.name)?;
        let context = RopeContext {
            head_dim: self.head_dim,
            default_theta: 10_000.0,
            theta: c.optional_number("rope_theta")?,
            partial_rotary_factor: self.partial_rotary_factor,
            max_positions: c.int("max_position_embeddings")?,
            original_max_positions: original.or(self.original_max_positions),
        };
        let rope = match Rope::read_config(&c.to_json(), &context) {
            Ok(rope) => rope,
            Err(faults) => return Err(c.refusal(faults)),
        };
        if rope.rotated() != self.head_dim && !self.may_turn_partly {
            let text = "partial_rotary_factor: all of a head turns in this family";
            return Err(c.refusal(vec![text.to_owned()]));
        }
        let rotary = Rc::new(Rotary::new(rope));
        let place = |i| LayerPositions { rotary: Rc::clone(&rotary), window: window(i) };
        Ok((0..c.int("num_hidden_layers")?).map(place).collect())
    }

    /// The layers of Qwen: from `max_window_layers` on with a window, where windows are on.
    pub(super) fn qwen_layers(&self) -> Result<Vec<LayerPositions>> {
        let c = self.c;
        let window = c
            .optional_int("sliding_window")?
            .filter(|_| matches!(c.flag("use_sliding_window"), Ok(true)));
        let first = c.int("max_window_layers")?;
        let types = c.layer_types(|i| window.is_some() && i >= first)?;
        if types.contains(&true) && window.is_none() {
            let text = "use_sliding_window is false, and layer_types has sliding_attention";
            return Err(c.refusal(vec![text.to_owned()]));
        }
        self.layers_with(|i| {
            let is_sliding = usize::try_from(i).ok().and_then(|i| types.get(i).copied());
            window.filter(|_| is_sliding == Some(true))
        })
    }

    /// The layers.
    pub(super) fn describe(self) -> Result<Architecture> {
        let c = self.c;
        let (width, vocab) = (c.int("hidden_size")?, c.int("vocab_size")?);
        let init = Init::Normal(c.number("initializer_range")?);
        let mut b = LayerBuilder::new("model");
        let padded = init.padded(c.padding_idx()?);
        let tokens = Embedding::new(&mut b, "embed_tokens.weight", (vocab, width), padded);
        let tokens = match self.embedding_scale {
            Some(scale) => tokens.scaled(scale),
            None => tokens,
        };
        let embed = Embed { dropout: self.embedding_dropout, ..Embed::new(tokens) };
        let mut all = vec![LayerSpec::new("embed_tokens", b, embed)];
        for (i, place) in self.layers.iter().enumerate() {
            all.push(self.block(i, place, init)?);
        }
        let mut b = LayerBuilder::new("");
        let norm = self.norm(&mut b, "model.norm", width)?;
        let projection = c.projection(&mut b, EMBEDDING, (vocab, width), init)?;
        let head = Head::new(Some(norm), projection, (vocab, width));
        all.push(LayerSpec::new("head", b, head));
        let ropes = self.layers.iter().map(|place| place.rotary.rope());
        // The layer with the shortest reach decides.
        let positions = ropes.clone().filter_map(Rope::reach).min();
        let shape = (width, c.int("num_attention_heads")?);
        let words =
            positions.map_or("any number of positions".into(), |n| format!("{n} positions"));
        let summary = c.summary(self.layers.len() as i64, shape, &words)?;
        let cache_ends_behind = ropes.filter_map(Rope::switches_behind).min();
        let cache_ends_behind = cache_ends_behind.filter(|_| self.may_turn_partly);
        let facts = c.facts(NAMES, summary)?;
        Ok(Architecture {
            layers: all,
            facts: ModelInfo { max_positions: positions, cache_ends_behind, ..facts },
        })
    }

    fn norm(&self, b: &mut LayerBuilder, name: &str, width: i64) -> Result<Norm> {
        let epsilon = self.c.number("rms_norm_eps")?;
        let make = if self.is_gemma { Norm::rms_plus_one } else { Norm::rms };
        Ok(make(b, name, width, epsilon))
    }

    fn block(&self, i: usize, place: &LayerPositions, init: Init) -> Result<LayerSpec> {
        let width = self.c.int("hidden_size")?;
        let mut b = LayerBuilder::new(format!("model.layers.{i}"));
        let input_norm = self.norm(&mut b, "input_layernorm", width)?;
        let attention = self.attention(&mut b, place, init)?;
        let (after_attention, before_mlp) = if self.is_gemma {
            let after = self.norm(&mut b, "post_attention_layernorm", width)?;
            (Some(after), self.norm(&mut b, "pre_feedforward_layernorm", width)?)
        } else {
            (None, self.norm(&mut b, "post_attention_layernorm", width)?)
        };
        let mlp = self.mlp(&mut b, init)?;
        let after_mlp = match self.is_gemma {
            true => Some(self.norm(&mut b, "post_feedforward_layernorm", width)?),
            false => None,
        };
        let attention =
            (Branch { after: after_attention, ..Branch::before(input_norm) }, attention);
        let mlp = (Branch { after: after_mlp, ..Branch::before(before_mlp) }, mlp);
        let block = Block { dropout: self.dropout, ..Block::new(width, attention, mlp) };
        Ok(LayerSpec::new(format!("layers.{i}"), b, block).block())
    }

    fn attention(
        &self,
        b: &mut LayerBuilder,
        place: &LayerPositions,
        init: Init,
    ) -> Result<Attention> {
        let (c, head_dim, kv_heads) = (self.c, self.head_dim, self.kv_heads);
        let (width, heads) = (c.int("hidden_size")?, c.int("num_attention_heads")?);
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        let mut layer = |name: &str, outputs: i64| {
            Linear::new(b, &format!("self_attn.{name}"), (width, outputs), self.qkv_bias, init)
        };
        let projections = match self.is_fused {
            true => Projections::InParts(layer("qkv_proj", wide + 2 * narrow)),
            false => Projections::Apart(
                layer("q_proj", wide),
                layer("k_proj", narrow),
                layer("v_proj", narrow),
            ),
        };
        let out = Linear::new(b, "self_attn.o_proj", (wide, width), self.out_bias, init);
        let qk_norm = match self.has_qk_norm {
            true => Some((
                self.norm(b, "self_attn.q_norm", head_dim)?,
                self.norm(b, "self_attn.k_norm", head_dim)?,
            )),
            false => None,
        };
        Ok(Attention {
            kv_heads,
            qk_norm,
            position: Position::Rotary(Rc::clone(&place.rotary)),
            scale: self.scale,
            window: place.window,
            dropout: c.number("attention_dropout")?,
            ..Attention::new("self_attn", projections, out, (heads, head_dim))
        })
    }

    fn mlp(&self, b: &mut LayerBuilder, init: Init) -> Result<Mlp> {
        let (width, inner) = (self.c.int("hidden_size")?, self.c.int("intermediate_size")?);
        let mut layer = |name: &str, shape: (i64, i64)| {
            Linear::new(b, &format!("mlp.{name}"), shape, self.mlp_bias, init)
        };
        let (gate, up) = match self.is_fused {
            true => (Gate::InUp, layer("gate_up_proj", (width, 2 * inner))),
            false => {
                (Gate::Layer(layer("gate_proj", (width, inner))), layer("up_proj", (width, inner)))
            }
        };
        Ok(Mlp {
            gate,
            up,
            down: layer("down_proj", (inner, width)),
            activation: self.activation,
            dropout: 0.0,
        })
    }
}
