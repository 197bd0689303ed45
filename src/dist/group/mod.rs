//! A group of ranks that are connected.
//!
//! | file | concept |
//! |---|---|
//! | `formation` | the ways into a group |
//! | `collectives` | what its ranks do together |
//! | `agreement` | numbers that they agree on |

mod agreement;
mod collectives;
mod formation;

use std::{cell::Cell, sync::Arc};

use super::{
    Traffic, Work,
    backend::{Backend, Started},
    rank::Rank,
    rank_state::RankPhase,
    watch::Watch,
    work::Watched,
};
use crate::{error::Result, tensor::Device};

/// The ranks that train together, connected: over Gloo on the CPU, over NCCL on CUDA.
pub struct ProcessGroup {
    backend: Backend,
    place: Rank,
    /// This rank among all ranks, for messages.
    world: Rank,
    /// The numbers of its ranks among all ranks.
    members: Arc<[usize]>,
    /// As its ranks call it; empty for that of all ranks.
    name: String,
    /// Meshes of its ranks made so far.
    meshes: Cell<usize>,
    local_rank: usize,
    device: Device,
    /// Tells the others about this rank; `None` for a process that has no store to say it in.
    watch: Option<Arc<Watch>>,
    traffic: Cell<Traffic>,
}

impl ProcessGroup {
    /// A group that nobody watches, of the first rank of its machine.
    fn over(backend: Backend, place: Rank, device: Device) -> Self {
        Self {
            backend,
            place,
            world: place,
            members: (0..place.world_size).collect(),
            name: String::new(),
            meshes: Cell::default(),
            local_rank: 0,
            device,
            watch: None,
            traffic: Cell::default(),
        }
    }

    /// Counts the meshes of these ranks: the number of the next one, from 0.
    pub(in crate::dist) fn next_mesh(&self) -> usize {
        self.meshes.replace(self.meshes.get() + 1)
    }

    /// This process's number, from 0 to `world_size() - 1`.
    pub fn rank(&self) -> usize {
        self.place.rank
    }

    /// How many processes there are.
    pub fn world_size(&self) -> usize {
        self.place.world_size
    }

    /// This process's number on its machine.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Where the tensors of a collective must be.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The bytes that this rank has sent so far in the collectives that it started; [`Traffic::since`] gives
    /// the part of a step.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    fn count(&self, add: impl FnOnce(&mut Traffic)) {
        let mut traffic = self.traffic.get();
        add(&mut traffic);
        self.traffic.set(traffic);
    }

    /// Tells whoever launched the ranks something about the run; without a launcher it does
    /// nothing.
    pub fn tell_launcher(&self, key: &str, value: &str) {
        if let Some(watch) = &self.watch {
            watch.set(key, value.as_bytes());
        }
    }

    fn start(&self, operation: &'static str, started: Result<Started>) -> Result<Work> {
        let inner = started.map_err(|e| self.world.failed(operation, e))?;
        // A group of one waits for nobody.
        let watch = self.watch.as_ref().filter(|_| self.members.len() > 1 || self.name.is_empty());
        let watched = watch.map(|watch| Watched {
            watch: Arc::clone(watch),
            call: watch.started(operation, &self.name),
            members: Arc::clone(&self.members),
        });
        Ok(Work { inner, operation, place: self.world, watched })
    }
}

impl Drop for ProcessGroup {
    /// Says that this rank has ended, before its connections close.
    fn drop(&mut self) {
        if let (Backend::InProcess(member), true) = (&self.backend, self.name.is_empty()) {
            member.end();
        }
        if let Some(watch) = &self.watch {
            if self.name.is_empty() {
                watch.close(RankPhase::Ended);
            }
            if watch.has_abandoned() {
                self.backend.leak();
            }
        }
    }
}
