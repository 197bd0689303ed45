//! Ranks in one process, one thread each, whose collectives take turns by a seed.
//!
//! A rank goes on until it starts a collective or waits for one; then a rank that can go on is drawn. The
//! same seed gives the same order, whatever the threads do, and another seed another one: a transport
//! delays, and groups overtake each other. Where no rank can go on, all of them are told what each waits
//! for, and a rank can be made to leave at any of its collectives. It is for tests of what runs on many
//! ranks: a schedule takes milliseconds, and what it finds can be repeated.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::reduce_op::ReduceOp;
use crate::{
    error::{Code, Error, Result},
    tensor::{Tensor, mix, no_grad},
};

/// The meeting place of the ranks.
pub struct Exchange {
    state: Mutex<State>,
    /// Wakes each rank when it is its turn: one thread, and not all that wait.
    turned: Vec<Condvar>,
}

struct State {
    seed: u64,
    turns: u64,
    /// The rank that goes on.
    turn: usize,
    ranks: Vec<RankTurn>,
    meetings: BTreeMap<Meeting, Gathering>,
    /// Why nobody can go on.
    stuck: Option<String>,
}

#[derive(Default)]
struct RankTurn {
    waits_for: Option<Meeting>,
    has_ended: bool,
    /// Collectives started, and how many there are to be.
    started: u64,
    most: Option<u64>,
}

/// A collective: its group, and its number in it.
type Meeting = (String, u64);

/// A collective whose ranks come one after the other.
struct Gathering {
    name: &'static str,
    members: Arc<[usize]>,
    given: Vec<Option<Tensor>>,
    taken: usize,
}

/// A rank in a group of an exchange.
pub(super) struct Member {
    exchange: Arc<Exchange>,
    rank: usize,
    group: String,
    members: Arc<[usize]>,
    /// Its number in the group.
    index: usize,
    started: Cell<u64>,
}

/// A collective that this rank has come to.
pub(super) struct Appointment {
    exchange: Arc<Exchange>,
    rank: usize,
    meeting: Meeting,
    finish: Finish,
}

/// Makes of what all have given, in the order of the ranks, what this one gets.
type Finish = Box<dyn Fn(&[Tensor]) -> Result<()>>;

impl Exchange {
    /// For so many ranks, whose turns follow from `seed`.
    pub fn new(ranks: usize, seed: u64) -> Arc<Self> {
        let mut state = State {
            seed,
            turns: 0,
            turn: 0,
            ranks: (0..ranks).map(|_| RankTurn::default()).collect(),
            meetings: BTreeMap::new(),
            stuck: None,
        };
        state.next();
        let turned = (0..ranks).map(|_| Condvar::new()).collect();
        Arc::new(Self { state: Mutex::new(state), turned })
    }

    /// Makes `rank` fail at its collective after so many.
    pub fn leave_after(&self, rank: usize, collectives: u64) {
        self.lock().ranks[rank].most = Some(collectives);
    }

    /// The number of ranks.
    pub(super) fn ranks(&self) -> usize {
        self.lock().ranks.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets another rank go on, until it is this one's turn again.
    fn pass(&self, rank: usize, waits_for: Option<Meeting>) {
        let mut state = self.lock();
        state.ranks[rank].waits_for = waits_for;
        state.next();
        self.wake(&state);
        drop(self.await_turn(state, rank));
    }

    /// Wakes the rank whose turn it is.
    fn wake(&self, state: &State) {
        self.turned[state.turn].notify_one();
    }

    fn await_turn<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        rank: usize,
    ) -> MutexGuard<'a, State> {
        while state.turn != rank {
            state = self.turned[rank].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.ranks[rank].waits_for = None;
        state
    }
}

impl State {
    /// Draws the rank that goes on.
    fn next(&mut self) {
        let can = |this: &Self| -> Vec<usize> {
            (0..this.ranks.len()).filter(|&rank| this.can_go_on(rank)).collect()
        };
        let mut ready = can(self);
        if ready.is_empty() && self.ranks.iter().any(|rank| !rank.has_ended) {
            let waits = self.ranks.iter().enumerate().filter_map(|(rank, turn)| {
                let (group, number) = turn.waits_for.as_ref()?;
                Some(format!("rank {rank} waits in #{number} of {group:?}"))
            });
            self.stuck = Some(waits.collect::<Vec<_>>().join(", "));
            ready = can(self);
        }
        self.turns += 1;
        if !ready.is_empty() {
            self.turn = ready[(mix(&[self.seed, self.turns]) % ready.len() as u64) as usize];
        }
    }

    fn can_go_on(&self, rank: usize) -> bool {
        let RankTurn { waits_for, has_ended, .. } = &self.ranks[rank];
        let comes = |meeting: &Meeting| {
            self.stuck.is_some() || self.is_complete(meeting) || self.who_left(meeting).is_some()
        };
        !has_ended && waits_for.as_ref().is_none_or(comes)
    }

    fn is_complete(&self, meeting: &Meeting) -> bool {
        let gathering = self.meetings.get(meeting);
        gathering.is_some_and(|gathering| gathering.given.iter().all(Option::is_some))
    }

    /// A rank that has ended and did not come.
    fn who_left(&self, meeting: &Meeting) -> Option<usize> {
        let Gathering { members, given, .. } = self.meetings.get(meeting)?;
        let mut absent = members.iter().zip(given).filter(|(_, given)| given.is_none());
        absent.find(|(rank, _)| self.ranks[**rank].has_ended).map(|(rank, _)| *rank)
    }
}

impl Member {
    /// Rank `rank` among all.
    pub(super) fn of(exchange: &Arc<Exchange>, rank: usize) -> Self {
        Self::among(exchange, rank, String::new(), (0..exchange.ranks()).collect())
    }

    /// The same rank in a group of some.
    pub(super) fn subgroup(&self, group: &str, members: &[usize]) -> Self {
        Self::among(&self.exchange, self.rank, group.to_owned(), members.into())
    }

    fn among(exchange: &Arc<Exchange>, rank: usize, group: String, members: Arc<[usize]>) -> Self {
        let index = members.iter().position(|&member| member == rank).unwrap_or(0);
        let exchange = Arc::clone(exchange);
        Self { exchange, rank, group, members, index, started: Cell::new(0) }
    }

    /// Comes to the next collective of the group with `given`.
    fn come(&self, name: &'static str, given: &Tensor, finish: Finish) -> Result<Appointment> {
        self.started.set(self.started.get() + 1);
        let meeting = (self.group.clone(), self.started.get());
        {
            let mut state = self.exchange.await_turn(self.exchange.lock(), self.rank);
            let own = &mut state.ranks[self.rank];
            own.started += 1;
            if own.most.is_some_and(|most| own.started > most) {
                bail!(Code::Dist, "rank {} leaves", self.rank);
            }
            let members = Arc::clone(&self.members);
            let gathering = state.meetings.entry(meeting.clone()).or_insert_with(|| Gathering {
                name,
                given: members.iter().map(|_| None).collect(),
                members,
                taken: 0,
            });
            if gathering.name != name {
                let other = gathering.name;
                bail!(Code::Dist, "{name} meets {other} in #{} of {:?}", meeting.1, meeting.0);
            }
            gathering.given[self.index] = Some(no_grad(|| given.detach().copy()));
        }
        self.exchange.pass(self.rank, None);
        let exchange = Arc::clone(&self.exchange);
        Ok(Appointment { exchange, rank: self.rank, meeting, finish })
    }

    pub(super) fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Appointment> {
        let into = tensor.detach();
        let finish = move |given: &[Tensor]| write(&into, &reduced(given, op)?);
        self.come("all_reduce", tensor, Box::new(finish))
    }

    pub(super) fn all_gather(&self, out: &Tensor, shard: &Tensor) -> Result<Appointment> {
        let into = out.detach();
        let finish = move |given: &[Tensor]| {
            let flat: Vec<Tensor> = given.iter().map(|part| part.reshape([-1])).collect();
            write(&into, &Tensor::f_cat(&flat, 0)?)
        };
        self.come("all_gather", shard, Box::new(finish))
    }

    pub(super) fn reduce_scatter(
        &self,
        shard: &Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Appointment> {
        let (into, index) = (shard.detach(), self.index as i64);
        let finish = move |given: &[Tensor]| {
            let sum = reduced(given, op)?.f_reshape([-1i64])?;
            let len = into.numel() as i64;
            write(&into, &sum.f_narrow(0, index * len, len)?)
        };
        self.come("reduce_scatter", input, Box::new(finish))
    }

    pub(super) fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Appointment> {
        let into = tensor.detach();
        let finish = move |given: &[Tensor]| write(&into, &given[root]);
        self.come("broadcast", tensor, Box::new(finish))
    }

    pub(super) fn barrier(&self) -> Result<Appointment> {
        self.come("barrier", &Tensor::from_slice(&[0i64]), Box::new(|_| Ok(())))
    }

    /// Says that the rank has ended.
    pub(super) fn end(&self) {
        let mut state = self.exchange.lock();
        state.ranks[self.rank].has_ended = true;
        if state.turn == self.rank {
            state.next();
            self.exchange.wake(&state);
        }
    }
}

impl Appointment {
    /// Waits until all have come.
    pub(super) fn wait(&self) -> Result<bool> {
        let is_there = {
            let state = self.exchange.await_turn(self.exchange.lock(), self.rank);
            state.is_complete(&self.meeting)
        };
        if !is_there {
            self.exchange.pass(self.rank, Some(self.meeting.clone()));
        }
        let given = {
            let mut state = self.exchange.lock();
            if !state.is_complete(&self.meeting) {
                let why = match (&state.stuck, state.who_left(&self.meeting)) {
                    (None, Some(rank)) => format!("rank {rank} has ended"),
                    (stuck, _) => {
                        format!("nobody can go on: {}", stuck.clone().unwrap_or_default())
                    }
                };
                return Err(Error::new(Code::Dist, why));
            }
            let Some(gathering) = state.meetings.get_mut(&self.meeting) else { return Ok(true) };
            gathering.taken += 1;
            let given: Vec<Tensor> =
                gathering.given.iter().flatten().map(Tensor::shallow_clone).collect();
            if gathering.taken == gathering.members.len() {
                state.meetings.remove(&self.meeting);
            }
            given
        };
        (self.finish)(&given)?;
        Ok(true)
    }

    pub(super) fn is_completed(&self) -> bool {
        self.exchange.lock().is_complete(&self.meeting)
    }
}

/// The reduction, in the order of the ranks.
fn reduced(given: &[Tensor], op: ReduceOp) -> Result<Tensor> {
    no_grad(|| {
        let mut all = given[0].copy();
        for other in &given[1..] {
            all = match op {
                ReduceOp::Sum | ReduceOp::Avg => all.f_add(other)?,
                ReduceOp::Max => all.f_maximum(other)?,
                ReduceOp::Min => all.f_minimum(other)?,
            };
        }
        match op {
            ReduceOp::Avg => {
                Ok(all.f_div_scalar(given.len() as i64)?.f_to_kind(given[0].kind())?)
            }
            _ => Ok(all),
        }
    })
}

/// Writes without autograd's notice, as a transport does.
fn write(into: &Tensor, value: &Tensor) -> Result<()> {
    no_grad(|| {
        let mut flat = into.f_data()?.f_view([-1i64])?;
        Ok(flat.f_copy_(&value.f_reshape([-1i64])?)?)
    })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        dist::ProcessGroup,
        tensor::{Device, Kind},
    };

    /// What each rank gives back.
    fn ranks<T: Send>(count: usize, seed: u64, rank: impl Fn(&ProcessGroup) -> T + Sync) -> Vec<T> {
        let exchange = Exchange::new(count, seed);
        thread::scope(|scope| {
            let (rank, exchange) = (&rank, &exchange);
            let start = |number| {
                scope.spawn(move || {
                    rank(&ProcessGroup::in_process(exchange, number, Device::Cpu).unwrap())
                })
            };
            let all: Vec<_> = (0..count).map(start).collect();
            all.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn collectives_are_those_of_a_transport() {
        for seed in 0..20 {
            let all = ranks(3, seed, |group| {
                let rank = group.rank() as i64;
                let sum = Tensor::from_slice(&[rank, 1]);
                let under_way = group.all_reduce_async(&sum, ReduceOp::Sum).unwrap();
                let most = Tensor::from_slice(&[rank]);
                group.all_reduce(&most, ReduceOp::Max).unwrap();
                under_way.wait().unwrap();
                let all = Tensor::zeros([3], (Kind::Int64, Device::Cpu));
                group.all_gather_into(&all, &Tensor::from_slice(&[10 * rank])).unwrap();
                let own = Tensor::zeros([1], (Kind::Int64, Device::Cpu));
                group.reduce_scatter(&own, &all, ReduceOp::Sum).unwrap();
                let told = Tensor::from_slice(&[rank]);
                group.broadcast(&told, 2).unwrap();
                group.barrier().unwrap();
                let parts = Tensor::cat(&[&sum, &most, &own, &told], 0);
                Vec::<i64>::try_from(&parts).unwrap()
            });
            let expected = (0..3).map(|rank| vec![3, 3, 2, 30 * rank, 2]);
            assert_eq!(all, expected.collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn ranks_that_wait_for_each_other_are_told() {
        let said = ranks(2, 1, |group| {
            let mine = group.subgroup(&format!("of {}", group.rank()), &[0, 1]).unwrap();
            mine.barrier().unwrap_err().to_string()
        });
        assert!(said[0].contains("rank 1 waits in #1 of \"of 1/0-1\""), "{said:?}");
        assert!(said[1].contains("rank 0 waits in #1 of \"of 0/0-1\""), "{said:?}");
    }
}
