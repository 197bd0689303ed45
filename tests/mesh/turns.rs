//! Meshes in one process, whose collectives take turns by a seed.

use std::{path::Path, rc::Rc, time::Instant};

use dsr::{
    config::{ActivationCheckpointing, EngineConfig},
    data::{Batch, DataSource, Dataset, LoaderOptions, OpenOptions},
    dist::{Exchange, ProcessGroup},
    engine::Engine,
    error::Result,
    tensor::Device,
};

use super::{Shape, dataset, named, of_shape};
use crate::support::{alone, tiny::config};

/// The curve of each rank of a mesh in this process, whose collectives take turns by `seed`; of ranks
/// that fail, and all do where one leaves, what they say.
fn in_turns(
    shape: Shape,
    seed: u64,
    leaves: Option<(usize, u64)>,
    path: &Path,
) -> Vec<std::result::Result<Vec<(f64, f64)>, String>> {
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
        let mut engine =
            Engine::new(named("llama-gqa"), Rc::clone(&group), of_shape(shape, &plain))?;
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
        for _ in 0..2 {
            let outcome = engine.train_batch::<Rc<Batch>>(&mut next, &mut ())?.unwrap();
            curve.push((outcome.loss, outcome.grad_norm));
        }
        group.barrier()?;
        Ok(curve)
    };
    std::thread::scope(|scope| {
        let rank = &rank;
        let start = |number| scope.spawn(move || rank(number).map_err(|e| e.to_string()));
        let ranks: Vec<_> = (0..count).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Whatever the order in which collectives of different groups come to pass, a mesh ends with the same
/// numbers; and where a rank leaves at any of its collectives, all others end.
///
/// `MESH_SCHEDULES` is how many orders there are of each mesh.
#[test]
fn a_mesh_trains_alike_in_whatever_order_its_groups_meet() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let _ = dataset("llama-gqa", dir.path());
    let rows = dir.path().join("rows.jsonl");
    let schedules = std::env::var("MESH_SCHEDULES").map_or(4, |count| count.parse().unwrap());
    let began = Instant::now();
    let shapes = [(2, 2, 2, 2), (3, 1, 1, 0), (2, 2, 1, 3), (1, 2, 2, 3), (3, 2, 1, 1)];
    for shape in shapes {
        let expected = in_turns(shape, 0, None, &rows);
        assert!(expected.iter().all(|curve| *curve == expected[0]), "{shape:?}: {expected:?}");
        assert!(expected[0].is_ok(), "{shape:?}: {expected:?}");
        for seed in 1..schedules {
            assert_eq!(in_turns(shape, seed, None, &rows), expected, "{shape:?}, seed {seed}");
            let (rank, after) = (seed as usize * 7 % expected.len(), seed * 13 % 90);
            let left = in_turns(shape, seed, Some((rank, after)), &rows);
            // A rank that has fewer collectives leaves none.
            let ended = left == expected || left.iter().all(|rank| rank.is_err());
            assert!(ended, "{shape:?}, seed {seed}, rank {rank} after {after}: {left:?}");
        }
    }
    let count = shapes.len() as u64 * (2 * schedules - 1);
    println!("{count} schedules in {:.1} s", began.elapsed().as_secs_f64());
}
