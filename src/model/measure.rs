//! The cost of a model, layer by layer: derived from shapes, or measured on small batches.

use super::{
    Context, Direction, Flow, LayerCost, Masks, Model, ModelLayer, Objective, ParamPlace, Targets,
    Workload,
    cost::FLOAT_BYTES,
    measured::{Measured, Sample},
    profile::{ModuleProfile, Recorder},
};
use crate::{
    bridge::{
        autograd,
        memory::{Kind, Ledger},
        operations::operations,
    },
    error::Result,
    tensor::{Tensor, guard},
};

/// Tokens in a row of the smallest batch: enough for activations to outweigh the gradients of weights,
/// which do not grow with it.
const TOKENS: u64 = 64;

impl Model {
    /// The scope of the whole forward pass; those of the layers inside have their names.
    pub const SCOPE: &str = "model";

    /// The cost of each layer for `work`; `None` where one's is neither known nor
    /// [measured](Model::measure).
    pub fn costs(&self, work: &Workload) -> Option<Vec<LayerCost>> {
        self.costs_of(self.layers(), work)
    }

    fn costs_of(&self, layers: &[ModelLayer], work: &Workload) -> Option<Vec<LayerCost>> {
        let (sparse, tiled_mlp) = (self.sparse_work(work.tokens), self.tiled_mlp.get());
        let work = &Workload { sparse, tiled_mlp, ..*work };
        let measured = |i: usize| self.measured.get().map(|layers| layers[i].cost(work));
        let cost = |layer: &ModelLayer| layer.layer().cost(work).or_else(|| measured(layer.number));
        layers.iter().map(cost).collect()
    }

    /// Whether the cost of each layer is known.
    pub fn has_known_costs(&self) -> bool {
        self.costs(&self.work(1, 1)).is_some()
    }

    /// The cost of a forward pass of `rows` rows of `tokens` tokens; `recorder` measured one whose
    /// scopes have the names of these modules. `None` where what a layer does is not known.
    pub fn profile(&self, rows: i64, tokens: i64, recorder: &Recorder) -> Option<ModuleProfile> {
        let work = self.work(rows, tokens);
        let all = self.all_layers();
        let layers = all.iter().zip(self.costs_of(all, &work)?);
        let named =
            layers.map(|(layer, cost)| ModuleProfile { name: layer.name.clone(), ..cost.profile });
        let whole = ModuleProfile::new(Self::SCOPE, "Model").with(named.collect());
        Some(ModuleProfile { params: self.num_params(), ..whole }.measured(recorder))
    }

    fn work(&self, rows: i64, tokens: i64) -> Workload {
        let [rows, tokens] = [rows, tokens].map(i64::unsigned_abs);
        Workload::new((rows, tokens), FLOAT_BYTES, self.device())
    }

    /// The floating-point operations of a training step for each token of rows of `tokens` tokens.
    ///
    /// They are 6 for each multiply-accumulate of the products' shapes. With L layers of C columns this
    /// is `6 N + 12 L C T`, as in PaLM's paper (appendix B) and nanoGPT, where N leaves out the
    /// positions, and here what no product multiplies with: biases and norms, less than 0.2 % of it. A
    /// projection that is not tied counts once, the embedding not at all. Where the products are not
    /// known they are 6 for each parameter.
    pub fn flops_per_token(&self, tokens: i64) -> f64 {
        match self.profile(1, tokens, &Recorder::new(self.device())) {
            Some(profile) => 6.0 * profile.macs as f64 / tokens.max(1) as f64,
            None => 6.0 * self.num_params() as f64,
        }
    }

    /// Measures the layers whose cost is not known, for [`Model::costs`].
    pub fn measure(&self) -> Result<()> {
        if self.has_known_costs() {
            return Ok(());
        }
        let most = self.facts().max_positions.map_or(TOKENS, |most| most.unsigned_abs() / 2);
        let tokens = TOKENS.min(most).max(1);
        let batch = |rows, tokens| guard("measuring the model", || self.samples(rows, tokens));
        let [one, two, long] = [batch(1, tokens)?, batch(2, tokens)?, batch(1, 2 * tokens)?];
        let layers = self.layers().iter().enumerate().map(|(i, layer)| {
            let places = layer.places.own.iter();
            let numel = |place: &ParamPlace| self.units()[place.unit].specs()[place.index].numel();
            let params = places.map(numel).sum::<i64>() as u64;
            Measured::through(params, [&one, &two, &long].map(|batch| batch[i]), tokens as f64)
        });
        let _ = self.measured.set(layers.collect());
        Ok(())
    }

    /// The quantities of each layer for a batch of this size.
    fn samples(&self, rows: u64, tokens: u64) -> Result<Vec<Sample>> {
        let [rows, tokens] = [rows, tokens].map(|n| n as i64);
        let numel = rows * tokens;
        let ids: Vec<i64> = (0..numel).map(|i| i % self.facts().vocab_size).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(self.device())?;
        let positions = Tensor::f_arange(numel, (crate::tensor::Kind::Int64, self.device()))?;
        let targets = Targets::new(ids.f_view([rows, tokens])?, positions, ids.shallow_clone());
        let masks = Masks::default();
        let mut flow = Flow::of(ids.f_view([rows, tokens])?);
        let mut samples = Vec::new();
        for i in 0..self.layers().len() {
            let objective =
                Some(Objective { targets: &targets, loss_normalizer: 1.0, function: None });
            let context = Context { train: true, objective, ..Context::new(&masks) };
            let (sample, output) = self.sample(i, &flow.detach(i > 0), context)?;
            samples.push(sample);
            flow = output;
        }
        Ok(samples)
    }

    /// Runs layer `i` forward and back.
    fn sample(&self, i: usize, input: &Flow, mut context: Context<'_>) -> Result<(Sample, Flow)> {
        let gathered = self.gather(i, Direction::Forward)?;
        let params = gathered.params(i, None);
        let ledger = Ledger::new(self.device())?;
        let counting = ledger.open(Kind::Activations)?;
        let run = || self.layers()[i].layer().forward(&params, input, &mut context);
        let (output, listed) = operations(run)?;
        let output = output?;
        drop(counting);
        let all = |counts: &dyn Fn(Kind) -> u64| {
            (counts(Kind::Activations) + counts(Kind::Buffers)) as f64
        };
        let (now, peak) = ledger.counts();
        let (kept, most) = (all(&|kind| now.of(kind)), all(&|kind| peak.of(kind)));
        {
            let _counting = ledger.open(Kind::Buffers)?;
            let grad = output.hidden.f_ones_like()?;
            let tensors = params.tensors();
            let inputs = tensors.iter().chain([&input.hidden]).filter(|x| x.requires_grad());
            let inputs: Vec<_> = inputs.collect();
            if !inputs.is_empty() {
                autograd::grad(&[(&output.hidden, &grad)], &inputs)?;
            }
        }
        let (_, peak) = ledger.counts();
        let hidden = &output.hidden;
        let bytes = (hidden.numel() * hidden.kind().elt_size_in_bytes()) as f64;
        let backward = [Kind::Activations, Kind::Buffers].map(|kind| peak.of(kind) as f64);
        let macs: f64 = listed.iter().map(|operation| multiply_accumulates(operation)).sum();
        // The last layer's graph is all gone after its backward pass, which comes at once.
        let is_last = i + 1 == self.layers().len();
        let sample = match is_last {
            true => [0.0, 0.0, 0.0, 0.0, most.max(backward[0] + backward[1]), macs],
            false => [kept, bytes, 0.0, backward[0], backward[1], macs],
        };
        Ok((sample, output))
    }
}

/// The multiply-accumulates of an operation as [`operations`] lists it: those of products.
fn multiply_accumulates(operation: &str) -> f64 {
    let name = operation.split(' ').next().unwrap_or_default();
    let sizes: Vec<Vec<f64>> = operation
        .split('[')
        .skip(1)
        .filter_map(|part| part.split(']').next())
        .map(|sizes| sizes.split(", ").filter_map(|size| size.parse().ok()).collect())
        .collect();
    let (left, right) = match (name, &sizes[..]) {
        ("aten::mm" | "aten::bmm", [left, right, ..]) => (left, right),
        ("aten::addmm" | "aten::baddbmm", [_, left, right, ..]) => (left, right),
        (name, [query, key, ..]) if name.contains("attention") => {
            let queries: f64 = query.iter().product();
            return 2.0 * queries * key.get(key.len().saturating_sub(2)).copied().unwrap_or(0.0);
        }
        _ => return 0.0,
    };
    left.iter().product::<f64>() * right.last().copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{ModelConfig, tiny_gpt2},
        tensor::Device,
    };

    fn model(tie_word_embeddings: bool) -> Model {
        let sizes = [("vocab_size", 11), ("n_positions", 5), ("n_embd", 8), ("n_inner", 24)];
        let config = tiny_gpt2(&sizes, 0.1, tie_word_embeddings);
        Model::from_scratch(&config, 4, Device::Cpu).unwrap()
    }

    #[test]
    fn the_modules_have_all_parameters_of_their_units() {
        for tied in [true, false] {
            let model = model(tied);
            let profile = model.profile(3, 4, &Recorder::new(Device::Cpu)).unwrap();
            assert_eq!(profile.params, model.num_params());
            let units = model.units().iter().map(|unit| unit.numel() as u64);
            let modules = profile.children.iter().map(|module| module.params);
            let tied_projection = if tied { 11 * 8 } else { 0 };
            for (i, (unit, module)) in units.zip(modules).enumerate() {
                let shared = if i == model.units().len() - 1 { tied_projection } else { 0 };
                assert_eq!(module, unit + shared, "unit {i}");
            }
        }
    }

    /// 3 rows of 4 tokens, 8 wide, 24 inside the MLP, 11 words.
    #[test]
    fn operations_are_those_of_the_shapes() {
        let profile = model(true).profile(3, 4, &Recorder::new(Device::Cpu)).unwrap();
        let n = 3 * 4;
        let block = &profile.children[1];
        let attention = n * 8 * 24 + n * 8 * 8 + 2 * n * 4 * 8;
        let mlp = 2 * n * 8 * 24;
        assert_eq!(block.macs, attention + mlp);
        let biases = n * 24 + n * 8 + n * 24 + n * 8;
        assert_eq!(block.flops, 2 * block.macs + biases + 2 * 5 * n * 8 + n * 24);
        assert_eq!(profile.macs, 2 * block.macs + n * 8 * 11);
        assert_eq!(profile.flops, 2 * block.flops + 2 * n * 8 * 11 + 5 * n * 8);
    }

    /// GPT-2 124M at 1,024 tokens: the formula with nanoGPT's N, which has 0.1 % more for biases and
    /// norms.
    #[test]
    fn a_tokens_operations_are_those_of_the_formula() {
        let config = ModelConfig::named("gpt2").unwrap();
        let (layers, columns, tokens) = (12.0, 768.0, 1024.0);
        let positions = 1024.0 * columns;
        let model = Model::outline(&config, Device::Cpu).unwrap();
        let n = model.num_params() as f64 - positions;
        let formula = 6.0 * n + 12.0 * layers * columns * tokens;
        let counted = model.flops_per_token(1024);
        assert!((0.998..1.0).contains(&(counted / formula)), "{counted} {formula}");
        // Attention sees shorter rows, and the rest stays.
        let shorter = counted - model.flops_per_token(512);
        assert_eq!(shorter, 12.0 * layers * columns * 512.0);
    }

    #[test]
    fn products_are_counted_by_their_shapes() {
        let addmm = "aten::addmm float[5] float[6, 4] float[4, 5]";
        assert_eq!(multiply_accumulates(addmm), 120.0);
        assert_eq!(multiply_accumulates("aten::bmm float[2, 6, 4] float[2, 4, 5]"), 240.0);
        assert_eq!(multiply_accumulates("view aten::view float[2]"), 0.0);
        let attention = "aten::_scaled_dot_product_flash_attention_for_cpu float[1, 2, 3, 4] \
                         float[1, 2, 3, 4] float[1, 2, 3, 4]";
        assert_eq!(multiply_accumulates(attention), 144.0);
    }
}
