//! What an adapter adds to a linear layer: `dropout(x) @ A' @ B' * scaling` (LoRA, Hu et al. 2021).
//!
//! In a training the products are part of the layer's own operation (`linear.rs`): they add to the
//! output in place, and their gradients go straight into those of the units. With magnitudes (DoRA, Liu
//! et al. 2024) the output is then scaled for each channel; the norms of the adapted matrix's rows are
//! taken as constants, as in the paper's section 4.3.

use crate::{
    bridge::{decode::Matrix, ops::product, texts::product_of_texts},
    error::Result,
    model::{adapters::Lora, params::LoraParam},
    tensor::{Kind, Tensor, no_grad},
};

/// The adapter of one layer in a pass.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    lora: Lora<LoraParam>,
    /// The input of the first matrix, where dropout makes it another than the layer's.
    dropped: Option<std::rc::Rc<Tensor>>,
}

/// What a branch keeps of its forward pass.
#[derive(Debug)]
pub(super) struct Kept {
    /// `x @ A' * scaling`, `[n, r]`.
    inner: Tensor,
}

impl Branch {
    /// The branch for an input, of which dropout draws a part while it `trains`.
    pub(super) fn new(lora: Lora<LoraParam>, x: &Tensor, trains: bool) -> Self {
        let drops = trains && lora.dropout > 0.0;
        let dropped = drops.then(|| std::rc::Rc::new(x.dropout(lora.dropout, true)));
        Self { lora, dropped }
    }

    /// Whether there are magnitudes.
    pub(super) fn has_magnitude(&self) -> bool {
        self.lora.magnitude.is_some()
    }

    /// The input with dropout.
    pub(super) fn dropped(&self) -> Option<&Tensor> {
        self.dropped.as_deref()
    }

    /// The branch for the input that has its dropout already.
    pub(super) fn of_dropped(&self) -> Self {
        Self { lora: self.lora.clone(), dropped: None }
    }

    /// Its matrices.
    pub(super) fn tensors(&self) -> [&Tensor; 2] {
        [&self.lora.a.tensor, &self.lora.b.tensor]
    }

    /// Whether its first matrix needs the input for its gradient.
    pub(super) fn keeps_input(&self) -> bool {
        self.lora.a.sink.is_some()
    }

    /// Adds its product to `y` in place.
    pub(super) fn add_to(&self, y: &Tensor, x: &Tensor) -> Result<Kept> {
        let x = self.dropped().unwrap_or(x);
        let [a, b] = self.tensors();
        let inner = x.f_mm(&a.f_tr()?)?.f_mul_scalar(self.lora.scaling)?;
        product(y, (&inner, &b.f_tr()?), 1.0, 1.0)?;
        Ok(Kept { inner })
    }

    /// Adds the gradients of its matrices for the gradient of the output; returns what the gradient of
    /// its input is made from, `[n, r]`. `x` is the layer's input.
    pub(super) fn add_gradients(
        &self,
        kept: &Kept,
        x: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let [_, b] = self.tensors();
        if let Some(sink) = &self.lora.b.sink {
            let factors = (grad.f_tr()?, &kept.inner);
            sink.with(|unit, i| unit.add_product(i, (&factors.0, factors.1), 1.0))?;
        }
        let inner = grad.f_mm(b)?.f_mul_scalar(self.lora.scaling)?;
        if let (Some(sink), Some(x)) = (&self.lora.a.sink, self.dropped().or(x)) {
            let factors = (inner.f_tr()?, x);
            sink.with(|unit, i| unit.add_product(i, (&factors.0, factors.1), 1.0))?;
        }
        Ok(inner)
    }

    /// The gradient of its input, `[n, in]`: a new tensor, or added to `sum`.
    pub(super) fn input_gradient(&self, inner: &Tensor, sum: Option<Tensor>) -> Result<Tensor> {
        let [a, _] = self.tensors();
        match sum {
            None => Ok(inner.f_mm(a)?),
            Some(sum) => {
                product(&sum, (inner, a), 1.0, 1.0)?;
                Ok(sum)
            }
        }
    }

    /// `y` with its product outside of a training, or where autograd makes the gradients; `texts` are
    /// the rows of each text, where they are several.
    pub(super) fn added(&self, y: &Tensor, x: &Tensor, texts: Option<&[i64]>) -> Result<Tensor> {
        let x = self.dropped().unwrap_or(x);
        let times =
            |x: &Tensor, matrix| product_of_texts(x, Matrix::ByOutputs(matrix), None, texts);
        let [a, b] = self.tensors();
        let inner = times(x, a)?.f_mul_scalar(self.lora.scaling)?;
        Ok(y.f_add(&times(&inner, b)?)?)
    }

    /// The factors of the output's channels: magnitudes over the norms of the adapted matrix's rows.
    pub(super) fn factors(&self, weight: &Tensor, input_dim: i64) -> Result<Option<Tensor>> {
        let Some(magnitude) = &self.lora.magnitude else { return Ok(None) };
        let norm = no_grad(|| {
            let tensor = |param: &LoraParam| param.tensor.shallow_clone();
            let Lora { a, b, rank, scaling, dropout, .. } = &self.lora;
            let (a, b, magnitude) = (tensor(a), tensor(b), None);
            let (rank, scaling, dropout) = (*rank, *scaling, *dropout);
            let lora = Lora { a, b, magnitude, rank, scaling, dropout };
            let matrix = lora.adapted(weight, input_dim)?;
            Ok::<_, crate::error::Error>(matrix.f_norm_scalaropt_dim(2, input_dim, false)?)
        })?;
        let magnitude = &magnitude.tensor;
        let factors = magnitude.f_to_kind(Kind::Float)?.f_div(&norm)?;
        Ok(Some(factors.f_to_kind(weight.kind())?))
    }
}
