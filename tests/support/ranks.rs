//! Ranks: threads of this process, or processes that torchrun would have started.

use std::{
    net::TcpListener,
    panic,
    process::{Child, Command, Output, Stdio},
    rc::Rc,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use dsr::{
    dist::{ProcessGroup, Rendezvous},
    tensor::Device,
};

/// Long enough for a loaded machine, short enough for a test that fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A port that was free a moment ago and that no other test was given; rank 0 binds it again. It is
/// below those that the kernel gives to connections, which take any other that is free.
pub(crate) fn free_port() -> u16 {
    const PORTS: std::ops::Range<u32> = 20_000..32_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let number =
            std::process::id().wrapping_mul(97).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = (PORTS.start + number % PORTS.len() as u32) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// How a rank on this machine meets the others at `master_port`.
pub(crate) fn rendezvous(rank: usize, world_size: usize, master_port: u16) -> Rendezvous {
    Rendezvous {
        rank,
        world_size,
        local_rank: rank,
        local_world_size: world_size,
        master_addr: "127.0.0.1".into(),
        master_port,
        timeout: TIMEOUT,
        interface: None,
        agent_store: None,
    }
}

/// Runs `rank` in a thread for each of `world_size` ranks, each with its group; gives the results
/// in the order of the ranks. The random generator is one for all threads: ranks that draw numbers
/// are processes.
pub(crate) fn threads<T: Send>(
    world_size: usize,
    rank: impl Fn(&Rc<ProcessGroup>) -> T + Sync,
) -> Vec<T> {
    threads_within(TIMEOUT, world_size, |group| {
        let result = rank(group);
        group.barrier().unwrap();
        result
    })
}

/// The same, with another time for which a rank is waited for; ranks may end before the others.
pub(crate) fn threads_within<T: Send>(
    timeout: Duration,
    world_size: usize,
    rank: impl Fn(&Rc<ProcessGroup>) -> T + Sync,
) -> Vec<T> {
    let port = free_port();
    let run = |i| {
        let rendezvous = Rendezvous { timeout, ..rendezvous(i, world_size, port) };
        let group = ProcessGroup::connect(&rendezvous, Device::Cpu).unwrap();
        rank(&Rc::new(group))
    };
    thread::scope(|scope| {
        let run = &run;
        let ranks: Vec<_> = (0..world_size).map(|i| scope.spawn(move || run(i))).collect();
        let result = |rank: thread::ScopedJoinHandle<'_, T>| {
            rank.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        };
        ranks.into_iter().map(result).collect()
    })
}

/// Starts `command` as one of `world_size` ranks that meet at `port`, with one thread: ranks share
/// the cores.
pub(crate) fn start(mut command: Command, rank: usize, world_size: usize, port: u16) -> Child {
    command
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", world_size.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("OMP_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs `command` as every one of `world_size` ranks, to their end.
pub(crate) fn run(world_size: usize, command: impl Fn() -> Command) -> Vec<Output> {
    let port = free_port();
    let ranks: Vec<_> =
        (0..world_size).map(|rank| start(command(), rank, world_size, port)).collect();
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

/// What a process said, on both of its outputs.
pub(crate) fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy;
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}
