//! Connecting a rank with its group: with the store where all meet, and with the transport.

use std::{
    net::{TcpStream, ToSocketAddrs},
    thread,
    time::{Duration, Instant},
};

use super::{Rendezvous, rank::Rank, watch::Watch};
use crate::{
    bridge::dist::{Group, Store, Transport},
    error::{Code, Error, Result, StopWhen},
    tensor::{Device, device_name},
};

/// How long one wait for another rank takes; then the request to stop is looked at.
const SLICE: Duration = Duration::from_millis(500);
/// The time between two questions whether the store is there.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a store may take to answer. Another program on its port never does.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The key under which the ranks are told that they do not fit together.
const REFUSAL: &str = "refusal";

/// The transport of collectives of tensors on `device`.
pub(super) fn transport<'a>(
    device: Device,
    interface: Option<&'a str>,
    address: Option<&'a str>,
) -> Result<Transport<'a>> {
    match device {
        Device::Cpu => Ok(Transport::Gloo { interface, address }),
        Device::Cuda(cuda_index) => Ok(Transport::Nccl { cuda_index }),
        other => {
            let name = device_name(other);
            bail!(Code::Dist, "no transport for {name}: the CPU has Gloo, CUDA has NCCL")
        }
    }
}

/// Brings this rank to the store of all ranks and waits until all are there. `stop` is asked meanwhile.
///
/// # Errors
/// [`Code::Dist`] where they do not come in time, where two have one number or see another number of
/// ranks; [`Code::Interrupted`] when `stop` says so.
pub(super) fn meet(rendezvous: &Rendezvous, place: Rank, stop: &StopWhen) -> Result<Store> {
    let &Rendezvous { timeout, .. } = rendezvous;
    let Rank { rank, world_size } = place;
    let end = Instant::now() + timeout;
    let store = open(rendezvous, place, end, stop)?;
    let lost = |e: Error| {
        let where_to = where_to(rendezvous, place);
        Error::new(Code::Dist, format!("{where_to} was lost while ranks were waited for"))
            .hint("rank 0 has stopped; its output tells why")
            .caused_by(e)
    };
    claim(&store, place).map_err(lost)?;
    let missing = loop {
        let slice = SLICE.min(end.saturating_duration_since(Instant::now()));
        let present = store.join(rank, world_size, slice).map_err(lost)?;
        if let Some(refusal) = store.get(REFUSAL).map_err(lost)? {
            if rank == 0 {
                // The store may end with this rank, and the others are to read it too.
                thread::sleep(2 * SLICE);
            }
            return Err(refused(&refusal, world_size));
        }
        let missing: Vec<String> =
            (0..world_size).filter(|&rank| !present[rank]).map(|rank| rank.to_string()).collect();
        if missing.is_empty() {
            return Ok(store);
        }
        let noun = if missing.len() == 1 { "rank" } else { "ranks" };
        let missing = format!("{noun} {}", missing.join(", "));
        if stop() {
            bail!(Code::Interrupted, "stopped while waiting for {missing}");
        }
        if Instant::now() >= end {
            break missing;
        }
    };
    let (where_to, seconds) = (where_to(rendezvous, place), timeout.as_secs_f64());
    let message = format!("{where_to}: {missing} did not come within {seconds} s");
    Err(Error::new(Code::Dist, message).hint(all_numbers(world_size)))
}

/// The store where the ranks meet: hosted here, or waited for until `end`.
fn open(rendezvous: &Rendezvous, place: Rank, end: Instant, stop: &StopWhen) -> Result<Store> {
    let Rendezvous { master_addr, master_port, timeout, agent_store, .. } = rendezvous;
    let (address, prefix) = ((master_addr.as_str(), *master_port), rendezvous.store_prefix());
    let where_to = where_to(rendezvous, place);
    if place.rank == 0 && agent_store.is_none() {
        return Store::host(address, &prefix, *timeout).map(|(store, _)| store).map_err(|e| {
            Error::new(Code::Dist, format!("{where_to} cannot be opened: {}", e.first_line()))
                .hint("another program uses the port, or MASTER_ADDR is not this machine")
        });
    }
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let attempt = if is_open(address, SLICE.min(left)) || left.is_zero() {
            Store::tcp(address, &prefix, ATTEMPT.min(left)).map(Some)
        } else {
            Ok(None)
        };
        match attempt {
            // It waits patiently from here on.
            Ok(Some(_)) => break Store::tcp(address, &prefix, *timeout),
            _ if stop() => {
                bail!(Code::Interrupted, "stopped while waiting for {master_addr}:{master_port}")
            }
            Err(e) if left.is_zero() => break Err(e),
            _ => {}
        }
    }
    .map_err(|e| {
        let seconds = timeout.as_secs_f64();
        Error::new(Code::Dist, format!("{where_to} cannot be reached within {seconds} s"))
            .hint("is rank 0 running, and is MASTER_ADDR its machine?")
            .caused_by(e)
    })
}

/// Whether something accepts connections at `address`, asked for as long as `patience`. libtorch's
/// own attempts back off for seconds, in which a rank would not hear the user.
fn is_open(address: (&str, u16), patience: Duration) -> bool {
    let resolved = address.to_socket_addrs().into_iter().flatten();
    let open = resolved.into_iter().any(|to| TcpStream::connect_timeout(&to, patience).is_ok());
    if !open {
        // A port that is closed says so at once.
        thread::sleep(PAUSE.min(patience));
    }
    open
}

/// Takes this rank's number, and compares the number of ranks with that of the others. What does not fit
/// is left for all of them to read.
fn claim(store: &Store, Rank { rank, world_size }: Rank) -> Result<()> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let own = format!("process {} on {host}", std::process::id());
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let owner = text(store.claim(&format!("owner/{rank}"), own.as_bytes())?);
    if owner != own {
        let refusal = format!("two processes have the number of rank {rank}: {owner}, and {own}");
        return store.set(REFUSAL, refusal.as_bytes());
    }
    let own = format!("{world_size} for rank {rank}");
    let first = text(store.claim("world_size", own.as_bytes())?);
    if first.split(' ').next() != own.split(' ').next() {
        let refusal = format!("WORLD_SIZE is {first} and {own}, and must be the same for all");
        return store.set(REFUSAL, refusal.as_bytes());
    }
    Ok(())
}

fn refused(refusal: &[u8], world_size: usize) -> Error {
    Error::new(Code::Dist, String::from_utf8_lossy(refusal).into_owned())
        .hint(all_numbers(world_size))
}

fn all_numbers(world_size: usize) -> String {
    format!("start {world_size} processes with the ranks 0 to {}", world_size - 1)
}

fn where_to(rendezvous: &Rendezvous, Rank { rank, world_size }: Rank) -> String {
    let Rendezvous { master_addr, master_port, .. } = rendezvous;
    format!("rank {rank} of {world_size}: {master_addr}:{master_port}")
}

/// Starts to tell the others what this rank does, over a connection of its own.
pub(super) fn watch(rendezvous: &Rendezvous, place: Rank, stop: StopWhen) -> Result<Watch> {
    let Rendezvous { master_addr, master_port, timeout, .. } = rendezvous;
    let address = (master_addr.as_str(), *master_port);
    let store = Store::tcp(address, &rendezvous.store_prefix(), *timeout)
        .map_err(|e| place.failed("connecting", e))?;
    Ok(Watch::start(store, place, stop))
}

/// Tries Gloo by a group of this process alone, on `interface` or else on the loopback.
pub fn check_gloo(interface: Option<&str>) -> Result<()> {
    let timeout = Duration::from_secs(10);
    let (store, _) = Store::host(("127.0.0.1", 0), "check", timeout)?;
    let transport = transport(Device::Cpu, interface, Some("127.0.0.1"))?;
    Group::new(&store, (0, 1), transport, timeout).map(drop)
}
