//! The rendezvous of a process with the others: its rank, their number, and the address.
//!
//! The names and meanings are torchrun's, so that torchrun, a Slurm script or five `export`s start
//! dsr in the same way as a PyTorch program. This module reads no environment: it is given a
//! lookup. It opens no connection either; that is [`ProcessGroup::connect`].
//!
//! [`ProcessGroup::connect`]: super::ProcessGroup::connect

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    str::FromStr,
    time::Duration,
};

use crate::error::{Code, Error, Result};

/// A rank's place in the run and the address where all ranks meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// This process's number, from 0 to `world_size - 1`.
    pub rank: usize,
    /// How many processes train together.
    pub world_size: usize,
    /// This process's number on its machine; with CUDA, the index of its device.
    pub local_rank: usize,
    /// How many of them are on this machine; where `LOCAL_WORLD_SIZE` does not tell, all.
    pub local_world_size: usize,
    /// The host name or address of rank 0's machine.
    pub master_addr: String,
    /// A free TCP port on that machine.
    pub master_port: u16,
    /// How long to wait for other ranks, in the rendezvous and in each collective: `DSR_TIMEOUT`,
    /// in seconds, or [`Rendezvous::DEFAULT_TIMEOUT`].
    pub timeout: Duration,
    /// The network interface for Gloo, such as `eth0`, from `GLOO_SOCKET_IFNAME`. Without it: the
    /// one through which this machine reaches `master_addr`.
    pub interface: Option<String>,
    /// How often the launcher has restarted the ranks, where the launcher itself hosts the store
    /// at `master_addr` as torchrun's agent does. `None`: rank 0 hosts it.
    pub agent_store: Option<u64>,
}

impl Rendezvous {
    /// PyTorch's default for Gloo, 30 minutes: the ranks may load data for very different times.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

    /// Reads torchrun's variables through `lookup`. `None` when neither `RANK` nor `WORLD_SIZE` is
    /// set: a program that nobody launched as one of several.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let mut env = Variables { lookup, faults: Vec::new() };
        if env.get("RANK").is_none() && env.get("WORLD_SIZE").is_none() {
            return Ok(None);
        }
        let rendezvous = Self {
            rank: env.number("RANK"),
            world_size: env.number("WORLD_SIZE"),
            local_rank: env.number("LOCAL_RANK"),
            local_world_size: env.local_world_size(),
            master_addr: env.required("MASTER_ADDR").unwrap_or_default(),
            master_port: env.number("MASTER_PORT"),
            timeout: env.timeout(),
            interface: env.get("GLOO_SOCKET_IFNAME"),
            agent_store: env.agent_store(),
        };
        if env.faults.is_empty() {
            env.faults.extend(rendezvous.place_fault());
        }
        match Error::all(env.faults) {
            None => Ok(Some(rendezvous)),
            Some(faults) => Err(faults.hint(
                "torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; set all \
                 of them, or none to train with one process",
            )),
        }
    }

    /// The address of this machine's interface through which it reaches `master_addr`, if the
    /// system knows a way there.
    pub(super) fn local_address(&self) -> Option<String> {
        local_address((&self.master_addr, self.master_port)).map(|address| address.to_string())
    }

    /// The prefix of the keys of this run's ranks: ranks of an earlier attempt may have left
    /// theirs in a store that outlives them.
    pub(super) fn store_prefix(&self) -> String {
        format!("dsr/{}", self.agent_store.unwrap_or(0))
    }

    fn place_fault(&self) -> Option<Error> {
        let Self { rank, world_size, .. } = self;
        let message = match world_size {
            0 => "WORLD_SIZE is 0, but it counts this process too".to_owned(),
            _ if rank >= world_size => format!(
                "RANK is {rank}, but with a WORLD_SIZE of {world_size} the ranks are 0 to {}",
                world_size - 1
            ),
            _ => return None,
        };
        Some(Error::new(Code::Dist, message))
    }
}

/// The address from which this machine reaches `target`. Nothing is sent: the system only chooses
/// the interface.
fn local_address(target: (&str, u16)) -> Option<IpAddr> {
    target.to_socket_addrs().ok()?.find_map(|target| {
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

/// The launcher's variables and what was wrong with them so far.
struct Variables<F> {
    lookup: F,
    faults: Vec<Error>,
}

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    /// A variable that is set to something; launchers write `X=` for "not set".
    fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    fn required(&mut self, name: &str) -> Option<String> {
        let value = self.get(name);
        if value.is_none() {
            self.faults.push(Error::new(Code::Dist, format!("the variable {name} is not set")));
        }
        value
    }

    /// A required number; zero, with a fault noted, if there is none.
    fn number<T: FromStr + Default>(&mut self, name: &str) -> T {
        let Some(value) = self.required(name) else { return T::default() };
        value.parse().unwrap_or_else(|_| {
            let expected = if name == "MASTER_PORT" {
                "a port from 0 to 65535"
            } else {
                "a whole number that is not negative"
            };
            let message = format!("the variable {name} must be {expected}, found {value:?}");
            self.faults.push(Error::new(Code::Dist, message));
            T::default()
        })
    }

    /// `DSR_TIMEOUT`, in seconds.
    fn timeout(&mut self) -> Duration {
        match self.get("DSR_TIMEOUT") {
            None => Rendezvous::DEFAULT_TIMEOUT,
            Some(_) => Duration::from_secs(self.number("DSR_TIMEOUT")),
        }
    }

    /// `LOCAL_WORLD_SIZE`, which torchrun sets and the others may leave out.
    fn local_world_size(&mut self) -> usize {
        match self.get("LOCAL_WORLD_SIZE") {
            Some(_) => self.number("LOCAL_WORLD_SIZE"),
            None => self.number("WORLD_SIZE"),
        }
    }

    fn agent_store(&mut self) -> Option<u64> {
        if self.get("TORCHELASTIC_USE_AGENT_STORE")? != "True" {
            return None;
        }
        match self.get("TORCHELASTIC_RESTART_COUNT") {
            Some(_) => Some(self.number("TORCHELASTIC_RESTART_COUNT")),
            None => Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TORCHRUN: [(&str, &str); 5] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node7"),
        ("MASTER_PORT", "29500"),
    ];

    /// torchrun's variables with some replaced, added or, with an empty value, unset.
    fn read(changes: &[(&str, &str)]) -> Result<Option<Rendezvous>> {
        Rendezvous::from_env(|name| {
            let found = changes.iter().chain(&TORCHRUN).find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn torchruns_variables_are_understood() {
        let rendezvous = read(&[]).unwrap().expect("a launched process");
        assert_eq!(
            rendezvous,
            Rendezvous {
                rank: 3,
                world_size: 4,
                local_rank: 1,
                local_world_size: 4,
                master_addr: "node7".into(),
                master_port: 29500,
                timeout: Rendezvous::DEFAULT_TIMEOUT,
                interface: None,
                agent_store: None,
            }
        );
    }

    #[test]
    fn without_a_launcher_there_is_no_rendezvous() {
        assert!(Rendezvous::from_env(|_| None).unwrap().is_none());
        // An address alone may be left over from another program.
        assert!(read(&[("RANK", ""), ("WORLD_SIZE", "")]).unwrap().is_none());
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let e = read(&[("RANK", "one"), ("LOCAL_RANK", ""), ("MASTER_PORT", "70000")]).unwrap_err();
        assert_eq!(e.code(), Code::Dist);
        assert_eq!(
            e.to_string(),
            "the variable RANK must be a whole number that is not negative, found \"one\"\n\
             the variable LOCAL_RANK is not set\n\
             the variable MASTER_PORT must be a port from 0 to 65535, found \"70000\""
        );
        assert!(e.hints()[0].contains("torchrun"));
    }

    #[test]
    fn a_rank_must_be_below_the_world_size() {
        let e = read(&[("RANK", "4")]).unwrap_err();
        assert_eq!(e.message(), "RANK is 4, but with a WORLD_SIZE of 4 the ranks are 0 to 3");
        let e = read(&[("RANK", "0"), ("WORLD_SIZE", "0")]).unwrap_err();
        assert_eq!(e.message(), "WORLD_SIZE is 0, but it counts this process too");
    }

    #[test]
    fn torchruns_agent_hosts_the_store_itself() {
        let agent = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "2")];
        assert_eq!(read(&agent).unwrap().unwrap().agent_store, Some(2));
        let rank_0 = [("TORCHELASTIC_USE_AGENT_STORE", "False")];
        assert_eq!(read(&rank_0).unwrap().unwrap().agent_store, None);
    }
}
