//! Ranks as processes that torchrun would have started.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, PoisonError},
};

/// A port that was free a moment ago and that no other test was given; rank 0 binds it again.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        if given.insert(port) {
            return port;
        }
    }
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
