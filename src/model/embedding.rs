//! The first layer: of GPT-2, token and learned position embeddings.

use super::{
    custom::CustomBlock,
    layer::{Block, BlockContext},
    unit::{Init, ParamSpec},
    unit_gradient::UnitGradient,
};
use crate::{error::Result, tensor::Tensor};

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

    /// Adds the gradient of [`Gpt2Embedding::lookup`] at positions `0..` to that of its unit;
    /// `sum_grad` `[B, T, C]` is the gradient of its result.
    ///
    /// Written by hand: autograd would make a gradient of the size of the whole vocabulary, only to
    /// add it to the one that exists.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn backward(
        &self,
        gradient: &mut UnitGradient,
        input_ids: &Tensor,
        sum_grad: &Tensor,
    ) -> Result<()> {
        let &[_, _, c] = sum_grad.size().as_slice() else { unreachable!("it is [B, T, C]") };
        let tokens = gradient.open(0)?.shallow_clone();
        let rows = sum_grad.f_reshape([-1, c])?.f_to_kind(tokens.kind())?;
        let _ = tokens.shallow_clone().f_index_add_(0, &input_ids.f_reshape([-1i64])?, &rows)?;
        gradient.add_rows(1, sum_grad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::FlatUnit,
        tensor::{Device, Kind, no_grad},
    };

    #[test]
    fn the_gradient_by_hand_equals_autograds() {
        let cpu = (Kind::Float, Device::Cpu);
        let params = [Tensor::randn([5, 3], cpu), Tensor::randn([4, 3], cpu)]
            .map(|p| p.set_requires_grad(true));
        let ids = Tensor::from_slice(&[0i64, 2, 2, 4]).view([2, 2]);
        let embedding = Gpt2Embedding { dropout: 0.0 };
        let unit = FlatUnit::zeros(Gpt2Embedding::specs(5, 4, 3, 0.1), Device::Cpu).unwrap();
        let weight = Tensor::randn([2, 2, 3], cpu);
        (embedding.lookup(&params, &ids, 0) * &weight).sum(Kind::Float).backward();
        let mut gradient = UnitGradient::new(&unit, Kind::Float).unwrap();
        no_grad(|| embedding.backward(&mut gradient, &ids, &weight)).unwrap();
        for (by_hand, param) in unit.views(&gradient.complete().unwrap()).iter().zip(&params) {
            assert!(by_hand.allclose(&param.grad(), 1e-6, 1e-7, false));
        }
    }
}
