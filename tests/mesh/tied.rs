//! Weights that several stages of a pipeline use: each has them, and they stay the same.

use std::{collections::BTreeMap, rc::Rc};

use dsr::{
    config::{EngineConfig, MeshConfig, PipelineOptions},
    data::{Dataset, LoaderOptions},
    dist::ProcessGroup,
    engine::Engine,
    model::Model,
};

use super::{STEPS, Shape, curves, loader, named, of_shape, steps};
use crate::support::{
    alone,
    numbers::assert_relative,
    ranks::threads,
    tiny::{config, rows_of},
};

/// The parameters of this rank's stage after some steps, by name.
fn trained(group: &Rc<ProcessGroup>, name: &str, shape: Shape) -> BTreeMap<String, Vec<f32>> {
    let dir = tempfile::tempdir().unwrap();
    let config = of_shape(shape, &config(1, 1));
    let mut engine = Engine::new(named(name), Rc::clone(group), config).unwrap();
    let mut loader = loader(&engine, name, dir.path());
    steps(&mut engine, &mut loader, STEPS);
    values(engine.model())
}

fn values(model: &Model) -> BTreeMap<String, Vec<f32>> {
    model.make_whole().unwrap();
    let value = |(name, param): (&str, &dsr::tensor::Tensor)| {
        (name.to_owned(), Vec::try_from(param.detach().reshape([-1])).unwrap())
    };
    model.named_params().map(value).collect()
}

/// Whatever of a parameter is on several ranks is the same there to the bit: a weight that stages tie,
/// and all of them on replicas. Training has changed it.
#[test]
fn what_ranks_have_in_common_stays_equal_to_the_bit() {
    let _alone = alone();
    for (name, tied) in [("gpt2", "transformer.wte.weight"), ("t5-v10", "shared.weight")] {
        let before = values(&named(name));
        for stages in [2, 4] {
            for zero in 0..=3 {
                let shape = (stages, 2, 1, zero);
                let all = threads(2 * stages, |group| trained(group, name, shape));
                let mut first = BTreeMap::new();
                let mut holders = 0;
                for parameter in all.iter().flatten() {
                    let known = first.entry(parameter.0).or_insert(parameter.1);
                    assert!(*known == parameter.1, "{name} {shape:?}: {}", parameter.0);
                    holders += usize::from(parameter.0 == tied);
                }
                assert!(first.keys().copied().eq(before.keys()), "{name} {shape:?}");
                assert!(holders >= 4, "{name} {shape:?}: two stages, of two replicas each");
                assert!(*first[&tied.to_owned()] != before[tied], "{name} {shape:?}");
            }
        }
    }
}

/// Losses and norms of single micro batches of one row, in which each token stands once.
fn of_single_rows(group: &Rc<ProcessGroup>, rows: &Dataset, stages: usize) -> Vec<(f64, f64)> {
    let pipeline = PipelineOptions { stages, ..PipelineOptions::default() };
    let mesh = MeshConfig { pipeline, ..MeshConfig::default() };
    let config = EngineConfig { mesh, ..config(1, 1) };
    let mut engine = Engine::new(named("gpt2"), Rc::clone(group), config).unwrap();
    let options = LoaderOptions { micro_batch_size: 1, ..LoaderOptions::default() };
    let mut loader = rows.loader(options).unwrap();
    steps(&mut engine, &mut loader, STEPS)
}

/// A sum of two is the same in either order. Each row of the tied table gets one gradient of the
/// embedding here and one of the head, so that nothing is left that a pipeline could add in another
/// order: its losses are those of one rank to the bit.
#[test]
fn tied_weights_have_the_losses_of_one_rank_where_nothing_is_summed_in_another_order() {
    let _alone = alone();
    let (_dir, rows) = rows_of(&[16; STEPS]);
    let rows = &rows;
    let on = |stages: usize| {
        let mut all = threads(stages, |group| of_single_rows(group, rows, stages));
        all.swap_remove(stages - 1)
    };
    let expected = on(1);
    for stages in [2, 4] {
        assert_eq!(on(stages), expected, "{stages} stages");
    }
}

/// Four stages with every stage of ZeRO, of each kind of model: where no weight is tied, the losses are
/// those of as many replicas to the bit. Tied weights are summed over stages that have added up
/// their micro batches before: 1e-6, and 1e-5 with an encoder, whose table has three users.
#[test]
fn four_stages_have_the_losses_of_one_rank() {
    let _alone = alone();
    let plain = || config(1, 1);
    for (name, tolerance) in [("llama-gqa", None), ("gpt2", Some(1e-6)), ("t5-v11", Some(1e-5))] {
        for stage in 0..=3 {
            let expected = curves(name, (1, 2, 1, stage), &plain);
            let shape = (4, 2, 1, stage);
            let found = curves(name, shape, &plain);
            let Some(tolerance) = tolerance else {
                assert_eq!(found, expected, "{name} {shape:?}");
                continue;
            };
            for (found, wanted) in found.iter().zip(&expected) {
                assert_relative(&format!("{name} {shape:?}"), found.0, wanted.0, tolerance);
                assert_relative(&format!("{name} {shape:?} norm"), found.1, wanted.1, 1e-4);
            }
        }
    }
}
