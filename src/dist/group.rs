//! A group of ranks that are connected, and the collectives between them.
//!
//! Every rank calls the same collectives in the same order with the same shapes; what one rank can
//! see of that is checked here, the rest shows as a timeout. Each collective has a form that
//! returns when its result can be used and an `_async` one that returns a [`Work`].

use std::{cell::Cell, sync::Arc};

use crate::tensor::{Device, Kind, Tensor, cuda_device_count};

use super::{
    Rendezvous, Traffic, Work,
    backend::{Backend, Started},
    connect::{meet, transport, watch},
    exchange::{Exchange, Member},
    rank::Rank,
    rank_state::{RECEIVE, RankPhase, SEND},
    reduce_op::{ReduceOp, check_reduction},
    simulated::Simulated,
    watch::{StopWhen, Watch},
    work::Watched,
};
use crate::{
    bridge::dist::{self as bridge, Mode},
    error::{Code, Result},
};

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
        let store = meet(rendezvous, place, &*stop)?;
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

    /// A group of those ranks of this one, of all ranks, that `members` names: in this order, and
    /// this rank among them. All of them must call it, and make their groups in one order; `name`
    /// is what errors call it, another one for each group.
    pub(super) fn subgroup(&self, name: &str, members: &[usize]) -> Result<Self> {
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

    /// Counts the meshes of these ranks: the number of the next one, from 0.
    pub(super) fn next_mesh(&self) -> usize {
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

    /// Reduces `tensor` over all ranks, in place: afterwards all ranks hold the same values.
    ///
    /// # Errors
    /// [`Code::Shape`] for a tensor that is not contiguous, not on the group's device, or not
    /// floating-point for [`ReduceOp::Avg`]; [`Code::Dist`] when another rank fails.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<()> {
        self.start_all_reduce(tensor, op, Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::all_reduce`].
    pub fn all_reduce_async(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work> {
        self.start_all_reduce(tensor, op, Mode::Async)
    }

    /// Concatenates the `shard`s of all ranks into `out`, in the order of the ranks. `out` has
    /// `world_size` times the elements of `shard`; beyond that its shape is free.
    ///
    /// # Errors
    /// [`Code::Shape`] for tensors that do not fit together, are not contiguous, or are not on the
    /// group's device; [`Code::Dist`] when another rank fails.
    pub fn all_gather_into(&self, out: &Tensor, shard: &Tensor) -> Result<()> {
        self.start_all_gather(out, shard, Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::all_gather_into`].
    pub fn all_gather_into_async(&self, out: &Tensor, shard: &Tensor) -> Result<Work> {
        self.start_all_gather(out, shard, Mode::Async)
    }

    /// Reduces `input` over all ranks and leaves in `shard` this rank's slice of the result, the
    /// `rank`-th of `world_size` equal ones. The content of `input` is then undefined.
    pub fn reduce_scatter(&self, shard: &Tensor, input: &Tensor, op: ReduceOp) -> Result<()> {
        self.start_reduce_scatter(shard, input, op, Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::reduce_scatter`].
    pub fn reduce_scatter_async(
        &self,
        shard: &Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Work> {
        self.start_reduce_scatter(shard, input, op, Mode::Async)
    }

    /// Copies `tensor` of rank `root` over `tensor` of every other rank.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        self.start_broadcast(tensor, root, Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::broadcast`].
    pub fn broadcast_async(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        self.start_broadcast(tensor, root, Mode::Async)
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        self.start_barrier(Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::barrier`].
    pub fn barrier_async(&self) -> Result<Work> {
        self.start_barrier(Mode::Async)
    }

    /// The numbers that rank 0 has, on all ranks.
    pub fn told(&self, own: Vec<f64>) -> Result<Vec<f64>> {
        if self.world_size() == 1 {
            return Ok(own);
        }
        let device = self.device();
        let count = Tensor::f_from_slice(&[own.len() as i64])?.f_to_device(device)?;
        self.broadcast(&count, 0)?;
        let count = count.f_int64_value(&[0])?;
        let numbers = match self.rank() {
            0 => Tensor::f_from_slice(&own)?.f_to_device(device)?,
            _ => Tensor::f_zeros([count], (Kind::Double, device))?,
        };
        if count > 0 {
            self.broadcast(&numbers, 0)?;
        }
        Ok(Vec::try_from(&numbers)?)
    }

    /// Whether `flag` is set on any rank: an answer that is the same on all of them. Every rank
    /// must call it.
    pub fn any(&self, flag: bool) -> Result<bool> {
        Ok(self.greatest(i64::from(flag))? != 0)
    }

    /// The greatest of the numbers that the ranks have, on all of them. Every rank must call it.
    pub fn greatest(&self, number: i64) -> Result<i64> {
        if self.world_size() == 1 {
            return Ok(number);
        }
        let numbers = Tensor::f_full([1], number, (Kind::Int64, self.device))?;
        self.all_reduce(&numbers, ReduceOp::Max)?;
        Ok(numbers.f_int64_value(&[0])?)
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

    fn start_all_reduce(&self, tensor: &Tensor, op: ReduceOp, mode: Mode) -> Result<Work> {
        const NAME: &str = "all_reduce";
        self.check_tensor(NAME, "the tensor", tensor)?;
        check_reduction(NAME, op, tensor)?;
        let work = self.start(NAME, self.backend.all_reduce(tensor, op, mode))?;
        self.count(|traffic| traffic.all_reduce.add_ring(tensor, 2, self.world_size()));
        Ok(work)
    }

    fn start_all_gather(&self, out: &Tensor, shard: &Tensor, mode: Mode) -> Result<Work> {
        const NAME: &str = "all_gather_into";
        self.check_shards(NAME, ("out", out), shard)?;
        let work = self.start(NAME, self.backend.all_gather(out, shard, mode))?;
        self.count(|traffic| traffic.all_gather.add_ring(out, 1, self.world_size()));
        Ok(work)
    }

    fn start_reduce_scatter(
        &self,
        shard: &Tensor,
        input: &Tensor,
        op: ReduceOp,
        mode: Mode,
    ) -> Result<Work> {
        const NAME: &str = "reduce_scatter";
        self.check_shards(NAME, ("input", input), shard)?;
        check_reduction(NAME, op, input)?;
        let work = self.start(NAME, self.backend.reduce_scatter(shard, input, op, mode))?;
        self.count(|traffic| traffic.reduce_scatter.add_ring(input, 1, self.world_size()));
        Ok(work)
    }

    fn start_broadcast(&self, tensor: &Tensor, root: usize, mode: Mode) -> Result<Work> {
        const NAME: &str = "broadcast";
        self.check_tensor(NAME, "the tensor", tensor)?;
        if root >= self.world_size() {
            bail!(
                Code::Dist,
                "{NAME}: rank {root} cannot be the root: the ranks are 0 to {}",
                self.world_size() - 1
            );
        }
        let work = self.start(NAME, self.backend.broadcast(tensor, root, mode))?;
        self.count(|traffic| traffic.broadcast.add_copy(tensor, self.world_size()));
        Ok(work)
    }

    /// Starts to send `tensor` to the second of two ranks, of which this is the first. It may be
    /// written again when the work is done.
    pub fn send(&self, tensor: &Tensor) -> Result<Work> {
        let work = self.start_transfer(SEND, tensor, 0, Mode::Async)?;
        self.count(|traffic| traffic.send.add_copy(tensor, self.world_size()));
        Ok(work)
    }

    /// Fills `tensor` with what the first of two ranks sends, of which this is the second.
    pub fn receive(&self, tensor: &Tensor) -> Result<()> {
        self.start_transfer(RECEIVE, tensor, 1, Mode::Sync)?.wait()
    }

    /// A transfer is a broadcast in a group of two: unlike c10d's own, Gloo runs it beside the
    /// caller, who can look at what has become of the other end.
    fn start_transfer(
        &self,
        name: &'static str,
        tensor: &Tensor,
        rank: usize,
        mode: Mode,
    ) -> Result<Work> {
        self.check_tensor(name, "the tensor", tensor)?;
        if (self.rank(), self.world_size()) != (rank, 2) {
            let (own, ranks) = (self.rank(), self.world_size());
            bail!(Code::Internal, "{name} by rank {own} of {ranks}, and not by rank {rank} of 2");
        }
        self.start(name, self.backend.broadcast(tensor, 0, mode))
    }

    fn start_barrier(&self, mode: Mode) -> Result<Work> {
        let work = self.start("barrier", self.backend.barrier(mode))?;
        self.count(|traffic| traffic.barrier.add_call());
        Ok(work)
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

    fn check_tensor(&self, operation: &str, name: &str, tensor: &Tensor) -> Result<()> {
        if !tensor.defined() {
            bail!(Code::Shape, "{operation}: {name} is undefined");
        }
        if tensor.device() != self.device {
            bail!(
                Code::Shape,
                "{operation}: {name} is on {:?}, but the group is on {:?}",
                tensor.device(),
                self.device
            );
        }
        if !tensor.is_contiguous() {
            bail!(
                Code::Shape,
                "{operation}: {name} of shape {:?} must be contiguous, found strides {:?}",
                tensor.size(),
                tensor.stride()
            );
        }
        Ok(())
    }

    /// Checks that `whole` is as large as one shard a rank.
    fn check_shards(
        &self,
        operation: &str,
        (name, whole): (&str, &Tensor),
        shard: &Tensor,
    ) -> Result<()> {
        self.check_tensor(operation, name, whole)?;
        self.check_tensor(operation, "shard", shard)?;
        if whole.kind() != shard.kind() {
            bail!(
                Code::Shape,
                "{operation}: {name} has dtype {:?}, but shard has {:?}",
                whole.kind(),
                shard.kind()
            );
        }
        let world_size = self.world_size();
        if whole.numel() != shard.numel() * world_size {
            bail!(
                Code::Shape,
                "{operation}: {name} must have {world_size} times the {} elements of shard, one \
                 shard a rank, found {}",
                shard.numel(),
                whole.numel()
            );
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread, time::Duration};

    use super::*;
    use crate::bridge::dist::Store;

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
        assert_eq!(e.message(), "no transport for Mps: the CPU has Gloo, CUDA has NCCL");
    }

    #[test]
    fn tensors_may_be_empty() {
        let group = ProcessGroup::single(Device::Cpu).unwrap();
        let (a, b) = (
            Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)),
            Tensor::empty([0], (Kind::Float, Device::Cpu)),
        );
        group.all_reduce(&a, ReduceOp::Avg).unwrap();
        group.all_gather_into(&a, &b).unwrap();
        group.reduce_scatter(&a, &b, ReduceOp::Sum).unwrap();
        group.broadcast(&a, 0).unwrap();
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
