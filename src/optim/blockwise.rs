//! State in 8 bits (Dettmers et al. 2022): of each average of a large parameter the codes, and a scale
//! for each block of 256.
//!
//! A step makes a block float32, applies the rule to it and writes its new codes and scales, as
//! bitsandbytes' kernels do; the rule itself is PyTorch's, which decays the weights before the update and
//! not after it. On the CPU that is one kernel; elsewhere it is libtorch's operations on many blocks at a
//! time, with the same results. Blocks are counted from the parameter's first element, and a slice of a
//! rank begins with a block (`tensor::alignment`), so that they are the same on any number of ranks.

use std::{cell::RefCell, rc::Rc};

use super::{
    adam,
    algorithm::rule_of,
    flat_slice::FlatSlice,
    rule::{Hyperparameters, SliceTensors},
    state::StoredTensor,
};
use crate::{
    bridge::blockwise::{BlockwiseSlice, blockwise_adam},
    config::{OptimizerConfig, optimizer::Algorithm},
    error::Result,
    quantize::{MOMENT_BLOCK, MomentCodes, moment_scales},
    tensor::{Device, Kind, Tensor, mix},
};

/// Elements that libtorch's operations make float32 at once.
const CHUNK: i64 = 1 << 22;

/// Whether the state of a parameter of `numel` elements is in 8 bits.
pub(super) fn applies(config: &OptimizerConfig, rule: &Algorithm, numel: i64) -> bool {
    let is_large = |min: usize| numel >= i64::try_from(min).unwrap_or(i64::MAX);
    let has_averages = matches!(rule, Algorithm::Adam(_));
    has_averages && config.blockwise.is_some_and(|blockwise| is_large(blockwise.min_8bit_size))
}

/// The format and the elements of the state of a slice of `len` elements: the codes of each average,
/// then the scales of each.
pub(super) fn state_tensors(slots: usize, len: i64) -> Vec<(Kind, i64)> {
    let codes = vec![(Kind::Uint8, len); slots];
    [codes, vec![(Kind::Float, moment_scales(len)); slots]].concat()
}

/// The tables of codes, for each device that was asked for.
#[derive(Debug, Default)]
pub(super) struct CodeTables(RefCell<Vec<Rc<MomentCodes>>>);

impl CodeTables {
    fn on(&self, device: Device) -> Result<Rc<MomentCodes>> {
        let mut tables = self.0.borrow_mut();
        if let Some(codes) = tables.iter().find(|codes| codes.device() == device) {
            return Ok(Rc::clone(codes));
        }
        let codes = Rc::new(MomentCodes::new(device)?);
        tables.push(Rc::clone(&codes));
        Ok(codes)
    }
}

/// A slice with its gradient and its state.
pub(super) struct BlockwiseTensors<'a> {
    pub(super) param: Tensor,
    pub(super) grad: Tensor,
    pub(super) state: Vec<&'a Tensor>,
}

impl BlockwiseTensors<'_> {
    /// One step of `rule` on the slice.
    pub(super) fn step(
        &self,
        rule: &Algorithm,
        slice: &FlatSlice,
        (hyperparameters, tables): (&Hyperparameters<'_>, &CodeTables),
    ) -> Result<()> {
        let device = self.param.device();
        let codes = tables.on(device)?;
        match (rule, &self.state[..]) {
            (Algorithm::Adam(config), &[first, second, first_scales, second_scales])
                if device == Device::Cpu =>
            {
                let slice = BlockwiseSlice {
                    param: &self.param,
                    grad: &self.grad,
                    averages: [(first, first_scales), (second, second_scales)],
                    seed: mix(&self.seed(slice, hyperparameters)) as u32,
                    place: slice.unit_offset,
                };
                let step = adam::for_kernel(config, hyperparameters);
                let grad_scale = hyperparameters.scaling.map(|scaling| &scaling.grad_scale);
                blockwise_adam(slice, codes.tables(), step, grad_scale)
            }
            _ => self.step_by_operations(rule, slice, (hyperparameters, &codes)),
        }
    }

    /// Of the random bits that round weights.
    fn seed(&self, slice: &FlatSlice, hyperparameters: &Hyperparameters<'_>) -> [u64; 3] {
        [hyperparameters.step, slice.number as u64, self.state.len() as u64 / 2]
    }

    fn step_by_operations(
        &self,
        rule: &Algorithm,
        slice: &FlatSlice,
        (hyperparameters, codes): (&Hyperparameters<'_>, &MomentCodes),
    ) -> Result<()> {
        for start in (0..slice.len).step_by(CHUNK as usize) {
            let len = CHUNK.min(slice.len - start);
            let weights = self.param.f_narrow(0, start, len)?;
            let weights = StoredTensor(&weights);
            let averages = self.averages(start, len)?;
            let decode = |(i, (kept, scales)): (usize, &(Tensor, Tensor))| {
                codes.decode(is_signed(i), kept, scales)
            };
            let mut part = SliceTensors {
                param: weights.load(),
                grad: self.grad.f_narrow(0, start, len)?.f_to_kind(Kind::Float)?,
                state: averages.iter().enumerate().map(decode).collect::<Result<_>>()?,
            };
            rule_of(rule).step(std::slice::from_mut(&mut part), hyperparameters)?;
            for (i, (kept, scales)) in averages.iter().enumerate() {
                codes.encode(is_signed(i), &part.state[i], (kept, scales))?;
            }
            let seed = self.seed(slice, hyperparameters);
            weights.store(&part.param, slice.unit_offset + start, &seed);
        }
        Ok(())
    }

    /// Codes and scales of each average from element `start` on.
    fn averages(&self, start: i64, len: i64) -> Result<Vec<(Tensor, Tensor)>> {
        let (codes, scales) = self.state.split_at(self.state.len() / 2);
        let part = |(codes, scales): (&&Tensor, &&Tensor)| {
            let scales = scales.f_narrow(0, start / MOMENT_BLOCK, moment_scales(len))?;
            Ok((codes.f_narrow(0, start, len)?, scales))
        };
        codes.iter().zip(scales).map(part).collect()
    }
}

/// Whether average `i` of Adam's has a sign: that of the gradient, and not that of its square.
fn is_signed(i: usize) -> bool {
    i == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bridge::fused::Scaling,
        config::optimizer::{AdamConfig, BlockwiseConfig},
        dist::{ProcessGroup, ShardSpec},
        optim::{
            Optimizer, OptimizerPlan, ParamLayout, StateForm, StepRates, UnitLayout, UnitTensors,
        },
        tensor::no_grad,
    };

    const LARGE: usize = 5000;
    const LR: f64 = 0.01;
    const WEIGHT_DECAY: f64 = 0.1;
    const BETAS: (f64, f64) = (0.9, 0.99);

    fn config() -> OptimizerConfig {
        let adam = AdamConfig { betas: BETAS, ..AdamConfig::default() };
        OptimizerConfig {
            weight_decay: WEIGHT_DECAY,
            blockwise: Some(BlockwiseConfig::default()),
            ..OptimizerConfig::new(Algorithm::Adam(adam), LR)
        }
    }

    /// A matrix with state in 8 bits and a vector without, which two ranks can divide between blocks.
    fn layout() -> UnitLayout {
        let param = |name: &str, offset, shape| ParamLayout {
            name: name.to_owned(),
            offset,
            shape,
            fan_in_out: None,
        };
        let params = vec![param("a", 0, vec![50, 100]), param("b", 5008, vec![100])];
        UnitLayout { numel: 5632, params }
    }

    /// Magnitudes from 1 to 1e-6, and zeros, among each other.
    fn gradient(t: u64, i: usize) -> f32 {
        let size = [1.0, 1e-2, 1e-6, 0.1, 0.0, 1e-4, 1e-3][i % 7];
        ((0.37 * t as f64 * (i % 97 + 1) as f64).sin() * size) as f32
    }

    /// A training of the unit, or of a rank's slice of it.
    struct Trained {
        optimizer: Optimizer,
        shard: ShardSpec,
        param: Tensor,
        state: Vec<Tensor>,
    }

    impl Trained {
        fn new(shard: Option<ShardSpec>) -> Self {
            let plan = OptimizerPlan::new(&config(), &[layout()], shard).unwrap();
            let optimizer = Optimizer::new(plan);
            let zeros = |(kind, numel)| Tensor::zeros([numel], (kind, Device::Cpu));
            let state = optimizer.state_layout(0).into_iter().map(zeros).collect();
            let shard = shard.unwrap_or(ShardSpec::WHOLE);
            let start: Vec<f32> = (0..5632).map(|i| (i as f32).cos()).collect();
            let param = shard.slice(&Tensor::from_slice(&start)).unwrap().copy();
            Self { optimizer, shard, param, state }
        }

        fn step(&mut self, t: u64) {
            let group = ProcessGroup::single(Device::Cpu).unwrap();
            let grad: Vec<f32> = (0..5632).map(|i| gradient(t, i)).collect();
            let grad = self.shard.slice(&Tensor::from_slice(&grad)).unwrap();
            let tensors = UnitTensors { param: &self.param, grad: &grad, state: &self.state };
            let rates = StepRates { lr: LR, betas: BETAS };
            self.optimizer.update(&group, &[(0, tensors)], rates, None).unwrap();
            self.optimizer.end_step();
        }
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    /// 19 blocks and a part of one, in the middle of a unit.
    fn slice() -> FlatSlice {
        FlatSlice {
            unit: 0,
            number: 3,
            offset: 0,
            unit_offset: 1 << 12,
            len: 5024,
            is_blockwise: true,
            params: Vec::new(),
        }
    }

    /// A slice's weights and state.
    struct OneSlice {
        param: Tensor,
        state: Vec<Tensor>,
    }

    impl OneSlice {
        fn new(kind: Kind) -> Self {
            let start: Vec<f32> = (0..5024).map(|i| (i as f32).cos()).collect();
            let zeros = |(kind, numel)| Tensor::zeros([numel], (kind, Device::Cpu));
            let state = state_tensors(2, 5024).into_iter().map(zeros).collect();
            Self { param: Tensor::from_slice(&start).to_kind(kind), state }
        }

        fn tensors(&self, t: u64, kind: Kind) -> BlockwiseTensors<'_> {
            let grad: Vec<f32> = (0..5024).map(|i| gradient(t, i)).collect();
            let grad = Tensor::from_slice(&grad).to_kind(kind);
            let param = self.param.shallow_clone();
            BlockwiseTensors { param, grad, state: self.state.iter().collect() }
        }

        fn all(&self) -> impl Iterator<Item = &Tensor> {
            self.state.iter().chain([&self.param])
        }
    }

    /// One average of the reference: codes with the values of a table, and the scale of each block.
    struct Reference {
        table: Vec<f32>,
        codes: Vec<usize>,
        scales: Vec<f32>,
    }

    impl Reference {
        fn new(is_signed: bool) -> Self {
            let all = Tensor::arange(256, (Kind::Uint8, Device::Cpu));
            let one = Tensor::ones([1], (Kind::Float, Device::Cpu));
            let codes = MomentCodes::new(Device::Cpu).unwrap();
            let table = floats(&codes.decode(is_signed, &all, &one).unwrap());
            Self { table, codes: vec![0; LARGE], scales: vec![0.0; LARGE.div_ceil(256)] }
        }

        fn value(&self, i: usize) -> f64 {
            f64::from(self.table[self.codes[i]] * self.scales[i / 256])
        }

        fn keep(&mut self, values: &[f64]) {
            for (b, block) in values.chunks(256).enumerate() {
                let block: Vec<f32> = block.iter().map(|x| *x as f32).collect();
                self.scales[b] = block.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (j, x) in block.iter().enumerate() {
                    let scaled = x / self.scales[b].max(1e-38);
                    let middles = self.table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
                    let nearest = middles.filter(|middle| scaled > *middle).count();
                    let loses_sign = *x < 0.0 && self.table[nearest] == 0.0;
                    self.codes[256 * b + j] = nearest - usize::from(loses_sign);
                }
            }
        }
    }

    /// AdamW over averages that are quantized after each step, in float64 but for these. libtorch's
    /// kernel rounds to float32, so that a value between two codes may get the other one: a change of up
    /// to 14 % of an average, where its code is among the coarsest, and of as much of one update of
    /// 0.01. At most one code of a hundred may differ, and by one.
    #[test]
    fn thirty_steps_are_those_of_a_reference() {
        let mut trained = Trained::new(None);
        let (mut m, mut v) = (Reference::new(true), Reference::new(false));
        let mut p: Vec<f64> = floats(&trained.param).into_iter().map(f64::from).collect();
        for t in 1..=30 {
            trained.step(t);
            let (mut new_m, mut new_v) = (vec![0.0; LARGE], vec![0.0; LARGE]);
            for i in 0..LARGE {
                let g = f64::from(gradient(t, i));
                new_m[i] = BETAS.0 * m.value(i) + (1.0 - BETAS.0) * g;
                new_v[i] = BETAS.1 * v.value(i) + (1.0 - BETAS.1) * g * g;
                let m_hat = new_m[i] / (1.0 - BETAS.0.powi(t as i32));
                let v_hat = new_v[i] / (1.0 - BETAS.1.powi(t as i32));
                p[i] = p[i] * (1.0 - LR * WEIGHT_DECAY) - LR * m_hat / (v_hat.sqrt() + 1e-8);
            }
            m.keep(&new_m);
            v.keep(&new_v);
        }
        for (average, codes, scales) in [(&m, 0, 2), (&v, 1, 3)] {
            let found = Vec::<u8>::try_from(&trained.state[codes].narrow(0, 0, LARGE as i64));
            let off = found.unwrap().into_iter().zip(&average.codes);
            let off: Vec<usize> = off.map(|(a, b)| usize::from(a).abs_diff(*b)).collect();
            assert!(off.iter().all(|off| *off <= 1));
            let differ = off.iter().filter(|off| **off > 0).count();
            assert!(100 * differ <= LARGE, "{differ} codes differ");
            for (found, expected) in floats(&trained.state[scales]).iter().zip(&average.scales) {
                assert!((found - expected).abs() <= 2e-2 * expected, "{found} {expected}");
            }
        }
        let found = floats(&trained.param);
        let off = found.iter().zip(&p).map(|(a, b)| (f64::from(*a) - b).abs()).take(LARGE);
        let off: Vec<f64> = off.collect();
        let (most, mean) = (off.iter().fold(0f64, |a, b| a.max(*b)), off.iter().sum::<f64>());
        assert!(most < 5e-3 && mean / (LARGE as f64) < 1e-5, "{most} {}", mean / LARGE as f64);
    }

    /// The kernel of the CPU gives what libtorch's operations give, to the bit: with every format of
    /// weights and gradients, in whole blocks and a last one that is short. Its length is a multiple of
    /// 16, as libtorch rounds otherwise behind its last whole vector.
    #[test]
    fn the_kernel_gives_what_the_operations_give() {
        let kinds = [Kind::Float, Kind::BFloat16, Kind::Half];
        let scaling = Scaling::of(3.7, Device::Cpu).unwrap();
        let tables = CodeTables::default();
        let codes = tables.on(Device::Cpu).unwrap();
        for (adam_w_mode, beta1, grad_scale) in
            [(true, 0.9, None), (false, 0.9, Some(&scaling)), (true, 0.3, Some(&scaling))]
        {
            let adam = AdamConfig { betas: (beta1, 0.99), adam_w_mode, ..AdamConfig::default() };
            for (param_kind, grad_kind) in
                [Kind::Float, Kind::BFloat16].into_iter().flat_map(|p| kinds.map(|g| (p, g)))
            {
                let by_kernel = OneSlice::new(param_kind);
                let by_operations = OneSlice::new(param_kind);
                for step in 1..=5 {
                    let hyper = Hyperparameters {
                        step,
                        lr: LR,
                        weight_decay: WEIGHT_DECAY,
                        betas: adam.betas,
                        scaling: grad_scale,
                    };
                    let adam = Algorithm::Adam(adam);
                    let slice = slice();
                    by_kernel
                        .tensors(step, grad_kind)
                        .step(&adam, &slice, (&hyper, &tables))
                        .unwrap();
                    no_grad(|| {
                        let tensors = by_operations.tensors(step, grad_kind);
                        tensors.step_by_operations(&adam, &slice, (&hyper, &codes)).unwrap();
                    });
                }
                let both = by_kernel.all().zip(by_operations.all());
                for (i, (kernel, operations)) in both.enumerate() {
                    assert!(kernel.equal(operations), "{i}: {param_kind:?} {grad_kind:?} {adam:?}");
                }
                assert!(
                    by_kernel
                        .state
                        .iter()
                        .all(|state| state.count_nonzero(None).int64_value(&[]) > 0)
                );
            }
        }
    }

    /// Blocks are the same on one rank and on two, so that weights, codes and scales are.
    #[test]
    fn ranks_divide_blocks_and_not_their_content() {
        let mut whole = Trained::new(None);
        let mut ranks = [0, 1].map(|rank| Trained::new(Some(ShardSpec { rank, world_size: 2 })));
        for t in 1..=5 {
            whole.step(t);
            ranks.iter_mut().for_each(|rank| rank.step(t));
        }
        let joined =
            |of: &dyn Fn(&Trained) -> Tensor| Tensor::cat(&[of(&ranks[0]), of(&ranks[1])], 0);
        assert!(joined(&|t| t.param.shallow_clone()).equal(&whole.param));
        for slot in 0..4 {
            let state = joined(&|t| t.state[slot].shallow_clone());
            assert!(state.equal(&whole.state[slot]), "{slot}");
        }
        let pieces = ranks[1].optimizer.pieces(0, &ranks[1].state);
        let starts: Vec<_> =
            pieces.iter().map(|p| (p.name.as_str(), p.start, p.tensor.numel())).collect();
        assert_eq!(
            starts,
            [
                ("exp_avg.a", 2816, 2184),
                ("exp_avg_sq.a", 2816, 2184),
                ("exp_avg_absmax.a", 11, 9),
                ("exp_avg_sq_absmax.a", 11, 9),
                ("exp_avg.b", 0, 100),
                ("exp_avg_sq.b", 0, 100),
            ]
        );
        let group = ProcessGroup::single(Device::Cpu).unwrap();
        let all = |form| whole.optimizer.whole(&group, (0, 0, form), &whole.state).unwrap();
        assert!(all(StateForm::Codes).narrow(0, 0, 5008).equal(&whole.state[0]));
        assert!(all(StateForm::Scales).narrow(0, 0, 20).equal(&whole.state[2]));
        assert!(all(StateForm::Plain).narrow(0, 5008, 624).equal(&whole.state[4]));
    }

    /// Of two averages: 5008 codes and 20 scales each, and 624 float32 of small parameters and padding.
    #[test]
    fn the_bytes_are_counted() {
        let plan = OptimizerPlan::new(&config(), &[layout()], None).unwrap();
        assert_eq!(plan.state_bytes(), 2 * (5008 + 4 * 20 + 4 * 624));
        assert_eq!(plan.state_numel(), 2 * 5632);
        let names: Vec<_> = plan.state_names().into_iter().map(|s| (s.name, s.shape)).collect();
        assert_eq!(names[2], ("exp_avg_absmax.a".to_owned(), vec![20]));
        assert_eq!(names[4], ("exp_avg.b".to_owned(), vec![100]));
    }
}
