//! The uses of an engine's memory, counted from its tensors.

use serde::{Deserialize, Serialize};

/// Bytes on the engine's device by kind, at the moment when their sum was highest so far.
///
/// Only what training holds counts, and the parameters that evaluations and generation gather: not
/// batches, other models, or what the allocator keeps beside live tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUse {
    /// The units of the model: all of them, or at ZeRO's stage 3 this rank's slices and the units
    /// that are gathered.
    pub parameters: u64,
    /// Float32 copies of parameters of fewer bits, for the optimizer.
    pub master_weights: u64,
    /// The flat gradients of the units.
    pub gradients: u64,
    /// The state that the optimizer keeps from step to step, and the averages of the weights.
    pub optimizer_state: u64,
    /// The activations of embedding and blocks in the forward pass, a recomputation included.
    pub activations: u64,
    /// The rest: the head with its slice of the logits, gradients of activations and of single
    /// parameters on the way backward, what a step needs meanwhile.
    pub buffers: u64,
}

impl MemoryUse {
    /// All kinds together: the highest sum so far.
    pub fn peak(&self) -> u64 {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Each kind by its name.
    pub fn kinds(&self) -> [(&'static str, u64); 6] {
        [
            ("parameters", self.parameters),
            ("master_weights", self.master_weights),
            ("gradients", self.gradients),
            ("optimizer_state", self.optimizer_state),
            ("activations", self.activations),
            ("buffers", self.buffers),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use crate::{
        bridge::memory::{Kind, Ledger},
        data::{Batch, batch_of},
        dist::ProcessGroup,
        engine::{Engine, config},
        model::{Context, Direction, Flow, Masks, Model, ModelConfig},
        tensor::Device,
    };

    /// The peak of a step as autograd alone takes it: the graph of the whole model, whole logits, a
    /// gradient for each parameter, and AdamW's two averages.
    fn autograd_peak(model: &Model, batch: &Batch) -> u64 {
        let ledger = Ledger::new(Device::Cpu).unwrap();
        let _counting = ledger.open(Kind::Buffers).unwrap();
        let masks = Masks::default();
        let mut flow = Flow::of(batch.input_ids().shallow_clone());
        for (i, layer) in model.layers().iter().enumerate() {
            let gathered = model.gather(i, Direction::Forward).unwrap();
            let mut context = Context { train: true, ..Context::new(&masks) };
            let params = gathered.params(i, None);
            flow = layer.layer().forward(&params, &flow, &mut context).unwrap();
        }
        let logits = flow.hidden;
        let size = logits.size();
        let shifted = logits.narrow(1, 0, size[1] - 1).reshape([-1, size[2]]);
        drop(logits);
        let targets = batch.labels().narrow(1, 1, size[1] - 1).reshape([-1]);
        let loss = shifted.cross_entropy_for_logits(&targets);
        drop(shifted);
        loss.backward();
        let states: usize =
            model.units().iter().map(|unit| 3 * 4 * unit.padded_numel() as usize).sum();
        for (_, param) in model.named_params() {
            param.shallow_clone().zero_grad();
        }
        let peak = ledger.counts().1;
        peak.of(Kind::Activations) + peak.of(Kind::Buffers) + states as u64
    }

    fn engine_peak(model: &Rc<Model>, batch: &Batch, every: Option<usize>) -> u64 {
        let mut config = config(every);
        config.micro_batch_size = batch.input_ids().size()[0] as usize;
        let group = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
        let mut engine = Engine::new(Rc::clone(model), group, config).unwrap();
        let loss = engine.forward(batch).unwrap();
        engine.backward(&loss).unwrap();
        engine.step().unwrap();
        engine.memory().peak()
    }

    /// Peaks in bytes: with activation checkpointing and the loss in slices, without the first, and
    /// of autograd alone.
    fn peaks(config: &ModelConfig, vocab_size: i64, rows: i64, tokens: i64) -> [u64; 3] {
        let row = |r| (0..tokens).map(|t| (r * 7919 + t * 31) % vocab_size).collect();
        let batch = batch_of(&(0..rows).map(row).collect::<Vec<_>>());
        let model = Rc::new(Model::from_scratch(config, 1, Device::Cpu).unwrap());
        [
            engine_peak(&model, &batch, Some(1)),
            engine_peak(&model, &batch, None),
            autograd_peak(&model, &batch),
        ]
    }

    /// GPT-2 with its dropout, and these sizes.
    fn gpt2(sizes: &[(&str, i64)]) -> ModelConfig {
        let sizes = sizes.iter().map(|&(key, size)| (key, size.into()));
        ModelConfig::named("gpt2").unwrap().with(sizes, "test").unwrap()
    }

    #[test]
    fn less_than_half_of_the_memory_of_autograd_alone_is_enough() {
        let sizes = [("n_embd", 128), ("n_layer", 8), ("n_head", 4), ("vocab_size", 4000)];
        let [least, slices, whole] = peaks(&gpt2(&sizes), 4000, 4, 256);
        assert!(least < slices && slices < whole, "{least} {slices} {whole}");
        assert!(2 * least < whole, "{least} {whole}");
    }

    /// The same for GPT-2 124M, with its dropout, and 4 x 512 tokens in float32. Its parameters,
    /// gradients and averages alone are 2 GB.
    #[test]
    #[ignore = "takes 6 GB and minutes"]
    fn less_than_half_is_enough_for_gpt2() {
        let [least, slices, whole] = peaks(&gpt2(&[]), 50257, 4, 512);
        println!("{least} bytes, without checkpointing {slices}, by autograd alone {whole}");
        assert!(2 * least < slices && slices < whole, "{least} {slices} {whole}");
    }
}
