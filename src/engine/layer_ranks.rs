//! The transport between the ranks that share layers.

use std::rc::Rc;

use crate::{
    dist::{ProcessGroup, ReduceOp},
    error::Result,
    tensor::Tensor,
    tensor_parallel::LayerRanks,
};

/// A group of ranks that share layers.
pub(super) struct TensorGroup(pub(super) Rc<ProcessGroup>);

impl LayerRanks for TensorGroup {
    fn place(&self) -> (i64, i64) {
        (self.0.rank() as i64, self.0.world_size() as i64)
    }

    fn sum(&self, tensor: &Tensor) -> Result<()> {
        self.0.all_reduce(tensor, ReduceOp::Sum)
    }

    fn sum_parts(&self, parts: &Tensor) -> Result<Tensor> {
        let part = Tensor::f_empty(&parts.size()[1..], (parts.kind(), parts.device()))?;
        self.0.reduce_scatter(&part, parts, ReduceOp::Sum)?;
        Ok(part)
    }

    fn gather(&self, part: &Tensor) -> Result<Vec<Tensor>> {
        let here = part.f_to_device(self.0.device())?.f_contiguous()?;
        let shape = [&[self.0.world_size() as i64], &here.size()[..]].concat();
        let all = Tensor::f_empty(&shape[..], (here.kind(), self.0.device()))?;
        self.0.all_gather_into(&all, &here)?;
        Ok(all.f_unbind(0)?)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeMap, thread};

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        bridge::autograd,
        dist::Exchange,
        model::{Context, Direction, Flow, Masks, Model, ModelConfig, Sink, UnitGradients},
        tensor::{Device, Kind, no_grad},
        tensor_parallel::{Sharing, Split},
    };

    const ROWS: i64 = 2;
    const TOKENS: i64 = 8;

    /// Numbers between -1 and 1 that follow from a name.
    fn numbers(name: &str, shape: &[i64]) -> Tensor {
        let seed: u32 = name.bytes().fold(7, |seed, byte| (31 * seed + u32::from(byte)) % 9973);
        let count = shape.iter().product::<i64>();
        let places = Tensor::arange(count, (Kind::Double, Device::Cpu));
        (places * 1.7 + f64::from(seed)).sin().view(shape)
    }

    /// The output and all gradients of the blocks of a model in float64, of one rank or of one of those
    /// that share them, which may have parts of the tokens. What a rank makes by itself of a whole
    /// parameter is its own.
    fn pass(
        config: &ModelConfig,
        sharers: Option<(&Rc<ProcessGroup>, bool)>,
    ) -> BTreeMap<String, Tensor> {
        let model = Model::from_scratch(config, 1, Device::Cpu).unwrap();
        let group = sharers.map(|(group, _)| group);
        let in_parts = sharers.filter(|(_, sequence_parallel)| *sequence_parallel);
        if let Some((group, sequence_parallel)) = sharers {
            let ranks = Rc::new(TensorGroup(Rc::clone(group)));
            let sharing = Some(Sharing { ranks, sequence_parallel });
            model.cut(0..model.layers().len(), sharing).unwrap();
        }
        model.make_whole().unwrap();
        let (rank, ranks) = group.map_or((0, 1), |g| (g.rank() as i64, g.world_size() as i64));
        let split = |unit, i| model.split(model.unit_number(unit), i).unwrap_or(&Split::Whole);
        for (u, unit) in model.units().iter().enumerate() {
            let _ = unit.cast_and_pad(Kind::Double, 1).unwrap();
            let whole = model.whole_units()[model.unit_number(u)].specs();
            for (i, (param, spec)) in unit.params().iter().zip(whole).enumerate() {
                let value = numbers(&spec.name, &spec.shape) * 0.3;
                no_grad(|| {
                    param.shallow_clone().copy_(&split(u, i).take(&value, rank, ranks).unwrap())
                });
            }
        }
        let width = model.units()[0].specs()[0].shape[1];
        // This rank's tokens, and those of all ranks.
        let own = |all: Tensor| match in_parts {
            Some(_) => all.narrow(1, rank * TOKENS / ranks, TOKENS / ranks),
            None => all,
        };
        let all = |own: Tensor| match in_parts {
            Some((group, _)) => {
                let ranks = TensorGroup(Rc::clone(group));
                Tensor::cat(&ranks.gather(&own).unwrap(), 1)
            }
            None => own,
        };
        let input = |name| {
            own(numbers(name, &[ROWS, TOKENS, width])).detach().copy().set_requires_grad(true)
        };
        let inputs = [input("of the blocks"), input("of a decoder")];
        let sink = Sink::new(model.units(), Kind::Double);
        let masks = Masks::default();
        let mut flow = Flow::of(inputs[0].shallow_clone());
        let mut places = Vec::new();
        for (i, layer) in model.layers().iter().enumerate() {
            if layer.layer().begins_decoder() {
                let encoded = Some(flow.hidden.shallow_clone());
                flow = Flow { encoded, ..Flow::of(inputs[1].shallow_clone()) };
            }
            if layer.block.is_some() {
                let gathered = model.gather(i, Direction::Forward).unwrap();
                let mut context = Context { train: true, ..Context::new(&masks) };
                let params = gathered.params(i, Some(&sink)).of_training();
                flow = layer.layer().forward(&params, &flow, &mut context).unwrap();
                places.extend(layer.places().all());
            }
        }
        let step = Rc::new(RefCell::new(UnitGradients::new(model.units(), Kind::Double)));
        sink.turn_to(&step).unwrap();
        let params = places.iter().map(|at| &model.units()[at.unit].params()[at.index]);
        let of: Vec<&Tensor> = inputs.iter().chain(params).collect();
        let weight = own(numbers("of the output", &[ROWS, TOKENS, width]));
        let mut grads = autograd::grad(&[(&flow.hidden, &weight)], &of).unwrap();
        let rest = grads.split_off(2);
        for (at, grad) in places.iter().zip(rest) {
            let Some(grad) = grad else { continue };
            step.borrow_mut().open(at.unit).unwrap().add(&[(at.index, grad)]).unwrap();
        }
        let mut found = BTreeMap::from([("output".to_owned(), all(flow.hidden.detach()))]);
        let names = ["input", "input of the decoder"].map(str::to_owned);
        let of_inputs = names.into_iter().zip(grads);
        found.extend(of_inputs.filter_map(|(name, grad)| Some((name, all(grad?)))));
        for (u, unit) in model.units().iter().enumerate() {
            let Some(gradient) = step.borrow_mut().take(u) else { continue };
            let parts = unit.views(&gradient.complete().unwrap());
            for (i, (name, part)) in unit.names().zip(parts).enumerate() {
                let whole = match (split(u, i), group) {
                    (Split::Summed, Some(group)) => {
                        let sum = part.copy();
                        group.all_reduce(&sum, ReduceOp::Sum).unwrap();
                        sum
                    }
                    _ => model.joined(model.unit_number(u), i, &part.contiguous()).unwrap(),
                };
                found.insert(name.to_owned(), whole);
            }
        }
        found
    }

    fn model(name: &str, settings: &Value) -> ModelConfig {
        let settings = settings.as_object().unwrap();
        let settings = settings.iter().map(|(key, value)| (key.as_str(), value.clone()));
        ModelConfig::named(name).unwrap().with(settings, "test").unwrap()
    }

    /// Blocks of a family for each form of attention and MLP that ranks divide.
    fn models() -> [(&'static str, ModelConfig); 6] {
        let grouped = json!({
            "vocab_size": 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 8, "num_key_value_heads": 4
        });
        let t5 = |feed_forward: &str| {
            json!({
                "vocab_size": 16, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2,
                "num_decoder_layers": 2, "dropout_rate": 0.0, "feed_forward_proj": feed_forward
            })
        };
        let gpt2 = json!({
            "vocab_size": 16, "n_positions": 8, "n_embd": 32, "n_layer": 1, "n_head": 4,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0
        });
        let bloom = json!({ "vocab_size": 16, "hidden_size": 32, "n_layer": 1, "n_head": 4 });
        [
            ("GPT-2", model("gpt2", &gpt2)),
            ("LLaMA", model("llama", &grouped)),
            ("Qwen3", model("qwen3", &grouped)),
            ("BLOOM", model("bloom", &bloom)),
            ("T5", model("t5", &t5("relu"))),
            ("T5 1.1", model("t5", &t5("gated-gelu"))),
        ]
    }

    /// Each number off by less than 1e-12 of the largest of its tensor: float64 has 16 digits, and sums
    /// of at most a thousand numbers in another order lose two or three of them.
    #[test]
    fn ranks_that_share_blocks_give_the_outputs_and_gradients_of_one() {
        for (family, config) in models() {
            let expected = pass(&config, None);
            assert!(expected.len() > 8, "{family}: {:?}", expected.keys());
            for (ranks, in_parts) in [(2, false), (4, false), (2, true), (4, true)] {
                let exchange = Exchange::new(ranks, 1);
                let rank = |number| {
                    let group = ProcessGroup::in_process(&exchange, number, Device::Cpu).unwrap();
                    pass(&config, Some((&Rc::new(group), in_parts)))
                };
                let rank = &rank;
                let all: Vec<_> = thread::scope(|scope| {
                    let threads: Vec<_> =
                        (0..ranks).map(|number| scope.spawn(move || rank(number))).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
                });
                for found in all {
                    assert!(found.keys().eq(expected.keys()), "{family}, {ranks} ranks");
                    for (name, wanted) in &expected {
                        let largest = wanted.abs().max().double_value(&[]);
                        let off = (&found[name] - wanted).abs().max().double_value(&[]);
                        assert!(largest > 1e-6, "{family}: {name} has no gradient");
                        assert!(
                            off <= 1e-12 * largest,
                            "{family}, {ranks} ranks, {in_parts}: {name} is off by {off} of {largest}"
                        );
                    }
                }
            }
        }
    }
}
