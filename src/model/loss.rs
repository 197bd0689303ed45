//! Cross-entropy of the next token, in slices of the logits, with its gradient.
//!
//! A head with 50,257 rows makes logits larger than all other activations together. They are never
//! held whole: a slice of rows is multiplied, turned into losses and, in place, into its gradient,
//! and multiplied back (Liger Kernel's fused linear cross-entropy). The gradient for a mean over
//! the loss normalizer's targets is made in the forward pass, since the slice is at hand only there. Positions
//! without a target, such as padding and masked prompts, take no part.
//!
//! In 16 bits the matrices are multiplied in that format; losses and the gradient of the logits are
//! float32, as when transformers computes `logits.float()`.

use std::{fmt, rc::Rc};

use super::{params::Backward, unit_gradient::ParamSink};
use crate::{
    bridge::{autograd::own_gradient, ops::product},
    error::{Code, Error, Result},
    tensor::{Device, IGNORE_INDEX, Kind, Reduction, Tensor, no_grad},
    tensor_parallel::{LocalIds, VocabularyPart},
};

/// Bytes of logits held at a time on the CPU, where larger slices gain nothing, and elsewhere.
const SLICE_BYTES_CPU: i64 = 104 << 20;
const SLICE_BYTES_GPU: i64 = 512 << 20;

/// Which token each position should predict: the labels of Hugging Face, shifted.
#[derive(Debug)]
pub struct Targets {
    /// Token ids, `[B, T]`, -100 where there is none: the last position of each row, padding.
    ids: Tensor,
    /// The positions that have one, `[n]`, among B times T.
    positions: Tensor,
    /// Their token ids, `[n]`.
    scored: Tensor,
}

/// The loss of logits, float32 `[B, T, V]`, against targets, `[B, T]`: a mean over those that are
/// not -100, of which there is at least one.
#[derive(Clone)]
pub struct LossFunction(Rc<Loss>);

type Loss = dyn Fn(&Tensor, &Tensor) -> Result<Tensor>;

impl LossFunction {
    /// Takes a function whose result has one value.
    pub fn new(function: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + 'static) -> Self {
        Self(Rc::new(function))
    }

    /// The loss, a scalar.
    pub(super) fn call(&self, logits: &Tensor, targets: &Targets) -> Result<Tensor> {
        Ok((self.0)(logits, &targets.ids)?.f_reshape([])?)
    }
}

impl fmt::Debug for LossFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LossFunction(..)")
    }
}

impl Targets {
    /// Takes the token ids that the positions should predict, `[B, T]`; where they are not -100, the
    /// positions among B times T, `[n]`, and the ids there, `[n]`: known where they are made, so that
    /// the device need not be asked.
    pub fn new(ids: Tensor, positions: Tensor, scored: Tensor) -> Self {
        Self { ids, positions, scored }
    }

    /// Number of targets that count.
    pub fn count(&self) -> i64 {
        self.positions.numel() as i64
    }
}

/// The objective of training or evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'a> {
    /// The token that each position should predict.
    pub targets: &'a Targets,
    /// The gradient is that of the sum of the losses divided by this, the loss normalizer.
    pub loss_normalizer: f64,
    /// The loss, where it is not the cross-entropy of the targets.
    pub function: Option<&'a LossFunction>,
}

/// The inputs of the sliced loss's gradient, which the forward pass makes.
#[derive(Debug)]
struct LossGradient {
    loss_normalizer: f64,
    /// Where the gradient with respect to the projection `[V, C]` is added, in a format that may
    /// differ from the projection's; `None` where that is frozen.
    projection: Option<ParamSink>,
}

/// The projection to the vocabulary, `[V, C]`, and which of its rows they are where ranks divide them.
pub(super) type Projection<'a> = (&'a Tensor, Option<&'a VocabularyPart>);

/// The sum of the losses of `hidden` `[B, T, C]` through the projection, float64 scalar: the
/// cross-entropy of the targets in slices of the logits. By hand the gradients are made at once, for a backward pass that begins with one over the normalizer.
pub(super) fn sum_in_slices(
    hidden: &Tensor,
    (projection, part): Projection<'_>,
    backward: Backward,
    objective: Objective<'_>,
) -> Result<Tensor> {
    let Objective { targets, loss_normalizer, .. } = objective;
    let gradient = match backward {
        Backward::Autograd => None,
        Backward::ByHand(projection) => Some(LossGradient { loss_normalizer, projection }),
    };
    let width = hidden.size().last().copied().unwrap_or(1);
    let flat = hidden.f_detach()?.f_reshape([-1, width])?;
    let (sum, hidden_grad) =
        no_grad(|| linear_cross_entropy(&flat, (&projection.detach(), part), targets, gradient))?;
    if let Some(grad) = hidden_grad {
        let grad = grad.f_view_as(hidden)?;
        own_gradient(&[hidden], &sum, move |_| Ok(vec![Some(grad.shallow_clone())]))?;
    }
    Ok(sum)
}

/// The sum of the losses of whole logits `[B, T, V]`, which a graph may lead to, float64 scalar.
pub(super) fn sum_of_logits(logits: &Tensor, objective: Objective<'_>) -> Result<Tensor> {
    let Objective { targets, function, .. } = objective;
    if targets.count() == 0 {
        // A mean over nothing is NaN, and would be all of the sum.
        let none = Tensor::f_zeros([0i64; 0], (Kind::Double, logits.device()))?;
        own_gradient(&[logits], &none, |_| Ok(vec![None]))?;
        return Ok(none);
    }
    let exact = logits.f_to_kind(Kind::Float)?;
    let loss = match function {
        Some(function) => function.call(&exact, targets)?,
        None => cross_entropy(&exact, targets),
    };
    if logits.requires_grad() && !loss.requires_grad() {
        return Err(Error::new(Code::BadValue, "the loss does not depend on the model")
            .hint("it must be computed from the logits, outside of no_grad"));
    }
    Ok(loss.f_to_kind(Kind::Double)?.f_mul_scalar(targets.count())?)
}

/// Cross-entropy of `hidden @ projection.T` for `hidden` `[N, C]` and `projection` `[V, C]`, summed
/// over the targets, float64 scalar; with `gradient`, that of `hidden` `[N, C]` too. Positions without
/// a target are left out of all products.
fn linear_cross_entropy(
    hidden: &Tensor,
    projection: Projection<'_>,
    targets: &Targets,
    gradient: Option<LossGradient>,
) -> Result<(Tensor, Option<Tensor>)> {
    let rows = slice_rows(targets.count(), projection.0.size()[0], hidden.device());
    in_slices(hidden, projection, targets, gradient, rows)
}

/// [`linear_cross_entropy`] with slices of `rows` rows.
fn in_slices(
    hidden: &Tensor,
    (projection, vocabulary): Projection<'_>,
    targets: &Targets,
    gradient: Option<LossGradient>,
    rows: i64,
) -> Result<(Tensor, Option<Tensor>)> {
    let (n, positions) = (targets.count(), &targets.positions);
    let scored = hidden.f_index_select(0, positions)?;
    let ids = targets.scored.f_unsqueeze(1)?;
    let scored_grad = gradient.as_ref().map(|_| scored.f_empty_like()).transpose()?;
    let mut log_sum: Option<Tensor> = None;
    let buffers = Buffers::new(hidden, projection, rows)?;
    for start in (0..n).step_by(rows.max(1) as usize) {
        let len = rows.min(n - start);
        let part = |x: &Tensor| x.f_narrow(0, start, len);
        let of_slice = (part(&scored)?, part(&ids)?);
        let slice = Slice::forward(of_slice, (projection, vocabulary), buffers.first(len)?)?;
        let sum = slice.target_logs.f_sum(Kind::Double)?;
        log_sum = Some(log_sum.map_or_else(|| Ok(sum.shallow_clone()), |logs| logs.f_add(&sum))?);
        if let (Some(gradient), Some(scored_grad)) = (&gradient, &scored_grad) {
            slice.backward(projection, gradient, &part(scored_grad)?)?;
        }
    }
    drop((buffers, scored));
    let spread = |scored_grad: Tensor| -> Result<Tensor> {
        Ok(hidden.f_zeros_like()?.f_index_copy_(0, positions, &scored_grad)?)
    };
    let none = || Tensor::f_zeros([0i64; 0], (Kind::Double, hidden.device()));
    let loss_sum = log_sum.map_or_else(none, |logs| logs.f_neg())?;
    Ok((loss_sum, scored_grad.map(spread).transpose()?))
}

/// The mean cross-entropy of whole logits, float32 `[B, T, V]`, over the targets.
fn cross_entropy(logits: &Tensor, targets: &Targets) -> Tensor {
    let vocab = logits.size().last().copied().unwrap_or(1);
    logits.reshape([-1, vocab]).cross_entropy_loss::<Tensor>(
        &targets.ids.reshape([-1]),
        None,
        Reduction::Mean,
        IGNORE_INDEX,
        0.0,
    )
}

/// Where the logits of a slice are, `[n, W]`, of which the first V columns are theirs. One buffer
/// serves all slices: a fresh one would be mapped and cleared by the kernel each time.
struct Buffers {
    vocab: i64,
    /// In the format of the model.
    logits: Tensor,
    /// float32; of a float32 model the same memory.
    exact: Tensor,
}

impl Buffers {
    /// For slices of `rows` rows.
    fn new(hidden: &Tensor, projection: &Tensor, rows: i64) -> Result<Self> {
        let (vocab, device) = (projection.size()[0], hidden.device());
        let width = row_width(vocab, device);
        let logits = Tensor::f_empty([rows, width], (hidden.kind(), device))?;
        let exact = match hidden.kind() {
            Kind::Float => logits.shallow_clone(),
            _ => Tensor::f_empty([rows, width], (Kind::Float, device))?,
        };
        Ok(Self { vocab, logits, exact })
    }

    fn first(&self, rows: i64) -> Result<Self> {
        let first = |x: &Tensor| x.f_narrow(0, 0, rows);
        Ok(Self { vocab: self.vocab, logits: first(&self.logits)?, exact: first(&self.exact)? })
    }

    /// The columns of the vocabulary.
    fn columns(&self, buffer: &Tensor) -> Result<Tensor> {
        Ok(buffer.f_narrow(1, 0, self.vocab)?)
    }

    /// Turns the logits of the first `vocab` columns into log-probabilities, float32. The kernels read a row, then write it: they may
    /// write in place.
    fn log_softmax(&mut self, vocab: i64) -> Result<()> {
        let width = self.logits.size()[1];
        if width > vocab {
            let rest = self.logits.f_narrow(1, vocab, width - vocab)?;
            let _ = rest.shallow_clone().f_fill_(f64::NEG_INFINITY)?;
        }
        // CUDA's kernel reads float16 itself.
        let reads_half = self.logits.kind() == Kind::Half && self.logits.device() != Device::Cpu;
        if self.logits.kind() == Kind::Float || reads_half {
            let _ = self.logits.f_internal_log_softmax_out(&self.exact, 1, reads_half)?;
        } else {
            self.exact.f_copy_(&self.logits)?;
            let _ = self.exact.f_internal_log_softmax_out(&self.exact, 1, false)?;
        }
        Ok(())
    }

    /// The logarithms of the sums of the exponentials of `vocab` logits, `[n, 1]`, which become
    /// log-probabilities.
    fn normalized(&mut self, vocab: i64) -> Result<Tensor> {
        let highest = |x: &Tensor| x.f_amax([1], true)?.f_to_kind(Kind::Float);
        let logit = highest(&self.logits.f_narrow(1, 0, vocab)?)?;
        self.log_softmax(vocab)?;
        Ok(logit.f_sub(&highest(&self.exact)?)?)
    }

    /// Turns log-probabilities into the gradient of the logits times `factor`, softmax - onehot, in the
    /// format of the model; it is `at_target` in the columns `ids`.
    fn logits_grad(&mut self, ids: &Tensor, at_target: &Tensor, factor: f64) -> Result<Tensor> {
        let (kind, device) = (self.logits.kind(), self.logits.device());
        let mut columns = self.columns(&self.logits)?;
        if kind == Kind::BFloat16 && device != Device::Cpu {
            // One pass, which rounds as it writes.
            let _ = self.exact.f_exp_out(&self.logits)?;
            let _ = columns.f_scatter_(1, ids, &at_target.f_to_kind(kind)?)?;
            return Ok(columns);
        }
        let mut exact = self.exact.f_exp_()?;
        let _ = self.columns(&exact)?.f_scatter_(1, ids, at_target)?;
        match (kind, device) {
            (Kind::Float, _) => {}
            (_, Device::Cpu) => self.logits.f_copy_(&exact.f_mul_scalar_(factor)?)?,
            _ => {
                let factor = Tensor::f_full([0i64; 0], factor, (Kind::Float, device))?;
                let _ = exact.f_mul_out(&self.logits, &factor)?;
            }
        }
        Ok(columns)
    }
}

/// A slice of the rows: what its losses and their gradients share.
struct Slice {
    hidden: Tensor,
    /// The columns of the targets, `[n, 1]`.
    ids: Tensor,
    /// Of which of them another rank has the column, `[n, 1]`, where ranks divide the columns.
    elsewhere: Option<Tensor>,
    /// The log-probabilities.
    buffers: Buffers,
    /// Those of the targets, `[n, 1]`.
    target_logs: Tensor,
}

impl Slice {
    fn forward(
        (hidden, ids): (Tensor, Tensor),
        (projection, part): Projection<'_>,
        mut buffers: Buffers,
    ) -> Result<Self> {
        let logits = buffers.columns(&buffers.logits)?;
        let _ = hidden.f_mm_out(&logits, &projection.f_transpose(0, 1)?)?;
        let Some(part) = part else {
            buffers.log_softmax(buffers.vocab)?;
            let target_logs = buffers.exact.f_gather(1, &ids, false)?;
            return Ok(Self { hidden, ids, elsewhere: None, buffers, target_logs });
        };
        let own = buffers.normalized(part.here().count)?;
        let local = LocalIds::of(&ids, part.here())?;
        let target_logits = buffers.exact.f_gather(1, &local.ids, false)?.f_add(&own)?;
        let (all, target_logits) = part.over_ranks(&own, &target_logits, &local)?;
        let _ = buffers.exact.f_add_(&own.f_sub(&all)?)?;
        let (ids, elsewhere) = (local.ids, Some(local.elsewhere));
        Ok(Self { hidden, ids, elsewhere, buffers, target_logs: target_logits.f_sub(&all)? })
    }

    /// The gradient of the logits of the targets, or of what stands in their place.
    fn at_target(&mut self) -> Result<Tensor> {
        let at_target = self.target_logs.f_expm1_()?;
        let Some(elsewhere) = &self.elsewhere else { return Ok(at_target) };
        let no_target = self.buffers.exact.f_gather(1, &self.ids, false)?.f_exp()?;
        Ok(no_target.f_where_self(elsewhere, &at_target)?)
    }

    /// Writes the gradient for the rows to `hidden_grad`, and adds that for the projection.
    fn backward(
        mut self,
        projection: &Tensor,
        LossGradient { loss_normalizer, projection: sink }: &LossGradient,
        hidden_grad: &Tensor,
    ) -> Result<()> {
        let scale = 1.0 / *loss_normalizer;
        // In fp16 the loss scale keeps small probabilities within the range. Otherwise the products
        // multiply with it, which rounds nothing; on the CPU those in 16 bits cannot.
        let (factor, scale) = match (projection.kind(), projection.device()) {
            (Kind::Half, _) | (Kind::BFloat16, Device::Cpu) => (scale, 1.0),
            _ => (1.0, scale),
        };
        let at_target = self.at_target()?;
        let logits_grad = self.buffers.logits_grad(&self.ids, &at_target, factor)?;
        product(hidden_grad, (&logits_grad, projection), 0.0, scale)?;
        let Some(sink) = sink else { return Ok(()) };
        let factors = (logits_grad.f_tr()?, self.hidden);
        sink.with(|unit, i| unit.add_product(i, (&factors.0, &factors.1), scale))
    }
}

/// Elements of a row of logits in memory. cuBLAS has its fast kernels for rows that begin at a
/// multiple of 16 bytes.
pub(super) fn row_width(vocab: i64, device: Device) -> i64 {
    if device == Device::Cpu { vocab } else { (vocab as u64).next_multiple_of(64) as i64 }
}

/// Rows in a slice: equal slices of about the allowed size.
pub(super) fn slice_rows(n: i64, vocab: i64, device: Device) -> i64 {
    let bytes = if device == Device::Cpu { SLICE_BYTES_CPU } else { SLICE_BYTES_GPU };
    let most = (bytes / (4 * vocab)).max(1);
    let slices = ((n + most - 1) / most).max(1);
    (n + slices - 1) / slices
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::model::{
        FlatUnit, Init, ParamSpec,
        param_spec::ParamPlace,
        unit_gradient::{Sink, UnitGradients},
    };

    /// A unit of a projection of this shape, where its gradient goes, and that gradient at the end.
    struct OneMatrix {
        units: Rc<[FlatUnit]>,
        sink: Sink,
    }

    impl OneMatrix {
        fn new(shape: &[i64]) -> Self {
            let spec = ParamSpec::new("lm_head.weight", shape, Init::Zeros);
            let units: Rc<[FlatUnit]> =
                Rc::new([FlatUnit::zeros(vec![spec], Device::Cpu).unwrap()]);
            let sink = Sink::new(&units, Kind::Float);
            Self { units, sink }
        }

        fn gradient(&self, loss_normalizer: f64) -> LossGradient {
            let place = ParamPlace { unit: 0, index: 0 };
            LossGradient { loss_normalizer, projection: Some(self.sink.of(place)) }
        }

        fn made(self) -> Tensor {
            let step = UnitGradients::new(&self.units, Kind::Float);
            let step = Rc::new(RefCell::new(step));
            self.sink.turn_to(&step).unwrap();
            step.borrow_mut().open(0).unwrap();
            let made = step.borrow_mut().take(0).unwrap().complete();
            self.units[0].views(&made.unwrap()).remove(0)
        }
    }

    #[test]
    fn without_a_target_nothing_is_lost_and_nothing_learned() {
        let ids = Tensor::full([1, 3], IGNORE_INDEX, (Kind::Int64, Device::Cpu));
        let none = || Tensor::from_slice::<i64>(&[]);
        let targets = Targets::new(ids, none(), none());
        let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let projection = OneMatrix::new(&[5, 2]);
        let gradient = Some(projection.gradient(1.0));
        let (loss_sum, hidden_grad) =
            linear_cross_entropy(&ones([3, 2]), (&ones([5, 2]), None), &targets, gradient).unwrap();
        let sum = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
        let learned = [hidden_grad.unwrap(), projection.made()];
        assert_eq!((sum(&loss_sum), learned.map(|x| sum(&x))), (0.0, [0.0; 2]));
    }

    #[test]
    fn slices_are_equal_and_as_large_as_allowed() {
        let most = SLICE_BYTES_CPU / 4 / 50257;
        assert_eq!(slice_rows(most, 50257, Device::Cpu), most);
        assert_eq!(slice_rows(most + 1, 50257, Device::Cpu), (most + 2) / 2);
        assert_eq!(slice_rows(3, i64::MAX / 8, Device::Cpu), 1);
    }

    /// Against libtorch's own cross_entropy; float32 sums, hence 1e-5.
    #[test]
    fn slices_give_the_loss_and_gradients_of_the_whole() {
        let cpu = (Kind::Float, Device::Cpu);
        let hidden = Tensor::randn([40, 8], cpu).set_requires_grad(true);
        let vocab = 70;
        let projection = Tensor::randn([vocab, 8], cpu).set_requires_grad(true);
        let ids = Tensor::randint(vocab, [4, 10], (Kind::Int64, Device::Cpu));
        let _ = ids.narrow(0, 1, 1).narrow(1, 5, 5).fill_(IGNORE_INDEX);
        let positions: Vec<i64> = (0..15).chain(20..40).collect();
        let positions = Tensor::from_slice(&positions);
        let scored = ids.reshape([-1]).index_select(0, &positions);
        let targets = Targets::new(ids, positions, scored);
        let logits = hidden.matmul(&projection.transpose(0, 1));
        let losses = logits.log_softmax(1, Kind::Float).nll_loss(&targets.ids.reshape([-1]));
        // nll_loss is a mean over the targets.
        let whole = losses * targets.count() as f64;
        (&whole / 7.0).backward();
        let made = OneMatrix::new(&[vocab, 8]);
        let gradient = made.gradient(7.0);
        let (loss_sum, hidden_grad) = no_grad(|| {
            let matrix = (&projection.detach(), None);
            in_slices(&hidden.detach(), matrix, &targets, Some(gradient), 16)
        })
        .unwrap();
        let projection_grad = made.made();
        let relative = (loss_sum.double_value(&[]) / whole.double_value(&[]) - 1.0).abs();
        assert!(relative < 1e-5, "{relative}");
        // Relative to the size of the whole: single entries are sums that cancel.
        let off = |a: &Tensor, b: &Tensor| ((a - b).norm() / b.norm()).double_value(&[]);
        let (hidden_off, projection_off) =
            (off(&hidden_grad.unwrap(), &hidden.grad()), off(&projection_grad, &projection.grad()));
        assert!(hidden_off < 1e-5 && projection_off < 1e-5, "{hidden_off} {projection_off}");
    }
}
