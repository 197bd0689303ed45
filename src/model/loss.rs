//! Cross-entropy of the next token, in slices of the logits, with its gradient.
//!
//! A head with 50,257 rows makes logits larger than all other activations together. They are never
//! held whole: a slice of rows is multiplied, turned into losses and, in place, into its gradient,
//! and multiplied back (Liger Kernel's fused linear cross-entropy). The gradient for a mean over
//! `nominal` targets is made in the forward pass, since the slice is at hand only there.
//!
//! In 16 bits the matrices are multiplied in that format; losses and the gradient of the logits are
//! float32, as when transformers computes `logits.float()`.

use std::{fmt, rc::Rc};

use crate::{
    error::Result,
    tensor::{Device, IGNORE_INDEX, Kind, Reduction, Tensor},
};

/// Bytes of logits held at a time on the CPU, where larger slices gain nothing, and elsewhere.
const SLICE_BYTES_CPU: i64 = 104 << 20;
const SLICE_BYTES_GPU: i64 = 512 << 20;

/// Which token each position should predict: the labels of Hugging Face, shifted.
#[derive(Debug)]
pub struct Targets {
    /// Token ids, `[B * T]`, -100 where there is none: the last position of each row, padding.
    ids: Tensor,
    /// How many of them count.
    count: i64,
    /// B and T.
    size: [i64; 2],
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
        Ok((self.0)(logits, &targets.ids.f_view(targets.size)?)?.f_reshape([])?)
    }
}

impl fmt::Debug for LossFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LossFunction(..)")
    }
}

impl Targets {
    /// Takes the token ids that the positions should predict, `[B, T]`, and how many of them are not
    /// -100: known where they are made, so that the device need not be asked.
    pub fn new(ids: &Tensor, count: i64) -> Self {
        let size = [ids.size()[0], ids.size()[1]];
        Self { ids: ids.reshape([-1]), count, size }
    }

    /// Number of targets that count.
    pub fn count(&self) -> i64 {
        self.count
    }
}

/// What the gradient of the loss needs to be made in the forward pass.
#[derive(Debug, Clone, Copy)]
pub struct LossGradient<'a> {
    /// The gradient is that of the sum of the losses divided by this.
    pub nominal: f64,
    /// Where the gradient with respect to the projection is written, contiguous `[V, C]`; its format
    /// may differ from the projection's.
    pub projection: &'a Tensor,
}

/// Cross-entropy of `hidden @ projection.T` for `hidden` `[N, C]` and `projection` `[V, C]`, summed
/// over the targets, float64 scalar; with `gradient`, that of `hidden` `[N, C]` too.
pub(super) fn linear_cross_entropy(
    hidden: &Tensor,
    projection: &Tensor,
    targets: &Targets,
    gradient: Option<LossGradient<'_>>,
) -> (Tensor, Option<Tensor>) {
    let rows = slice_rows(hidden.size()[0], projection.size()[0], hidden.device());
    in_slices(hidden, projection, targets, gradient, rows)
}

/// [`linear_cross_entropy`] with slices of `rows` rows.
fn in_slices(
    hidden: &Tensor,
    projection: &Tensor,
    targets: &Targets,
    gradient: Option<LossGradient<'_>>,
    rows: i64,
) -> (Tensor, Option<Tensor>) {
    let (n, vocab) = (hidden.size()[0], projection.size()[0]);
    let hidden_grad = gradient.map(|_| hidden.empty_like());
    let mut loss_sum = Tensor::zeros([], (Kind::Double, hidden.device()));
    // One buffer for all slices: a fresh one would be mapped and cleared by the kernel each time.
    let logits = Tensor::empty([rows, vocab], (hidden.kind(), hidden.device()));
    let mut start = 0;
    while start < n {
        let len = rows.min(n - start);
        let slice = Slice::forward(
            hidden.narrow(0, start, len),
            targets.ids.narrow(0, start, len),
            projection,
            &logits.narrow(0, 0, len),
        );
        loss_sum += slice.losses.sum(Kind::Double);
        if let (Some(gradient), Some(hidden_grad)) = (gradient, &hidden_grad) {
            slice.backward(projection, gradient, &hidden_grad.narrow(0, start, len), start == 0);
        }
        start += len;
    }
    (loss_sum, hidden_grad)
}

/// The mean cross-entropy of whole logits, float32 `[B, T, V]`, over the targets.
pub(super) fn cross_entropy(logits: &Tensor, targets: &Targets) -> Tensor {
    let vocab = logits.size().last().copied().unwrap_or(1);
    logits.reshape([-1, vocab]).cross_entropy_loss::<Tensor>(
        &targets.ids,
        None,
        Reduction::Mean,
        IGNORE_INDEX,
        0.0,
    )
}

/// A slice of the rows: what its losses and their gradients share.
struct Slice {
    hidden: Tensor,
    /// Target ids `[n, 1]`, 0 where there is none.
    ids: Tensor,
    /// Which rows have a target, `[n, 1]`.
    counts: Tensor,
    /// `[n, V]`, in the format of the model; with float32 what holds the next.
    logits: Tensor,
    /// `[n, V]`, float32.
    log_probabilities: Tensor,
    /// `[n, 1]`, 0 where there is no target.
    losses: Tensor,
}

impl Slice {
    /// `logits` `[n, V]` is where it computes.
    fn forward(hidden: Tensor, ids: Tensor, projection: &Tensor, logits: &Tensor) -> Self {
        let ids = ids.unsqueeze(1);
        let counts = ids.not_equal(IGNORE_INDEX);
        let ids = ids.clamp_min(0);
        let logits = hidden.mm_out(logits, &projection.transpose(0, 1));
        let exact = logits.to_kind(Kind::Float);
        // The CPU's kernel reads a whole row before it writes it: it may write in place.
        let onto =
            if exact.device() == Device::Cpu { exact.shallow_clone() } else { exact.empty_like() };
        let log_probabilities = exact.internal_log_softmax_out(&onto, 1, false);
        let losses = -log_probabilities.gather(1, &ids, false) * &counts;
        Self { hidden, ids, counts, logits, log_probabilities, losses }
    }

    /// Writes the gradient for the rows to `hidden_grad`, and that for the projection over
    /// (`first`) or onto what is there.
    fn backward(
        mut self,
        projection: &Tensor,
        gradient: LossGradient<'_>,
        hidden_grad: &Tensor,
        first: bool,
    ) {
        // softmax - onehot
        let weight = self.counts.to_kind(Kind::Float) / gradient.nominal;
        let mut logits_grad = self.log_probabilities.exp_();
        let _ = logits_grad.scatter_add_(1, &self.ids, &Tensor::full_like(&weight, -1.0));
        if projection.kind() != Kind::Float {
            // The loss scale in the weight keeps what follows within the range of fp16.
            let mut rounded = self.logits;
            rounded.copy_(&logits_grad.g_mul_(&weight));
            let logits_grad = rounded;
            let _ = logits_grad.mm_out(hidden_grad, projection);
            let part = logits_grad.transpose(0, 1).mm(&self.hidden);
            let mut onto = gradient.projection.shallow_clone();
            if first {
                onto.copy_(&part)
            } else {
                drop(onto.g_add_(&part))
            }
            return;
        }
        // What a row counts for is multiplied into the smaller matrices.
        let _ = logits_grad.mm_out(hidden_grad, projection).g_mul_(&weight);
        let (transposed, hidden) = (logits_grad.transpose(0, 1), self.hidden * weight);
        let mut onto = gradient.projection.shallow_clone();
        let _ = if first {
            transposed.mm_out(&onto, &hidden)
        } else {
            onto.addmm_(&transposed, &hidden)
        };
    }
}

/// Rows in a slice: equal slices of about the allowed size.
pub(super) fn slice_rows(n: i64, vocab: i64, device: Device) -> i64 {
    let bytes = if device == Device::Cpu { SLICE_BYTES_CPU } else { SLICE_BYTES_GPU };
    let most = (bytes / (4 * vocab)).max(1);
    let slices = (n + most - 1) / most;
    (n + slices - 1) / slices.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::no_grad;

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
        let targets = Targets::new(&ids, 35);
        let logits = hidden.matmul(&projection.transpose(0, 1));
        let losses = logits.log_softmax(1, Kind::Float).nll_loss(&targets.ids);
        // nll_loss is a mean over the targets.
        let whole = losses * targets.count() as f64;
        (&whole / 7.0).backward();
        let projection_grad = Tensor::empty([vocab, 8], cpu);
        let gradient = LossGradient { nominal: 7.0, projection: &projection_grad };
        let (loss_sum, hidden_grad) = no_grad(|| {
            in_slices(&hidden.detach(), &projection.detach(), &targets, Some(gradient), 16)
        });
        let relative = (loss_sum.double_value(&[]) / whole.double_value(&[]) - 1.0).abs();
        assert!(relative < 1e-5, "{relative}");
        // Relative to the size of the whole: single entries are sums that cancel.
        let off = |a: &Tensor, b: &Tensor| ((a - b).norm() / b.norm()).double_value(&[]);
        let (hidden_off, projection_off) =
            (off(&hidden_grad.unwrap(), &hidden.grad()), off(&projection_grad, &projection.grad()));
        assert!(hidden_off < 1e-5 && projection_off < 1e-5, "{hidden_off} {projection_off}");
    }
}
