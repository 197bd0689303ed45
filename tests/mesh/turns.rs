//! Meshes in one process, whose collectives take turns by a seed.

use std::{
    path::Path,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use dsr::{
    config::{ActivationCheckpointing, EngineConfig},
    data::{Batch, DataSource, Dataset, LoaderOptions, OpenOptions},
    dist::{Exchange, ProcessGroup},
    engine::Engine,
    error::Result,
    model::{Model, ModelConfig},
    tensor::Device,
};

use super::{Shape, dataset, of_shape};
use crate::support::{alone, tiny::config};

/// Losses and norms of each rank, or what a rank says that fails.
type Curves = Vec<std::result::Result<Vec<(f64, f64)>, String>>;

/// One order of the collectives.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    seed: u64,
    /// Two find what the first has left under way.
    steps: usize,
    /// A rank, and the number of its collectives after which it leaves.
    leaves: Option<(usize, u64)>,
}

/// A LLaMA of two blocks, so small that it takes no time.
fn tiny() -> Result<Rc<Model>> {
    let sizes = [
        ("vocab_size", 64),
        ("hidden_size", 16),
        ("intermediate_size", 16),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
    ];
    let shape = ModelConfig::named("llama").unwrap();
    let config = shape.with(sizes.map(|(key, size)| (key, size.into())), "test")?;
    Ok(Rc::new(Model::from_scratch(&config, 1, Device::Cpu)?))
}

/// The curves of a mesh in this process in one order; all ranks fail where one leaves.
fn in_turns(shape: Shape, Schedule { seed, steps, leaves }: Schedule, path: &Path) -> Curves {
    let count = shape.0 * shape.1 * shape.2;
    let exchange = Exchange::new(count, seed);
    leaves.iter().for_each(|&(rank, after)| exchange.leave_after(rank, after));
    let rank = |number: usize| -> Result<Vec<(f64, f64)>> {
        let group = Rc::new(ProcessGroup::in_process(&exchange, number, Device::Cpu)?);
        let plain = EngineConfig {
            activation_checkpointing: Some(ActivationCheckpointing {
                every: 2,
                cpu_checkpointing: false,
            }),
            ..config(1, 1)
        };
        let mut engine = Engine::new(tiny()?, Rc::clone(&group), of_shape(shape, &plain))?;
        let mesh = engine.mesh();
        let options = LoaderOptions {
            micro_batch_size: 2,
            rank: mesh.place().dp,
            world_size: mesh.shape().dp,
            prefetch_factor: 0,
            ..LoaderOptions::default()
        };
        let mut loader =
            Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())?
                .loader(options)?;
        let mut next = || Ok(loader.next_batch()?.map(Rc::new));
        let mut curve = Vec::new();
        for _ in 0..steps {
            let outcome = engine.train_batch::<Rc<Batch>>(&mut next, &mut ())?.unwrap();
            curve.push((outcome.loss, outcome.grad_norm));
        }
        group.barrier()?;
        Ok(curve)
    };
    thread::scope(|scope| {
        let rank = &rank;
        let start = |number| scope.spawn(move || rank(number).map_err(|e| e.to_string()));
        let ranks: Vec<_> = (0..count).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Two orders of `seed`: the numbers are the same, and where a rank leaves, all others end.
fn check(shape: Shape, seed: u64, expected: &[(f64, f64)], rows: &Path) {
    let steps = if seed.is_multiple_of(4) { 2 } else { 1 };
    let schedule = Schedule { seed, steps, leaves: None };
    let all_alike = |curves: &Curves| {
        curves.iter().all(|curve| curve.as_deref().is_ok_and(|curve| *curve == expected[..steps]))
    };
    let found = in_turns(shape, schedule, rows);
    assert!(all_alike(&found), "{shape:?} {schedule:?}: {found:?}, expected {expected:?}");
    let ranks = found.len();
    let leaves = Some((seed as usize * 7 % ranks, seed * 13 % 60));
    let schedule = Schedule { leaves, ..schedule };
    let left = in_turns(shape, schedule, rows);
    // A rank that has fewer collectives leaves none.
    let ended = all_alike(&left) || left.iter().all(Result::is_err);
    assert!(ended, "{shape:?} {schedule:?}: {left:?}");
}

/// Whatever the order in which collectives of different groups come to pass, a mesh ends with the same
/// numbers; and where a rank leaves at any of its collectives, all others end.
///
/// `MESH_SCHEDULES` is how many seeds there are of each mesh, with two orders each. A mesh keeps one core
/// busy, so that each core has one.
#[test]
fn a_mesh_trains_alike_in_whatever_order_its_groups_meet() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let _ = dataset("llama-gqa", dir.path());
    let rows = &dir.path().join("rows.jsonl");
    let seeds: u64 = std::env::var("MESH_SCHEDULES").map_or(4, |count| count.parse().unwrap());
    let began = Instant::now();
    let shapes = [(2, 2, 2, 2), (3, 1, 1, 0), (2, 2, 1, 3), (1, 2, 2, 3), (3, 2, 1, 1)];
    for shape in shapes {
        let first = in_turns(shape, Schedule { seed: 0, steps: 2, leaves: None }, rows);
        let expected = &first[0].clone().unwrap();
        assert!(first.iter().all(|curve| *curve == first[0]), "{shape:?}: {first:?}");
        let (next, cores) = (&AtomicU64::new(1), thread::available_parallelism().unwrap());
        thread::scope(|scope| {
            for _ in 0..cores.get() {
                scope.spawn(move || {
                    let seed =
                        || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|s| *s <= seeds);
                    std::iter::from_fn(seed).for_each(|seed| check(shape, seed, expected, rows));
                });
            }
        });
    }
    let (count, took) = (shapes.len() as u64 * (2 * seeds + 1), began.elapsed().as_secs_f64());
    println!("{count} schedules in {took:.1} s: {:.0} a minute", 60.0 * count as f64 / took);
}
