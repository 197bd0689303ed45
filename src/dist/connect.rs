//! Connecting a rank with its group: with the store where all meet, and with the transport.

use std::time::Duration;

use super::{Rendezvous, rank::Rank, watch::Watch};
use crate::{
    bridge::dist::{Group, Store, Transport},
    error::{Code, Error, Result},
    tensor::Device,
};

/// The transport of collectives of tensors on `device`.
pub(super) fn transport<'a>(
    device: Device,
    interface: Option<&'a str>,
    address: Option<&'a str>,
) -> Result<Transport<'a>> {
    match device {
        Device::Cpu => Ok(Transport::Gloo { interface, address }),
        Device::Cuda(cuda_index) => Ok(Transport::Nccl { cuda_index }),
        other => bail!(Code::Dist, "no transport for {other:?}: the CPU has Gloo, CUDA has NCCL"),
    }
}

/// Brings this rank to the store of all ranks and waits until all are there.
pub(super) fn meet(rendezvous: &Rendezvous, place: Rank) -> Result<Store> {
    let Rendezvous { master_addr, master_port, timeout, agent_store, .. } = rendezvous;
    let Rank { rank, world_size } = place;
    let prefix = rendezvous.store_prefix();
    let is_host = rank == 0 && agent_store.is_none();
    let seconds = timeout.as_secs_f64();
    let where_to = format!("rank {rank} of {world_size}: {master_addr}:{master_port}");
    let store =
        Store::tcp((master_addr, *master_port), is_host, &prefix, *timeout).map_err(|e| {
            if is_host {
                Error::new(Code::Dist, format!("{where_to} cannot be opened: {}", first_line(&e)))
                    .hint("another program uses the port, or MASTER_ADDR is not this machine")
            } else {
                let message = format!("{where_to} cannot be reached within {seconds} s");
                Error::new(Code::Dist, message)
                    .hint("is rank 0 running, and is MASTER_ADDR its machine?")
                    .caused_by(e)
            }
        })?;
    let present = store.join(rank, world_size, *timeout).map_err(|e| {
        Error::new(Code::Dist, format!("{where_to} was lost while ranks were waited for"))
            .hint("rank 0 has stopped; its output tells why")
            .caused_by(e)
    })?;
    let missing: Vec<String> =
        (0..world_size).filter(|&rank| !present[rank]).map(|rank| rank.to_string()).collect();
    if missing.is_empty() {
        return Ok(store);
    }
    let (noun, missing_ranks) = (if missing.len() == 1 { "rank" } else { "ranks" }, missing);
    Err(Error::new(
        Code::Dist,
        format!("{where_to}: {noun} {} did not come within {seconds} s", missing_ranks.join(", ")),
    )
    .hint(format!("start {world_size} processes with the ranks 0 to {}", world_size - 1)))
}

/// Starts to tell the others what this rank does, over a connection of its own.
pub(super) fn watch(rendezvous: &Rendezvous, place: Rank) -> Result<Watch> {
    let Rendezvous { master_addr, master_port, timeout, .. } = rendezvous;
    let address = (master_addr.as_str(), *master_port);
    let store = Store::tcp(address, false, &rendezvous.store_prefix(), *timeout)
        .map_err(|e| place.failed("connecting", e))?;
    Ok(Watch::start(store, place.rank, place.world_size))
}

/// Tries Gloo by a group of this process alone, on `interface` or else on the loopback.
pub fn check_gloo(interface: Option<&str>) -> Result<()> {
    let timeout = Duration::from_secs(10);
    let (store, _) = Store::host(("127.0.0.1", 0), "check", timeout)?;
    let transport = transport(Device::Cpu, interface, Some("127.0.0.1"))?;
    Group::new(&store, (0, 1), transport, timeout).map(drop)
}

fn first_line(e: &Error) -> &str {
    e.message().lines().next().unwrap_or_default()
}
