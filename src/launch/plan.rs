//! The processes of a launch, their machines and the address where they meet, from the options.

use std::{
    net::{TcpListener, ToSocketAddrs},
    time::Duration,
};

use super::hostfile::{self, Host};
use crate::{
    config::MeshConfig,
    dist::Rendezvous,
    error::{Code, Error, Result},
};

/// DeepSpeed's and torchrun's default, for several machines.
const MASTER_PORT: u16 = 29500;
/// The name of this machine where no hostfile names it.
const HERE: &str = "localhost";

/// The options of a launch, under the names of torchrun and DeepSpeed.
#[derive(Debug, Clone, Default)]
pub struct LaunchOptions {
    /// Processes on each machine.
    pub nproc_per_node: Option<usize>,
    /// How many machines.
    pub nnodes: Option<usize>,
    /// The number of this machine, where each is started by hand.
    pub node_rank: Option<usize>,
    /// The first machine's name or address.
    pub master_addr: Option<String>,
    /// A port on it.
    pub master_port: Option<u16>,
    /// The text of a hostfile, and its name.
    pub hostfile: Option<(String, String)>,
    /// The hosts and slots that take part.
    pub include: Option<String>,
    /// The hosts and slots that do not.
    pub exclude: Option<String>,
    /// Seconds to wait for a rank.
    pub timeout: Option<u64>,
}

/// The ranks that are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// How many machines.
    pub nnodes: usize,
    /// The number of this one.
    pub node_rank: usize,
    /// This machine and the slots on it, one process each.
    pub here: Host,
    /// The GPUs that the processes here are confined to, where a filter chose them.
    pub devices: Option<Vec<usize>>,
    /// The machines after the first, where this one starts them.
    pub others: Vec<Host>,
    /// Where all meet; port 0 is any free one.
    pub master: (String, u16),
    /// How long to wait for a rank.
    pub timeout: Duration,
}

impl LaunchPlan {
    /// The plan for a choice on this machine, which has `gpus` GPUs and the name `hostname`.
    pub fn new(choice: &LaunchOptions, gpus: usize, hostname: &str) -> Result<Self> {
        check(choice)?;
        let timeout = choice.timeout.map_or(Rendezvous::DEFAULT_TIMEOUT, Duration::from_secs);
        let slots = choice.nproc_per_node.unwrap_or(gpus.max(1));
        let nnodes = choice.nnodes.unwrap_or(1);
        if choice.hostfile.is_none() && nnodes > 1 {
            let here = Host { name: hostname.to_owned(), slots: (0..slots).collect() };
            return by_hand(choice, nnodes, here, timeout);
        }
        let listed = match &choice.hostfile {
            Some((text, path)) => limit(choice, hostfile::parse(text, path)?)?,
            None => vec![Host { name: HERE.to_owned(), slots: (0..slots).collect() }],
        };
        let hosts = match (&choice.include, &choice.exclude) {
            (Some(filter), _) => hostfile::include(&listed, filter)?,
            (None, Some(filter)) => hostfile::exclude(&listed, filter)?,
            (None, None) => listed,
        };
        let filtered = choice.include.is_some() || choice.exclude.is_some();
        over_ssh(choice, hosts, filtered, timeout)
    }
}

impl LaunchPlan {
    /// Refuses a mesh that these ranks cannot have, as far as this machine knows of the others: those
    /// that are started by hand have as many ranks.
    ///
    /// # Errors
    /// [`Code::BadValue`] with the numbers.
    pub fn check_mesh(&self, mesh: MeshConfig) -> Result<()> {
        let here = self.here.slots.len();
        let listed: usize = self.others.iter().map(|host| host.slots.len()).sum();
        let all = if self.others.is_empty() { here * self.nnodes } else { here + listed };
        let machines = [&self.here].into_iter().chain(&self.others);
        // Of one machine alone the number of all ranks says more.
        if self.nnodes > 1 {
            let mut faults = machines.map(|host| mesh.check_machine(&host.name, host.slots.len()));
            faults.try_for_each(|checked| checked)?;
        }
        mesh.shape(all).map(drop)
    }
}

/// Refuses what contradicts itself, all at once.
fn check(choice: &LaunchOptions) -> Result<()> {
    let mut faults = Vec::new();
    let mut fault = |is: bool, what: &str| {
        if is {
            faults.push(Error::new(Code::Usage, what));
        }
    };
    let filtered = choice.include.is_some() || choice.exclude.is_some();
    let counted = choice.nproc_per_node.is_some() || choice.nnodes.is_some();
    fault(
        choice.include.is_some() && choice.exclude.is_some(),
        "--include and --exclude exclude each other",
    );
    fault(
        filtered && counted,
        "--include and --exclude choose the slots, so that --nproc-per-node and --nnodes have no \
         meaning beside them",
    );
    fault(
        choice.hostfile.is_some() && choice.node_rank.is_some(),
        "--node-rank is for machines that are started by hand; with --hostfile this one starts \
         them",
    );
    fault(
        choice.node_rank.is_some_and(|rank| rank >= choice.nnodes.unwrap_or(1)),
        "--node-rank must be below --nnodes",
    );
    for (value, option) in
        [(choice.nproc_per_node, "--nproc-per-node"), (choice.nnodes, "--nnodes")]
    {
        fault(value == Some(0), &format!("{option} must be 1 or more"));
    }
    fault(choice.timeout == Some(0), "--timeout must be 1 second or more");
    Error::all(faults).map_or(Ok(()), Err)
}

/// The first `nnodes` hosts, with the first `nproc_per_node` slots of each.
fn limit(choice: &LaunchOptions, mut hosts: Vec<Host>) -> Result<Vec<Host>> {
    if let Some(nnodes) = choice.nnodes {
        if nnodes > hosts.len() {
            bail!(Code::BadValue, "--nnodes is {nnodes}, and the hostfile has {}", hosts.len());
        }
        hosts.truncate(nnodes);
    }
    if let Some(processes) = choice.nproc_per_node {
        for Host { name, slots } in &mut hosts {
            if processes > slots.len() {
                let there = slots.len();
                bail!(
                    Code::BadValue,
                    "--nproc-per-node is {processes}, and {name} has {there} slots"
                );
            }
            slots.truncate(processes);
        }
    }
    Ok(hosts)
}

/// One of several machines that are started by hand.
fn by_hand(
    choice: &LaunchOptions,
    nnodes: usize,
    here: Host,
    timeout: Duration,
) -> Result<LaunchPlan> {
    let (Some(node_rank), Some(address)) = (choice.node_rank, choice.master_addr.clone()) else {
        return Err(Error::new(
            Code::Usage,
            "without --hostfile, each machine needs --node-rank and --master-addr beside --nnodes",
        )
        .hint("--master-addr is the address of the machine with --node-rank 0, the same on all"));
    };
    let master = (address, choice.master_port.unwrap_or(MASTER_PORT));
    Ok(LaunchPlan { nnodes, node_rank, here, devices: None, others: Vec::new(), master, timeout })
}

/// This machine and others that it starts, or this one alone.
fn over_ssh(
    choice: &LaunchOptions,
    hosts: Vec<Host>,
    filtered: bool,
    timeout: Duration,
) -> Result<LaunchPlan> {
    let nnodes = hosts.len();
    let mut hosts = hosts.into_iter();
    let Some(here) = hosts.next() else {
        bail!(Code::BadValue, "no host takes part");
    };
    if !is_here(&here.name) {
        let name = &here.name;
        return Err(Error::new(
            Code::BadValue,
            format!("{name} comes first of the hosts that take part, and is not this machine"),
        )
        .hint(format!("start the command on {name}; it starts the others over ssh")));
    }
    let devices = filtered.then(|| here.slots.clone());
    let others: Vec<Host> = hosts.collect();
    let master = if others.is_empty() {
        let address = choice.master_addr.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
        (address, choice.master_port.unwrap_or(0))
    } else {
        let address = choice.master_addr.clone().unwrap_or_else(|| here.name.clone());
        refuse_loopback(&address)?;
        (address, choice.master_port.unwrap_or(MASTER_PORT))
    };
    Ok(LaunchPlan { nnodes, node_rank: 0, here, devices, others, master, timeout })
}

/// Whether this machine has the address that `name` stands for.
fn is_here(name: &str) -> bool {
    name == HERE || TcpListener::bind((name, 0)).is_ok()
}

/// Other machines cannot reach an address that each has for itself.
fn refuse_loopback(address: &str) -> Result<()> {
    let first = (address, 0).to_socket_addrs().ok().and_then(|mut found| found.next());
    match first {
        Some(found) if found.ip().is_loopback() => Err(Error::new(
            Code::BadValue,
            format!("{address} is {} here, where no other machine finds it", found.ip()),
        )
        .hint("name this machine's address in the network with --master-addr")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(choice: &LaunchOptions) -> Result<LaunchPlan> {
        LaunchPlan::new(choice, 0, "me")
    }

    fn hosts(text: &str) -> LaunchOptions {
        let hostfile = Some((text.to_owned(), "hosts".to_owned()));
        LaunchOptions { hostfile, ..LaunchOptions::default() }
    }

    #[test]
    fn one_machine_has_a_process_a_gpu_or_one() {
        let choice = LaunchOptions::default();
        assert_eq!(plan(&choice).unwrap().here.slots, [0]);
        let with_gpus = LaunchPlan::new(&choice, 4, "me").unwrap();
        assert_eq!(with_gpus.here.slots, [0, 1, 2, 3]);
        assert_eq!(with_gpus.master, ("127.0.0.1".to_owned(), 0));
        assert_eq!((with_gpus.nnodes, with_gpus.devices), (1, None));
        let three =
            plan(&LaunchOptions { nproc_per_node: Some(3), ..LaunchOptions::default() }).unwrap();
        assert_eq!(three.here.slots, [0, 1, 2]);
        let some =
            LaunchOptions { include: Some("localhost:1,3".into()), ..LaunchOptions::default() };
        let some = LaunchPlan::new(&some, 4, "me").unwrap();
        assert_eq!((some.here.slots, some.devices), (vec![1, 3], Some(vec![1, 3])));
    }

    #[test]
    fn machines_by_hand_must_say_which_they_are() {
        let two = LaunchOptions { nnodes: Some(2), ..LaunchOptions::default() };
        assert_eq!(plan(&two).unwrap_err().code(), Code::Usage);
        let two = LaunchOptions { node_rank: Some(1), master_addr: Some("a".into()), ..two };
        let second = plan(&two).unwrap();
        assert_eq!((second.nnodes, second.node_rank, second.others.len()), (2, 1, 0));
        assert_eq!(second.master, ("a".to_owned(), 29500));
        assert_eq!(second.here.name, "me");
    }

    /// Two machines of three ranks could not share layers by twos, though six ranks could.
    #[test]
    fn ranks_that_share_a_layer_are_not_parted() {
        let mesh = |stages, autotp_size| {
            let mut mesh = MeshConfig::default();
            (mesh.pipeline.stages, mesh.tensor_parallel.autotp_size) = (stages, autotp_size);
            mesh
        };
        let by_hand = |processes| {
            let choice = LaunchOptions {
                nnodes: Some(2),
                nproc_per_node: Some(processes),
                node_rank: Some(0),
                master_addr: Some("a".into()),
                ..LaunchOptions::default()
            };
            plan(&choice).unwrap()
        };
        assert!(by_hand(2).check_mesh(mesh(2, 2)).is_ok());
        assert!(by_hand(3).check_mesh(mesh(3, 1)).is_ok());
        let e = by_hand(3).check_mesh(mesh(1, 2)).unwrap_err();
        assert!(e.message().starts_with("the number of ranks on me, 3,"), "{}", e.message());
        let listed = LaunchOptions {
            master_addr: Some("192.0.2.7".into()),
            ..hosts("localhost slots=2\n192.0.2.1 slots=3\n")
        };
        let e = plan(&listed).unwrap().check_mesh(mesh(1, 2)).unwrap_err();
        assert!(e.message().starts_with("the number of ranks on 192.0.2.1, 3,"), "{}", e.message());
        let alone = plan(&LaunchOptions::default()).unwrap();
        let e = alone.check_mesh(mesh(1, 2)).unwrap_err();
        assert!(e.message().starts_with("the number of ranks, 1, is not"), "{}", e.message());
    }

    #[test]
    fn contradictions_are_refused_together() {
        let choice = LaunchOptions {
            nproc_per_node: Some(0),
            node_rank: Some(1),
            include: Some("a".into()),
            exclude: Some("a".into()),
            timeout: Some(0),
            ..hosts("a slots=1")
        };
        let e = plan(&choice).unwrap_err();
        assert_eq!(e.code(), Code::Usage);
        assert_eq!(e.others().len(), 5, "{e}");
    }

    #[test]
    fn this_machine_must_be_the_first_and_be_found_by_others() {
        let elsewhere = plan(&hosts("192.0.2.1 slots=1\nlocalhost slots=1\n")).unwrap_err();
        assert!(elsewhere.hints()[0].starts_with("start the command on 192.0.2.1"));
        let hidden = plan(&hosts("localhost slots=1\n192.0.2.1 slots=2\n")).unwrap_err();
        assert!(hidden.hints()[0].contains("--master-addr"), "{hidden:?}");
        let two = LaunchOptions {
            master_addr: Some("192.0.2.7".into()),
            master_port: Some(7),
            ..hosts("localhost slots=1\n192.0.2.1 slots=2\n")
        };
        let two_hosts = plan(&two).unwrap();
        assert_eq!(two_hosts.master, ("192.0.2.7".to_owned(), 7));
        assert_eq!(two_hosts.others.len(), 1);
        let first = plan(&LaunchOptions { nnodes: Some(1), ..two.clone() }).unwrap();
        assert_eq!((first.nnodes, first.others.len()), (1, 0));
        let fewer = LaunchOptions { nproc_per_node: Some(2), ..two };
        let e = plan(&fewer).unwrap_err();
        assert_eq!(e.message(), "--nproc-per-node is 2, and localhost has 1 slots");
    }
}
