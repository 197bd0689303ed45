//! What the ranks of a mesh send in a step, planned and counted.

use std::rc::Rc;

use dsr::{
    config::{ActivationCheckpointing, EngineConfig},
    dist::ProcessGroup,
    engine::{
        Engine, SentBytes,
        plan::{Setup, optimizer_state_bytes},
        plan_stages::stages,
    },
    tensor::Device,
};

use super::{Shape, loader, named, of_shape, steps};
use crate::support::{alone, ranks::threads, tiny::config};

/// A training whose ranks have parts of the tokens or not, and whose blocks run again or not.
type Plain = (bool, bool);

fn of(shape: Shape, (sequence_parallel, again): Plain) -> EngineConfig {
    let checkpointing = ActivationCheckpointing { every: 1, cpu_checkpointing: false };
    let mut plain = of_shape(shape, &config(1, 1));
    plain.mesh.tensor_parallel.sequence_parallel = sequence_parallel;
    EngineConfig { activation_checkpointing: again.then_some(checkpointing), ..plain }
}

/// The stage of this rank, and the bytes that it sent in the second step over each axis; the sums of
/// weights that stages tie go through groups of their own.
fn counted(group: &Rc<ProcessGroup>, name: &str, shape: Shape, plain: Plain) -> (usize, SentBytes) {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::new(named(name), Rc::clone(group), of(shape, plain)).unwrap();
    let mut loader = loader(&engine, name, dir.path());
    steps(&mut engine, &mut loader, 1);
    let mesh = Rc::clone(engine.mesh());
    let sent = || {
        let forward = mesh.next().map_or(0, |link| link.forward.traffic().send.bytes);
        let backward = mesh.previous().map_or(0, |link| link.backward.traffic().send.bytes);
        let [tp, dp] = [mesh.tp(), mesh.dp()].map(|group| group.traffic().total().bytes);
        SentBytes { tp, dp, pp: forward + backward }
    };
    let before = sent();
    steps(&mut engine, &mut loader, 1);
    let after = sent();
    let sent =
        SentBytes { tp: after.tp - before.tp, dp: after.dp - before.dp, pp: after.pp - before.pp };
    (mesh.place().pp, sent)
}

/// Within a thousandth of what is counted, and a kilobyte for losses, counts and norms.
#[test]
fn what_a_mesh_sends_is_planned_as_it_is_counted() {
    let _alone = alone();
    let shapes = [
        (1, 1, 2, 0),
        (2, 1, 2, 0),
        (2, 2, 1, 0),
        (2, 2, 1, 1),
        (2, 2, 2, 2),
        (1, 2, 2, 3),
        (2, 2, 1, 3),
    ];
    for shape in shapes {
        for plain in [(false, false), (true, false), (false, true)] {
            if plain.0 && shape.2 == 1 {
                continue;
            }
            let config = of(shape, plain);
            let model = named("llama-gqa");
            let state = optimizer_state_bytes(&model, &config).unwrap();
            let whole = Setup::new(&model, &config, state, 16, shape.1, Device::Cpu);
            let planned = stages(&whole, &config).unwrap();
            let ranks = shape.0 * shape.1 * shape.2;
            for (stage, found) in threads(ranks, |group| counted(group, "llama-gqa", shape, plain))
            {
                let planned = planned[stage].sent;
                let pairs =
                    [(planned.tp, found.tp), (planned.dp, found.dp), (planned.pp, found.pp)];
                for (plan, count) in pairs {
                    assert!(
                        plan.abs_diff(count) <= count / 1000 + 1024,
                        "{shape:?} {plain:?}, stage {stage}: {planned:?} is not {found:?}"
                    );
                }
            }
        }
    }
}
