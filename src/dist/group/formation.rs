//! The ways into a group: alone, over a transport, simulated, between threads, or as some ranks of another.

use std::sync::Arc;

use super::ProcessGroup;
use crate::{
    bridge::dist as bridge,
    dist::{
        Rendezvous,
        backend::Backend,
        connect::{meet, transport, watch},
        exchange::{Exchange, Member},
        rank::Rank,
        simulated::Simulated,
    },
    error::{Code, Result, StopWhen},
    tensor::{Device, cuda_device_count},
};

impl ProcessGroup {
    /// A group of this process alone. It has no transport: its collectives are identities, and
    /// cost nothing.
    pub fn single(device: Device) -> Result<Self> {
        if let Device::Cuda(index) = device
            && index >= cuda_device_count()
        {
            bail!(Code::Dist, "there is no CUDA device {index}");
        }
        Self::simulated(0, 1, device)
    }

    /// Meets the other ranks and connects with them. Every rank must call it; `device` is where
    /// the tensors of this rank are.
    ///
    /// # Errors
    /// [`Code::Dist`] when the ranks do not all come within the timeout, saying which are missing.
    pub fn connect(rendezvous: &Rendezvous, device: Device) -> Result<Self> {
        Self::connect_until(rendezvous, device, Arc::new(|| false))
    }

    /// As [`ProcessGroup::connect`], until `stop` says that the user wants no more.
    ///
    /// # Errors
    /// In addition [`Code::Interrupted`] when it says so before all are there. A collective that others keep
    /// from its end fails so too, soon after.
    pub fn connect_until(rendezvous: &Rendezvous, device: Device, stop: StopWhen) -> Result<Self> {
        let &Rendezvous { rank, world_size, local_rank, timeout, .. } = rendezvous;
        let place = Rank { rank, world_size };
        if world_size == 1 {
            // Alone, it still tells a launcher how it is.
            let mut group = Self::single(device)?;
            if rendezvous.agent_store.is_some() {
                group.watch = Some(Arc::new(watch(rendezvous, place, stop)?));
            }
            return Ok(group);
        }
        let address = rendezvous.local_address();
        let transport = transport(device, rendezvous.interface.as_deref(), address.as_deref())?;
        let store = meet(rendezvous, place, &stop)?;
        let watch = Arc::new(watch(rendezvous, place, stop)?);
        let inner = bridge::Group::new(&store, (rank, world_size), transport, timeout)
            .map_err(|e| place.failed("connecting", e))?;
        let mut group = Self::over(Backend::Connected(inner), place, device);
        (group.local_rank, group.watch) = (local_rank, Some(watch));
        // A rank whose work ended at once would close connections that others still make.
        group.barrier()?;
        Ok(group)
    }

    /// Rank `rank` of `world_size`, alone: the others do not exist, and every collective completes at
    /// once as if they held the same as this rank. A sum is `world_size` times its tensor, an
    /// average, greatest or least is the tensor, an all-gather writes the shard into every slot, a
    /// broadcast leaves its tensor. It is for measuring what one rank of many keeps and sends.
    pub fn simulated(rank: usize, world_size: usize, device: Device) -> Result<Self> {
        if rank >= world_size {
            bail!(Code::Dist, "a world of {world_size} ranks has no rank {rank}");
        }
        transport(device, None, None)?;
        let place = Rank { rank, world_size };
        Ok(Self::over(Backend::Simulated(Simulated(place)), place, device))
    }

    /// Rank `rank` of those that meet in `exchange`, each in a thread of its own.
    pub fn in_process(exchange: &Arc<Exchange>, rank: usize, device: Device) -> Result<Self> {
        let world_size = exchange.ranks();
        if rank >= world_size {
            bail!(Code::Dist, "an exchange of {world_size} ranks has no rank {rank}");
        }
        let member = Member::of(exchange, rank);
        Ok(Self::over(Backend::InProcess(member), Rank { rank, world_size }, device))
    }

    /// A group of those ranks of this one, of all ranks, that `members` names: in this order, and
    /// this rank among them. All of them must call it, and make their groups in one order; `name`
    /// is what errors call it, another one for each group.
    pub(in crate::dist) fn subgroup(&self, name: &str, members: &[usize]) -> Result<Self> {
        let Some(rank) = members.iter().position(|&member| member == self.rank()) else {
            bail!(Code::Internal, "rank {} is not in a group of its own", self.rank());
        };
        let place = Rank { rank, world_size: members.len() };
        let numbers: Vec<_> = members.iter().map(ToString::to_string).collect();
        let prefix = format!("{name}/{}", numbers.join("-"));
        let backend = match &self.backend {
            Backend::Connected(inner) if members.len() > 1 => {
                let group = inner.subgroup(&prefix, (rank, members.len()));
                Backend::Connected(group.map_err(|e| self.world.failed("connecting", e))?)
            }
            Backend::InProcess(member) if members.len() > 1 => {
                Backend::InProcess(member.subgroup(&prefix, members))
            }
            _ => Backend::Simulated(Simulated(place)),
        };
        let mut group = Self::over(backend, place, self.device);
        (group.world, group.local_rank) = (self.world, self.local_rank);
        (group.members, group.name) = (members.into(), name.to_owned());
        group.watch = self.watch.clone();
        Ok(group)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread, time::Duration};

    use super::*;
    use crate::{
        bridge::dist::Store,
        dist::ReduceOp,
        tensor::{Kind, Tensor},
    };

    #[test]
    fn ranks_meet_at_the_store_of_torchruns_agent() {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let timeout = Duration::from_secs(60);
        let _agent = Store::host(("127.0.0.1", port), "agent", timeout).unwrap();
        let ranks = [0, 1].map(|rank| {
            thread::spawn(move || {
                let rendezvous = Rendezvous {
                    rank,
                    world_size: 2,
                    local_rank: rank,
                    local_world_size: 2,
                    master_addr: "127.0.0.1".into(),
                    master_port: port,
                    timeout,
                    interface: Some("lo".into()),
                    agent_store: Some(1),
                };
                let group = ProcessGroup::connect(&rendezvous, Device::Cpu).unwrap();
                let tensor = Tensor::full([1], rank as i64 + 1, (Kind::Int64, Device::Cpu));
                group.all_reduce(&tensor, ReduceOp::Sum).unwrap();
                // The first to leave must not take the connection from under the other.
                group.barrier().unwrap();
                tensor.int64_value(&[0])
            })
        });
        assert_eq!(ranks.map(|rank| rank.join().unwrap()), [3, 3]);
    }

    #[test]
    fn an_interface_that_does_not_exist_is_an_error() {
        let (address, timeout) = (("127.0.0.1", 0), Duration::from_secs(5));
        let (store, _) = Store::host(address, "interface", timeout).unwrap();
        let transport = transport(Device::Cpu, Some("nosuch0"), None).unwrap();
        let connected = bridge::Group::new(&store, (0, 1), transport, timeout);
        let e = connected.err().expect("no such interface");
        assert!(!e.message().contains("Exception raised from"), "{e}");
    }

    #[test]
    fn a_device_without_a_transport_is_refused() {
        let e = ProcessGroup::single(Device::Mps).err().expect("no transport");
        assert_eq!(e.message(), "no transport for mps: the CPU has Gloo, CUDA has NCCL");
    }

    #[test]
    fn without_cuda_a_cuda_group_is_an_error() {
        if crate::tensor::cuda_is_available() {
            println!("skipped: this machine has CUDA");
            return;
        }
        let e = ProcessGroup::single(Device::Cuda(0)).err().expect("no CUDA");
        assert_eq!(e.code(), Code::Dist);
    }
}
