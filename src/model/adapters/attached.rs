//! What an adapter has beside a parameter of a layer.

use crate::{
    error::Result,
    model::{
        param_id::ParamId,
        param_spec::{ParamPlace, ParamSpec},
    },
    tensor::{Kind, Tensor},
    tensor_parallel::Split,
};

/// The parameters that an adapter has beside one of a layer; `P` is what tells them.
#[derive(Debug, Clone)]
pub(in crate::model) struct Attached<P = ParamPlace> {
    /// The parameter of the layer.
    pub(in crate::model) target: ParamId,
    pub(in crate::model) part: Part<P>,
}

/// What an adapter does with a parameter.
#[derive(Debug, Clone)]
pub(in crate::model) enum Part<P> {
    /// Something is added to the product with the matrix.
    Lora(Lora<P>),
    /// A copy is used in its place.
    Saved(P),
}

/// The matrices beside the matrix of a linear layer.
#[derive(Debug, Clone)]
pub(in crate::model) struct Lora<P> {
    /// `[r, in]`.
    pub(in crate::model) a: P,
    /// `[out, r]`.
    pub(in crate::model) b: P,
    /// DoRA's, `[out]`.
    pub(in crate::model) magnitude: Option<P>,
    pub(in crate::model) rank: i64,
    /// The factor of the product of the two.
    pub(in crate::model) scaling: f64,
    /// Of the input of the first.
    pub(in crate::model) dropout: f64,
}

impl<P> Attached<P> {
    /// The same with parameters told in another way.
    pub(in crate::model) fn map<Q>(&self, mut each: impl FnMut(&P) -> Q) -> Attached<Q> {
        let part = match &self.part {
            Part::Saved(param) => Part::Saved(each(param)),
            Part::Lora(lora) => Part::Lora(Lora {
                a: each(&lora.a),
                b: each(&lora.b),
                magnitude: lora.magnitude.as_ref().map(each),
                rank: lora.rank,
                scaling: lora.scaling,
                dropout: lora.dropout,
            }),
        };
        Attached { target: self.target, part }
    }

    /// Its parameters.
    pub(in crate::model) fn params(&self) -> impl Iterator<Item = &P> {
        let all = match &self.part {
            Part::Saved(param) => [Some(param), None, None],
            Part::Lora(lora) => [Some(&lora.a), Some(&lora.b), lora.magnitude.as_ref()],
        };
        all.into_iter().flatten()
    }
}

impl Attached {
    /// How ranks that share the layer divide its parameters, where they divide the target like this: the
    /// matrix on the side of the parts has parts, and each rank makes a part of the other's gradient.
    pub(in crate::model) fn splits(
        &self,
        target: &Split,
        spec: &ParamSpec,
    ) -> Vec<(ParamPlace, Split)> {
        let (lora, dim, blocks) = match (&self.part, target) {
            (Part::Saved(param), _) => return vec![(*param, target.clone())],
            (Part::Lora(lora), Split::Even { dim, blocks }) => (lora, *dim, blocks),
            (Part::Lora(_), _) => return Vec::new(),
        };
        let even = |dim| Split::Even { dim, blocks: blocks.clone() };
        let (a, b) = match dim as i64 == spec.input_dim() {
            true => (even(1), Split::Summed),
            false => (Split::Summed, even(0)),
        };
        vec![(lora.a, a), (lora.b, b)]
    }
}

impl Lora<Tensor> {
    /// The matrix with the product that is added to it, in float32; `inputs` is the dimension of its
    /// inputs.
    pub(in crate::model) fn adapted(&self, weight: &Tensor, inputs: i64) -> Result<Tensor> {
        let float = |x: &Tensor| x.f_to_kind(Kind::Float);
        let (a, b) = (float(&self.a)?, float(&self.b)?);
        let delta = b.f_mm(&a)?.f_mul_scalar(self.scaling)?;
        let delta = if inputs == 0 { delta.f_tr()? } else { delta };
        Ok(float(weight)?.f_add(&delta)?)
    }
}
