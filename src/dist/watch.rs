//! The thread that tells the others the state of a rank and reads theirs, so that an error can name the rank
//! that did not come.
//!
//! A transport knows only that nothing arrived. Each rank therefore counts the collectives that it
//! starts, and a thread beside it writes the count into the store where the ranks met, once a
//! second, together with what the rank waits for. A rank that has waited for a while reads what the
//! others wrote. When one of them can never come, because it has ended or is in another collective
//! of the same number, the wait ends at once with an error; else the timeout's error names who is
//! missing.
//!
//! A rank whose user wants no more tells that too. It gives a collective up that others keep from its end:
//! those that show no sign of life, and, after a while, those that go on as if nobody had asked.
//!
//! All traffic with the store is the thread's: a store that does not answer holds up nobody.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    rank::Rank,
    rank_state::{Call, RankPhase, RankState},
};
use crate::{
    bridge::dist::Store,
    error::{Result, StopWhen},
};

/// How often a rank says that it is alive.
const BEAT: Duration = Duration::from_secs(1);
/// How long a rank waits before it looks at the others.
const PATIENCE: Duration = Duration::from_secs(2);
/// A rank whose beat has not changed for this long, as seen by another, shows no sign of life.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a rank that is to stop waits for others that have not heard of it: a step may be under way.
const LAST_PATIENCE: Duration = Duration::from_secs(10);
/// How long the store may take to answer before a rank goes on without it.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// The last state of another rank, and when its beat last changed as seen from here.
#[derive(Debug, Clone)]
struct Seen {
    state: RankState,
    changed: Instant,
}

/// This rank's state and what it saw of the others.
struct Shared {
    rank: usize,
    stop: StopWhen,
    own: Mutex<OwnState>,
    /// By rank; `None` for one that has said nothing.
    seen: Mutex<Vec<Option<Seen>>>,
}

struct OwnState {
    state: RankState,
    waits_since: Option<Instant>,
    /// Whether a collective was given up while it ran.
    abandoned: bool,
}

enum Request {
    /// Publish the own state and read those of the others.
    Refresh(Sender<()>),
    /// Set a key of the store.
    Set(String, Vec<u8>, Sender<()>),
}

/// The thread that speaks for this rank.
pub(super) struct Watch {
    shared: Arc<Shared>,
    requests: Sender<Request>,
}

impl Watch {
    /// Starts to speak for a rank through `store`, also of the user's wish to `stop`.
    pub(super) fn start(store: Store, Rank { rank, world_size }: Rank, stop: StopWhen) -> Self {
        let state = RankState {
            phase: RankPhase::Working,
            call: None,
            started: BTreeMap::new(),
            beat: 0,
            stops: false,
        };
        let shared = Arc::new(Shared {
            rank,
            stop,
            own: Mutex::new(OwnState { state, waits_since: None, abandoned: false }),
            seen: Mutex::new(vec![None; world_size]),
        });
        let (requests, inbox) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        // It ends with the last request's sender; a store that hangs must not hold up the process.
        thread::spawn(move || of_thread.speak(&store, &inbox));
        Self { shared, requests }
    }

    /// Counts a collective that is started in `group`.
    pub(super) fn started(&self, name: &str, group: &str) -> Call {
        let state = &mut lock(&self.shared.own).state;
        let number = state.started.entry(group.to_owned()).or_default();
        *number += 1;
        let call = Call { number: *number, name: name.to_owned(), group: group.to_owned() };
        state.call = Some(call.clone());
        call
    }

    /// Says that this rank waits for `call`, until [`Watch::waited`].
    pub(super) fn waits(&self, call: &Call) {
        let mut own = lock(&self.shared.own);
        own.state.call = Some(call.clone());
        own.state.phase = RankPhase::Waiting;
        own.waits_since = Some(Instant::now());
    }

    /// Says that the wait is over.
    pub(super) fn waited(&self) {
        let mut own = lock(&self.shared.own);
        own.state.phase = RankPhase::Working;
        own.waits_since = None;
    }

    /// Says that this rank has given up a collective that still runs.
    pub(super) fn abandons(&self) {
        lock(&self.shared.own).abandoned = true;
    }

    /// Whether this rank has given up a collective.
    pub(super) fn has_abandoned(&self) -> bool {
        lock(&self.shared.own).abandoned
    }

    /// Those of `members` that can never take part in `call`, as far as this rank has seen.
    pub(super) fn who_never_comes(&self, call: &Call, members: &[usize]) -> Option<String> {
        let words = self.others(members, |rank, seen| {
            let state = &seen?.state;
            state.never_comes(call).then(|| format!("rank {rank} {}", state.words()))
        });
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// Those of `members` that have not started `call`, with their activity; empty when all have.
    pub(super) fn who_is_missing(&self, call: &Call, members: &[usize]) -> String {
        let words = self.others(members, |rank, seen| {
            let Some(Seen { state, changed }) = seen else {
                return Some(format!("rank {rank} has not been heard of"));
            };
            let silent = changed.elapsed();
            if state.started_beside(call) >= call.number
                && silent < SILENCE
                && !state.never_comes(call)
            {
                return None;
            }
            let mut words = format!("rank {rank} {}", state.words());
            if silent >= SILENCE && state.phase != RankPhase::Ended {
                words.push_str(&format!(", silent for {} s", silent.as_secs()));
            }
            Some(words)
        });
        words.join(", ")
    }

    /// Whether the user wants no more.
    pub(super) fn stops(&self) -> bool {
        (self.shared.stop)()
    }

    /// The `members` that keep this rank in `call`, where it was asked to stop so long ago. A rank that
    /// was asked too, and lives, may be about to save, and is waited for.
    pub(super) fn who_holds_up(
        &self,
        call: &Call,
        members: &[usize],
        asked: Duration,
    ) -> Option<String> {
        let words = self.others(members, |rank, seen| {
            let Some(Seen { state, changed }) = seen else {
                let is_late = asked >= LAST_PATIENCE;
                return is_late.then(|| format!("rank {rank} has not been heard of"));
            };
            let silent = changed.elapsed();
            if silent >= SILENCE && state.phase != RankPhase::Ended {
                return Some(format!(
                    "rank {rank} {}, silent for {} s",
                    state.words(),
                    silent.as_secs()
                ));
            }
            let has_come = state.started_beside(call) >= call.number;
            let goes_on = !has_come && !state.stops && asked >= LAST_PATIENCE;
            goes_on.then(|| format!("rank {rank} {}", state.words()))
        });
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// Brings what is known of the others up to date, if the store answers.
    pub(super) fn refresh(&self) {
        self.ask(Request::Refresh);
    }

    /// Says for good what has become of this rank.
    pub(super) fn close(&self, phase: RankPhase) {
        lock(&self.shared.own).state.phase = phase;
        self.ask(Request::Refresh);
    }

    /// Sets a key of the store.
    pub(super) fn set(&self, key: &str, value: &[u8]) {
        self.ask(|done| Request::Set(key.to_owned(), value.to_vec(), done));
    }

    fn ask(&self, request: impl FnOnce(Sender<()>) -> Request) {
        let (done, answer) = mpsc::channel();
        if self.requests.send(request(done)).is_ok() {
            // Without an answer what is known stays as old as it is.
            let _ = answer.recv_timeout(STORE_TIMEOUT);
        }
    }

    fn others(
        &self,
        members: &[usize],
        words: impl Fn(usize, Option<&Seen>) -> Option<String>,
    ) -> Vec<String> {
        let seen = lock(&self.shared.seen);
        let others = members.iter().filter(|rank| **rank != self.shared.rank);
        others.filter_map(|&rank| words(rank, seen.get(rank).and_then(Option::as_ref))).collect()
    }
}

impl Shared {
    /// The thread: beats, reads while this rank waits for long, and answers requests. It ends with
    /// the store, or when nobody can ask any more.
    fn speak(&self, store: &Store, inbox: &Receiver<Request>) {
        let mut next_look = PATIENCE;
        loop {
            let request = match inbox.recv_timeout(BEAT) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let waited = lock(&self.own).waits_since.map_or(Duration::ZERO, |at| at.elapsed());
            if waited < PATIENCE {
                next_look = PATIENCE;
            }
            // Ever less often, as all ranks may be waiting for one.
            let look = waited >= next_look || matches!(request, Some(Request::Refresh(_)));
            if look {
                next_look = (waited + waited / 8).max(waited + BEAT);
            }
            let spoken = match &request {
                Some(Request::Set(key, value, _)) => store.set(key, value),
                _ => self.exchange(store, look),
            };
            if spoken.is_err() {
                return;
            }
            if let Some(Request::Refresh(done) | Request::Set(_, _, done)) = request {
                // The caller may have given up.
                let _ = done.send(());
            }
        }
    }

    /// Publishes this rank's state and, with `look`, reads the others'.
    fn exchange(&self, store: &Store, look: bool) -> Result<()> {
        let state = {
            let state = &mut lock(&self.own).state;
            state.beat += 1;
            state.stops = (self.stop)();
            state.clone()
        };
        // A plain struct always has a JSON form.
        let bytes = serde_json::to_vec(&state).unwrap_or_default();
        store.set(&RankState::key(self.rank), &bytes)?;
        let world_size = lock(&self.seen).len();
        for rank in (0..world_size).filter(|&rank| look && rank != self.rank) {
            let bytes = store.get(&RankState::key(rank))?;
            let Some(state) = bytes.and_then(|bytes| RankState::parse(&bytes)) else { continue };
            let seen = &mut lock(&self.seen)[rank];
            let same = seen.as_ref().filter(|seen| seen.state.beat == state.beat);
            let changed = same.map_or_else(Instant::now, |seen| seen.changed);
            *seen = Some(Seen { state, changed });
        }
        Ok(())
    }
}

/// The data behind a lock; a thread that panicked left it whole, as each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_do_is_seen_through_the_store() {
        let timeout = Duration::from_secs(30);
        let address = "127.0.0.1";
        let (store, port) = Store::host((address, 0), "watch", timeout).unwrap();
        let join = || Store::tcp((address, port), "watch", timeout).unwrap();
        let start = |rank| {
            let stop = Arc::new(move || rank == 1);
            Watch::start(join(), Rank { rank, world_size: 3 }, stop)
        };
        let (a, b) = (start(0), start(1));
        assert!(b.stops() && !a.stops());
        let mine = a.started("all_reduce", "");
        b.started("barrier", "");
        b.refresh();
        a.refresh();
        assert_eq!(a.who_is_missing(&mine, &[0, 1, 2]), "rank 2 has not been heard of");
        assert_eq!(a.who_never_comes(&mine, &[0, 1, 2]), None);
        let held = |asked| a.who_holds_up(&mine, &[0, 1, 2], asked);
        assert_eq!(held(Duration::from_secs(1)), None);
        assert_eq!(held(LAST_PATIENCE).unwrap(), "rank 2 has not been heard of");
        let later = b.started("all_reduce", "");
        let held = |members| b.who_holds_up(&later, members, LAST_PATIENCE);
        a.refresh();
        b.refresh();
        assert_eq!(held(&[0, 1]).unwrap(), "rank 0 has not come since all_reduce #1");
        let _second = a.started("all_reduce", "");
        let last = a.started("all_reduce", "");
        let of_a = a.who_holds_up(&last, &[0, 1], LAST_PATIENCE);
        assert_eq!(of_a, None, "rank 1 was asked too, and may come");
        b.close(RankPhase::Ended);
        let next = a.started("barrier", "");
        a.refresh();
        assert_eq!(
            a.who_never_comes(&next, &[0, 1, 2]).unwrap(),
            "rank 1 has ended after all_reduce #2"
        );
        let said = store.get(&RankState::key(1)).unwrap().unwrap();
        assert_eq!(RankState::parse(&said).unwrap().phase, RankPhase::Ended);
    }
}
