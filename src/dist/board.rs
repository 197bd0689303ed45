//! The store of a run as its launchers use it: the states of the ranks, and the messages of the
//! launchers of several machines to each other.

use std::time::{Duration, Instant};

use super::rank_state::RankState;
use crate::{
    bridge::dist::Store,
    error::{Code, Error, Result},
};

/// The prefix of a launcher's keys; its ranks' keys begin with this and `0/`.
const PREFIX: &str = "dsr";
/// How long one attempt to connect takes.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Keys and values that the processes of a run share. It may be handed to a thread of its own: an
/// operation on it waits for as long as the network needs.
pub struct Board(Store);

impl Board {
    /// Hosts the board at `address`; port 0 is any free one. Gives the port.
    pub fn host((host, port): (&str, u16), timeout: Duration) -> Result<(Self, u16)> {
        let hosted = Store::host((host, port), PREFIX, timeout);
        hosted.map(|(store, port)| (Self(store), port)).map_err(|e| {
            Error::new(Code::Dist, format!("{host}:{port} cannot be opened: {}", e.first_line()))
                .hint("another program uses the port, or the address is not this machine's")
                .hint("--master-port and --master-addr choose others")
        })
    }

    /// Connects with the board at `address`, for which it waits until the time is over. `stop` is
    /// asked in between.
    ///
    /// # Errors
    /// [`Code::Dist`] when it does not come, [`Code::Interrupted`] when `stop` said so.
    pub fn join(
        (host, port): (&str, u16),
        timeout: Duration,
        mut stop: impl FnMut() -> bool,
    ) -> Result<Self> {
        let end = Instant::now() + timeout;
        loop {
            match Store::tcp((host, port), PREFIX, ATTEMPT.min(timeout)) {
                Ok(store) => return Ok(Self(store)),
                Err(e) if Instant::now() >= end => {
                    let seconds = timeout.as_secs();
                    let what = format!("no launcher answers at {host}:{port} within {seconds} s");
                    let hint = "does it run on the first machine (--node-rank 0), and is the port \
                                open?";
                    return Err(Error::new(Code::Dist, what).hint(hint).caused_by(e));
                }
                Err(_) if stop() => return Err(Error::interrupted()),
                Err(_) => {}
            }
        }
    }

    /// Sets a key, or replaces its value.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        self.0.set(key, value)
    }

    /// The value of a key, if it has one now.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.0.get(key)
    }

    /// The last state that a rank has published.
    pub fn rank_state(&self, rank: usize) -> Result<Option<RankState>> {
        let bytes = self.0.get(&format!("0/{}", RankState::key(rank)))?;
        Ok(bytes.and_then(|bytes| RankState::parse(&bytes)))
    }

    /// The value that a rank has set for its launcher under `key`.
    pub fn told(&self, key: &str) -> Result<Option<String>> {
        let bytes = self.0.get(&format!("0/{key}"))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}
