//! The first layer: of GPT-2, token and learned position embeddings.

use super::{
    custom::CustomBlock,
    layer::{Block, BlockContext},
    unit::{Init, ParamSpec},
};
use crate::{
    error::Result,
    tensor::{Kind, Tensor},
};

/// The first layer of a model.
#[derive(Debug)]
pub enum Embedding {
    /// GPT-2's.
    Gpt2(Gpt2Embedding),
    /// That of a model whose layers its maker wrote.
    Custom(CustomBlock),
}

impl Embedding {
    /// `input_ids` `[B, T]` at positions `past..` to the input of the first block, without dropout.
    ///
    /// # Errors
    /// Those of whoever wrote it.
    pub fn lookup(&self, params: &[Tensor], input_ids: &Tensor, past: i64) -> Result<Tensor> {
        match self {
            Self::Gpt2(embedding) => Ok(embedding.lookup(params, input_ids, past)),
            Self::Custom(layer) => layer.forward(params, input_ids, BlockContext::default()),
        }
    }
}

/// The embedding of GPT-2: the sum of a row for the token and a row for its position.
#[derive(Debug)]
pub struct Gpt2Embedding {
    /// Dropout probability of the sum.
    pub dropout: f64,
}

impl Gpt2Embedding {
    /// The parameters: tokens `[V, C]`, positions `[P, C]`.
    pub fn specs(vocab: i64, positions: i64, hidden: i64, std: f64) -> Vec<ParamSpec> {
        vec![
            ParamSpec::new("transformer.wte.weight", &[vocab, hidden], Init::Normal(std)),
            ParamSpec::new("transformer.wpe.weight", &[positions, hidden], Init::Normal(std)),
        ]
    }

    /// `input_ids` `[B, T]` at positions `past..` to the sum of the embeddings, `[B, T, C]`.
    pub fn lookup(&self, params: &[Tensor], input_ids: &Tensor, past: i64) -> Tensor {
        let [tokens, positions] = params else { unreachable!("an embedding has two parameters") };
        let &[b, t] = input_ids.size().as_slice() else { unreachable!("input_ids are [B, T]") };
        let c = tokens.size()[1];
        tokens.index_select(0, &input_ids.reshape([-1])).view([b, t, c])
            + positions.narrow(0, past, t)
    }

    /// Adds the gradient of [`Gpt2Embedding::lookup`] at positions `0..` to `grads`, laid out as the
    /// parameters; `sum_grad` `[B, T, C]` is the gradient of its result.
    ///
    /// Written by hand: autograd would make a gradient of the size of the whole vocabulary, only to
    /// add it to the one that exists.
    pub fn backward(&self, grads: &[Tensor], input_ids: &Tensor, sum_grad: &Tensor) {
        let [tokens, positions] = grads else { unreachable!("an embedding has two parameters") };
        let c = tokens.size()[1];
        let t = sum_grad.size()[1];
        let rows = sum_grad.reshape([-1, c]).to_kind(tokens.kind());
        let _ = tokens.shallow_clone().index_add_(0, &input_ids.reshape([-1]), &rows);
        let by_position = sum_grad.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        let _ = positions.narrow(0, 0, t).g_add_(&by_position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Device, no_grad};

    #[test]
    fn the_gradient_by_hand_equals_autograds() {
        let cpu = (Kind::Float, Device::Cpu);
        let params = [Tensor::randn([5, 3], cpu), Tensor::randn([4, 3], cpu)]
            .map(|p| p.set_requires_grad(true));
        let ids = Tensor::from_slice(&[0i64, 2, 2, 4]).view([2, 2]);
        let embedding = Gpt2Embedding { dropout: 0.0 };
        let weight = Tensor::randn([2, 2, 3], cpu);
        (embedding.lookup(&params, &ids, 0) * &weight).sum(Kind::Float).backward();
        let grads = [Tensor::zeros([5, 3], cpu), Tensor::zeros([4, 3], cpu)];
        no_grad(|| embedding.backward(&grads, &ids, &weight));
        for (by_hand, param) in grads.iter().zip(&params) {
            assert!(by_hand.allclose(&param.grad(), 1e-6, 1e-7, false));
        }
    }
}
