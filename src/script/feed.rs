//! Batches between a loader and a step, so that a loop which the user stops loses none.
//!
//! A loader's place moves when it hands a batch out; the batch counts when an optimizer step has used
//! it. In between the user may press Ctrl-C: when the loop is left then, its loader goes back to the
//! first batch that no step has used and no accumulated gradient holds. The next loop over it begins
//! there, and the losses are those of a loop that was never stopped.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
};

use crate::{
    data::{Batch, LoaderState},
    engine::BatchWatch,
    error::{Code, Error},
    run::Interrupt,
};

/// The state of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Handed out.
    Taken,
    /// Its gradients wait for a step.
    Held,
    /// Used, or passed over.
    Done,
}

/// A batch that was handed out.
type Ticket = (Weak<Batch>, Rc<Cell<Fate>>);

/// The batches of a live session that are under way.
pub(crate) struct Feed {
    interrupt: Interrupt,
    tickets: RefCell<Vec<Ticket>>,
    /// The batch of the last forward pass.
    pending: RefCell<Option<Rc<Cell<Fate>>>>,
    held: RefCell<Vec<Rc<Cell<Fate>>>>,
}

impl Feed {
    pub(crate) fn new(interrupt: Interrupt) -> Self {
        let (tickets, pending, held) = Default::default();
        Self { interrupt, tickets, pending, held }
    }

    /// Notes a forward pass of `batch`.
    pub(crate) fn forward_done(&self, batch: &Rc<Batch>) {
        let tickets = self.tickets.borrow();
        let found =
            tickets.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Rc::as_ptr(batch)));
        self.pending.replace(found.map(|(_, fate)| Rc::clone(fate)));
    }

    /// Notes a backward pass, or its error. A backward pass that was stopped has dropped the gradients
    /// of all micro batches of its step.
    pub(crate) fn backward_done(&self, error: Option<&Error>) {
        let mut held = self.held.borrow_mut();
        match error {
            None => {
                if let Some(fate) = self.pending.take() {
                    fate.set(Fate::Held);
                    held.push(fate);
                }
            }
            Some(e) if e.code() == Code::Interrupted => {
                held.drain(..).for_each(|fate| fate.set(Fate::Taken));
            }
            Some(_) => {}
        }
    }

    /// Notes an optimizer step.
    pub(crate) fn step_done(&self) {
        self.held.borrow_mut().drain(..).for_each(|fate| fate.set(Fate::Done));
    }
}

/// A live session is told what becomes of its batches.
impl BatchWatch<Rc<Batch>> for Option<&Feed> {
    fn forward_done(&mut self, batch: &Rc<Batch>) {
        self.iter().for_each(|feed| feed.forward_done(batch));
    }

    fn backward_done(&mut self, error: Option<&Error>) {
        self.iter().for_each(|feed| feed.backward_done(error));
    }

    fn step_done(&mut self) {
        self.iter().for_each(|feed| feed.step_done());
    }
}

/// The batches of one loader that are under way.
pub(crate) struct UnderWay {
    feed: Rc<Feed>,
    /// Each batch with the loader's place before it.
    batches: VecDeque<(LoaderState, Rc<Cell<Fate>>)>,
}

impl UnderWay {
    pub(crate) fn new(feed: Rc<Feed>) -> Self {
        Self { feed, batches: VecDeque::new() }
    }

    /// Notes that the loop asks for its next batch: it is through with the one before.
    pub(crate) fn pass(&mut self) {
        if let Some((_, last)) = self.batches.back().filter(|(_, last)| last.get() == Fate::Taken) {
            last.set(Fate::Done);
        }
        while self.batches.front().is_some_and(|(_, first)| first.get() == Fate::Done) {
            self.batches.pop_front();
        }
    }

    /// Notes a batch that the loader handed out at `place`.
    pub(crate) fn add(&mut self, place: LoaderState, batch: &Rc<Batch>) {
        let fate = Rc::new(Cell::new(Fate::Taken));
        let mut tickets = self.feed.tickets.borrow_mut();
        tickets.retain(|(known, _)| known.strong_count() > 0);
        tickets.push((Rc::downgrade(batch), Rc::clone(&fate)));
        self.batches.push_back((place, fate));
    }

    /// If the user stopped the loop: the loader's place before the first batch that no step has used
    /// and no gradient holds.
    pub(crate) fn take_back(&mut self) -> Option<LoaderState> {
        if !self.feed.interrupt.requested() {
            return None;
        }
        let first = self.batches.iter().position(|(_, fate)| fate.get() == Fate::Taken)?;
        let (place, _) = self.batches[first];
        self.batches.truncate(first);
        Some(place)
    }
}
