//! The store of a run as its launchers use it: what the ranks say of themselves, and what the
//! launchers of several machines tell each other.

use std::time::Duration;

use super::watch::RankState;
use crate::{
    bridge::dist::Store,
    error::{Code, Error, Result},
};

/// What the keys of a launcher begin with; those of its ranks begin with this and `0/`.
const PREFIX: &str = "dsr";

/// Keys and values that the processes of a run share. It may be handed to a thread of its own: an
/// operation on it waits for as long as the network needs.
pub struct Board(Store);

impl Board {
    /// Hosts the board at `address`; port 0 is any free one. Gives the port.
    ///
    /// # Errors
    /// [`Code::Dist`] when the port is taken or the address is not this machine's.
    pub fn host((host, port): (&str, u16), timeout: Duration) -> Result<(Self, u16)> {
        let hosted = Store::host((host, port), PREFIX, timeout);
        hosted.map(|(store, port)| (Self(store), port)).map_err(|e| {
            let reason = e.message().lines().next().unwrap_or_default().to_owned();
            Error::new(Code::Dist, format!("{host}:{port} cannot be opened: {reason}"))
                .hint("another program uses the port, or the address is not this machine's")
                .hint("--master-port and --master-addr choose others")
        })
    }

    /// Connects with the board at `address`, for which it waits until the time is over.
    ///
    /// # Errors
    /// [`Code::Dist`] when it does not come.
    pub fn join((host, port): (&str, u16), timeout: Duration) -> Result<Self> {
        Store::tcp((host, port), false, PREFIX, timeout).map(Self).map_err(|e| {
            let seconds = timeout.as_secs();
            let message =
                format!("the launcher at {host}:{port} cannot be reached within {seconds} s");
            Error::new(Code::Dist, message)
                .hint("is it running on the first machine (--node-rank 0), and is the port open?")
                .caused_by(e)
        })
    }

    /// Sets a key, or replaces its value.
    ///
    /// # Errors
    /// [`Code::Torch`] when the host is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        self.0.set(key, value)
    }

    /// The value of a key, if it has one now.
    ///
    /// # Errors
    /// As [`Board::set`].
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.0.get(key)
    }

    /// What a rank has last said of itself.
    ///
    /// # Errors
    /// As [`Board::set`].
    pub fn rank_state(&self, rank: usize) -> Result<Option<RankState>> {
        let bytes = self.0.get(&format!("0/{}", RankState::key(rank)))?;
        Ok(bytes.and_then(|bytes| RankState::parse(&bytes)))
    }

    /// What a rank has told its launcher under `key`.
    ///
    /// # Errors
    /// As [`Board::set`].
    pub fn told(&self, key: &str) -> Result<Option<String>> {
        let bytes = self.0.get(&format!("0/{key}"))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}
