//! A block: attention and an MLP, each added to the hidden states between norms that differ by family.

use super::{Attention, Mlp, Norm, RelativeBias, dropout};
use crate::{
    bridge::memory::{self, count_as},
    error::Result,
    model::{
        cost::{LayerCost, Operation, Tape, Workload},
        layer::{AttentionFacts, Context, Flow, Layer},
        param_id::ParamId,
        params::Params,
        profile::ModuleProfile,
    },
    tensor::Tensor,
    tensor_parallel::Split,
};

/// One block: hidden states `[B, T, C]` to hidden states of the same shape.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) width: i64,
    /// Makes the bias that this block and those after it add to their scores.
    pub(crate) relative: Option<RelativeBias>,
    pub(crate) attention: (Branch, Attention),
    /// Attention to what an encoder made.
    pub(crate) cross: Option<(Branch, Attention)>,
    pub(crate) mlp: (Branch, Mlp),
    /// Of what a branch adds.
    pub(crate) dropout: f64,
    /// Whether the block is one of the decoder behind an encoder.
    pub(crate) is_decoder: bool,
}

/// The norms around what is added to the hidden states.
#[derive(Debug, Default)]
pub(crate) struct Branch {
    /// Of the input.
    pub(crate) before: Option<Norm>,
    /// Of the result, before it is added.
    pub(crate) after: Option<Norm>,
    /// Of the sum.
    pub(crate) of_sum: Option<Norm>,
    /// Whether the result is added to the input's norm, and not to the input.
    pub(crate) adds_to_norm: bool,
}

impl Block {
    /// A block without dropout.
    pub(crate) fn new(width: i64, attention: (Branch, Attention), mlp: (Branch, Mlp)) -> Self {
        let (relative, cross, dropout, is_decoder) = (None, None, 0.0, false);
        Self { width, relative, attention, cross, mlp, dropout, is_decoder }
    }
}

impl Branch {
    /// The usual form: a norm of the input.
    pub(crate) fn before(norm: Norm) -> Self {
        Self { before: Some(norm), ..Self::default() }
    }

    fn run(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        (context, probability): (&mut Context<'_>, f64),
        module: impl FnOnce(&Tensor, &mut Context<'_>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let norm = |norm: &Option<Norm>, x: Tensor, context: &Context<'_>| match norm {
            Some(norm) => norm.forward(p, &x, context),
            None => Ok(x),
        };
        let input = norm(&self.before, x.shallow_clone(), context)?;
        let made = module(&input, context)?;
        let made = norm(&self.after, made, context)?;
        let past = if self.adds_to_norm { &input } else { x };
        let sum = past.f_add(&dropout(made, probability, context.train))?;
        norm(&self.of_sum, sum, context)
    }

    /// Adds the cost of the branch around `module`, which is told whether it keeps its input.
    fn cost(
        &self,
        work: &Workload,
        tape: &mut Tape,
        (width, probability, keeps_input): (i64, f64, bool),
        module: impl FnOnce(&mut Tape, bool) -> ModuleProfile,
    ) -> Vec<ModuleProfile> {
        let mut profiles = Vec::new();
        if !self.adds_to_norm {
            tape.branch();
        }
        if let Some(norm) = &self.before {
            profiles.push(norm.cost(work, tape, keeps_input));
        }
        if self.adds_to_norm {
            tape.branch();
        }
        profiles.push(module(tape, keeps_input || self.before.is_some()));
        if let Some(norm) = &self.after {
            profiles.push(norm.cost(work, tape, true));
        }
        if probability > 0.0 {
            let (kept, gradient) = (work.mask_bytes(width), work.bytes(width));
            tape.push(Operation { kept, gradient, ..Operation::default() });
        }
        tape.join();
        if let Some(norm) = &self.of_sum {
            profiles.push(norm.cost(work, tape, true));
        }
        profiles
    }
}

impl Layer for Block {
    fn forward(&self, params: &Params<'_>, flow: &Flow, context: &mut Context<'_>) -> Result<Flow> {
        let _counting = count_as(memory::Kind::Activations)?;
        let tokens = params.all_tokens(flow.hidden.size()[1]);
        // A bias by distance is that of the longest text, of which each has the first part.
        let longest = context.texts(tokens).and_then(|texts| texts.into_iter().max());
        let of_tokens = (longest.unwrap_or(tokens), flow.hidden.device());
        let is_sparse = self.attention.1.is_sparse(context);
        let bias = |bias: &RelativeBias| match context.decode_rows() {
            None if is_sparse => bias.by_distance(params, of_tokens),
            None => bias.bias(params, of_tokens, context),
            Some(rows) => bias.bias_of_rows(params, rows),
        };
        let made = self.relative.as_ref().map(bias).transpose()?;
        let (bias, encoded) = (made.as_ref().or(flow.bias.as_ref()), flow.encoded.as_ref());
        let (branch, attention) = &self.attention;
        let how = (&mut *context, self.dropout);
        let mut x = branch.run(params, &flow.hidden, how, |x, context| {
            attention.forward(params, x, (bias, None), context)
        })?;
        if let Some((branch, attention)) = &self.cross {
            x = branch.run(params, &x, (&mut *context, self.dropout), |x, context| {
                attention.forward(params, x, (None, encoded), context)
            })?;
        }
        let (branch, mlp) = &self.mlp;
        let x = branch.run(params, &x, (&mut *context, self.dropout), |x, context| {
            mlp.forward(params, x, context)
        })?;
        let flow = flow.with_hidden(x);
        Ok(if made.is_some() { Flow { bias: made, ..flow } } else { flow })
    }

    fn splits(&self) -> Vec<(ParamId, Split)> {
        let attentions = [Some(&self.attention), self.cross.as_ref()];
        let of_attentions = attentions.into_iter().flatten().flat_map(|(_, part)| part.splits());
        let relative = self.relative.iter().flat_map(RelativeBias::splits);
        of_attentions.chain(self.mlp.1.splits()).chain(relative).collect()
    }

    fn attention(&self) -> Option<AttentionFacts> {
        Some(self.attention.1.facts())
    }

    fn has_mlp(&self) -> bool {
        true
    }

    fn divisible(&self) -> Vec<(&'static str, i64)> {
        let attention = &self.attention.1;
        vec![
            ("attention heads", attention.heads),
            ("heads of keys and values", attention.kv_heads),
            ("inner activations", self.mlp.1.width()),
        ]
    }

    fn cost(&self, work: &Workload) -> Option<LayerCost> {
        let work = &if self.is_decoder { work.of_decoder() } else { *work };
        let (between, mut tape) = (&work.between(), Tape::new());
        let (branch, attention) = &self.attention;
        let how = |keeps_input| (self.width, self.dropout, keeps_input);
        let mut modules = Vec::new();
        let is_sparse = self.attention.1.is_sparse_in(work);
        modules.extend(self.relative.as_ref().map(|bias| bias.cost(work, &mut tape, is_sparse)));
        modules.extend(branch.cost(between, &mut tape, how(false), |tape, keeps_input| {
            attention.cost(work, tape, keeps_input)
        }));
        if let Some((branch, attention)) = &self.cross {
            modules.extend(branch.cost(between, &mut tape, how(true), |tape, keeps_input| {
                attention.cost(work, tape, keeps_input)
            }));
        }
        let (branch, mlp) = &self.mlp;
        modules.extend(branch.cost(between, &mut tape, how(true), |tape, keeps_input| {
            mlp.cost(work, tape, keeps_input)
        }));
        let profile = ModuleProfile::new("", "Block").with(modules);
        Some(tape.cost(profile, between.bytes(self.width)))
    }

    fn draws(&self) -> bool {
        let cross = self.cross.as_ref().map_or(0.0, |(_, attention)| attention.dropout);
        let all = [self.dropout, self.attention.1.dropout, cross, self.mlp.1.dropout];
        all.iter().any(|&probability| probability > 0.0)
    }
}
