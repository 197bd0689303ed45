//! The mesh of ranks: stages of a pipeline, replicas of the data, and parts of a layer.
//!
//! A rank has a place on three axes. Each axis has a group: the ranks that differ from this one on it
//! alone. Between two neighbouring stages there is a group
//! for each direction, whose transfers wait for nothing but each other: with one for both, stages
//! that send to each other at once would wait for ever.

use std::rc::Rc;

use super::ProcessGroup;
use crate::{
    config::{MeshPlace, MeshShape},
    error::{Code, Result},
};

/// The groups of one rank in a mesh.
pub struct Mesh {
    shape: MeshShape,
    place: MeshPlace,
    number: usize,
    world: Rc<ProcessGroup>,
    pp: Rc<ProcessGroup>,
    dp: Rc<ProcessGroup>,
    tp: Rc<ProcessGroup>,
    previous: Option<Link>,
    next: Option<Link>,
}

/// The transfers between two neighbouring stages.
pub struct Link {
    /// From the lower stage to the higher one.
    pub forward: ProcessGroup,
    /// From the higher stage to the lower one.
    pub backward: ProcessGroup,
}

impl Mesh {
    /// Connects this rank of `world` with its neighbours. Every rank must call it, with one shape,
    /// which is of as many ranks.
    pub fn new(world: &Rc<ProcessGroup>, shape: MeshShape) -> Result<Self> {
        let (place, ranks) = (shape.place(world.rank()), world.world_size());
        if shape.ranks() != ranks {
            bail!(Code::Internal, "a mesh of {shape} has not {ranks} ranks");
        }
        if shape.is_data_parallel() {
            let alone = || world.subgroup("alone", &[world.rank()]).map(Rc::new);
            let (pp, tp, dp) = (alone()?, alone()?, Rc::clone(world));
            let (world, previous, next) = (Rc::clone(world), None, None);
            return Ok(Self { shape, place, number: 0, world, pp, dp, tp, previous, next });
        }
        let number = world.next_mesh();
        let group = |axis: &str, count: usize, at: &dyn Fn(usize) -> MeshPlace| {
            let members: Vec<_> = (0..count).map(|i| shape.rank(at(i))).collect();
            world.subgroup(&named(axis, number), &members)
        };
        let pp = group("pp", shape.pp, &|pp| MeshPlace { pp, ..place })?;
        let dp = group("dp", shape.dp, &|dp| MeshPlace { dp, ..place })?;
        let tp = group("tp", shape.tp, &|tp| MeshPlace { tp, ..place })?;
        let link = |low: usize| -> Result<Link> {
            let [a, b] = [low, low + 1].map(|pp| shape.rank(MeshPlace { pp, ..place }));
            let one_way = |(from, to): (usize, usize), members: [usize; 2]| {
                world.subgroup(&named(&format!("stage {from} to stage {to}"), number), &members)
            };
            let forward = one_way((low, low + 1), [a, b])?;
            Ok(Link { forward, backward: one_way((low + 1, low), [b, a])? })
        };
        // From the first stage to the last, so that nobody waits in a circle.
        let previous = (place.pp > 0).then(|| link(place.pp - 1)).transpose()?;
        let next = (place.pp + 1 < shape.pp).then(|| link(place.pp)).transpose()?;
        // A rank whose work ended at once would close connections that others still make.
        world.barrier()?;
        let [pp, dp, tp] = [pp, dp, tp].map(Rc::new);
        Ok(Self { shape, place, number, world: Rc::clone(world), pp, dp, tp, previous, next })
    }

    /// The number of ranks on each axis.
    pub fn shape(&self) -> MeshShape {
        self.shape
    }

    /// This rank's place.
    pub fn place(&self) -> MeshPlace {
        self.place
    }

    /// This rank's number among the replicas, which read different rows, and how many there are.
    pub fn replica(&self) -> (usize, usize) {
        (self.place.dp, self.shape.dp)
    }

    /// All ranks.
    pub fn world(&self) -> &Rc<ProcessGroup> {
        &self.world
    }

    /// The stages of this rank's pipeline.
    pub fn pp(&self) -> &Rc<ProcessGroup> {
        &self.pp
    }

    /// The ranks that have the same parameters as this one.
    pub fn dp(&self) -> &Rc<ProcessGroup> {
        &self.dp
    }

    /// The ranks that share this one's layers.
    pub fn tp(&self) -> &Rc<ProcessGroup> {
        &self.tp
    }

    /// The transfers to and from the stage before.
    pub fn previous(&self) -> Option<&Link> {
        self.previous.as_ref()
    }

    /// The transfers to and from the stage after.
    pub fn next(&self) -> Option<&Link> {
        self.next.as_ref()
    }

    /// Whether this rank has the last layers, and so the losses.
    pub fn is_last_stage(&self) -> bool {
        self.next.is_none()
    }

    /// Whether this rank speaks for all that have the same rows: what the last stage knows is
    /// counted once.
    pub fn counts_losses(&self) -> bool {
        self.is_last_stage() && self.place.tp == 0
    }

    /// A group of the ranks of this pipeline that have these stages, this rank's among them. All of
    /// them must call it, and make such groups in one order.
    pub fn sharers(&self, stages: &[usize]) -> Result<ProcessGroup> {
        let members: Vec<_> =
            stages.iter().map(|&pp| self.shape.rank(MeshPlace { pp, ..self.place })).collect();
        let names: Vec<_> = stages.iter().map(ToString::to_string).collect();
        let name = format!("stages {}", names.join(", "));
        self.world.subgroup(&named(&name, self.number), &members)
    }
}

/// The name of a group of the mesh of this number.
fn named(group: &str, mesh: usize) -> String {
    if mesh == 0 { group.to_owned() } else { format!("{group} (mesh {})", mesh + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

    #[test]
    fn a_simulated_rank_has_its_place_and_its_neighbours() {
        let world = Rc::new(ProcessGroup::simulated(5, 8, Device::Cpu).unwrap());
        let mesh = Mesh::new(&world, MeshShape { pp: 2, dp: 2, tp: 2 }).unwrap();
        assert_eq!(mesh.place(), MeshPlace { pp: 1, dp: 0, tp: 1 });
        assert!(mesh.previous().is_some() && mesh.is_last_stage() && !mesh.counts_losses());
        assert_eq!((mesh.dp().rank(), mesh.dp().world_size()), (0, 2));
        assert_eq!((mesh.pp().rank(), mesh.tp().rank()), (1, 1));
    }
}
