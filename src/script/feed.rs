//! Batches on their way from a loader into a step, so that a loop which the user stops loses none.
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

use super::{Host, api::loader::api::Loader};
use crate::{
    data::{Batch, LoaderState},
    error::{Code, Error, Result},
    run::Interrupt,
};

/// What became of a batch.
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
#[derive(Clone)]
struct Ticket {
    batch: Weak<Batch>,
    /// Where its loader was before it.
    place: LoaderState,
    fate: Rc<Cell<Fate>>,
}

/// The batches that are under way in a live session.
pub(crate) struct Feed {
    interrupt: Interrupt,
    loaders: RefCell<Vec<(Loader, VecDeque<Ticket>)>>,
    /// The batch that a forward pass was done for.
    pending: RefCell<Option<Rc<Cell<Fate>>>>,
    held: RefCell<Vec<Rc<Cell<Fate>>>>,
}

impl Feed {
    pub(crate) fn new(interrupt: Interrupt) -> Self {
        let (loaders, pending, held) = Default::default();
        Self { interrupt, loaders, pending, held }
    }

    fn of(loader: &Loader) -> Option<Rc<Self>> {
        loader.read().ok()?.feed.clone()
    }

    /// Notes a batch of `loader` that came from `place`.
    fn note(&self, loader: &Loader, place: LoaderState, batch: &Rc<Batch>) {
        let ticket =
            Ticket { batch: Rc::downgrade(batch), place, fate: Rc::new(Cell::new(Fate::Taken)) };
        let mut loaders = self.loaders.borrow_mut();
        loaders.retain(|(known, tickets)| !tickets.is_empty() || known.is_same(loader));
        match loaders.iter_mut().find(|(known, _)| known.is_same(loader)) {
            Some((_, tickets)) => tickets.push_back(ticket),
            None => loaders.push((loader.clone(), VecDeque::from([ticket]))),
        }
    }

    /// A loop asks for its next batch: with the one before it is through.
    fn pass(&self, loader: &Loader) {
        let mut loaders = self.loaders.borrow_mut();
        let found = loaders.iter_mut().find(|(known, _)| known.is_same(loader));
        let Some((_, tickets)) = found else { return };
        if let Some(last) = tickets.back().filter(|last| last.fate.get() == Fate::Taken) {
            last.fate.set(Fate::Done);
        }
        while tickets.front().is_some_and(|first| first.fate.get() == Fate::Done) {
            tickets.pop_front();
        }
    }

    /// Takes back what no step has used and no gradient holds.
    fn take_back(&self, loader: &Loader) -> Result<()> {
        let mut loaders = self.loaders.borrow_mut();
        let found = loaders.iter_mut().find(|(known, _)| known.is_same(loader));
        let Some((_, tickets)) = found else { return Ok(()) };
        let Some(first) = tickets.iter().position(|ticket| ticket.fate.get() == Fate::Taken) else {
            return Ok(());
        };
        let place = tickets[first].place;
        tickets.truncate(first);
        loader.write()?.restore(place)
    }
}

/// The next batch of a loop over `loader`.
pub(crate) fn next_batch(loader: &Loader) -> Result<Option<Rc<Batch>>> {
    let feed = Feed::of(loader);
    if let Some(feed) = &feed {
        feed.pass(loader);
    }
    let place = loader.read()?.state();
    let batch = loader.write()?.next_batch()?.map(Rc::new);
    if let (Some(feed), Some(batch)) = (&feed, &batch) {
        feed.note(loader, place, batch);
    }
    Ok(batch)
}

/// A loop over `loader` has ended, perhaps because the user stopped it.
pub(crate) fn loop_left(loader: &Loader) {
    let Some(feed) = Feed::of(loader).filter(|feed| feed.interrupt.requested()) else { return };
    if let Err(e) = feed.take_back(loader) {
        tracing::warn!("the loader stays where it is: {e}");
    }
}

/// A forward pass was done for `batch`.
pub(crate) fn forward_done(host: &Host, batch: &Rc<Batch>) {
    let Some(feed) = &host.feed else { return };
    let loaders = feed.loaders.borrow();
    let mut tickets = loaders.iter().flat_map(|(_, tickets)| tickets);
    let found = tickets.find(|ticket| std::ptr::eq(ticket.batch.as_ptr(), Rc::as_ptr(batch)));
    feed.pending.replace(found.map(|ticket| Rc::clone(&ticket.fate)));
}

/// A backward pass was done, or has failed with `error`. One that was stopped has dropped the
/// gradients of all micro batches of its step.
pub(crate) fn backward_done(host: &Host, error: Option<&Error>) {
    let Some(feed) = &host.feed else { return };
    let mut held = feed.held.borrow_mut();
    match error {
        None => {
            if let Some(fate) = feed.pending.take() {
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

/// An optimizer step was done.
pub(crate) fn step_done(host: &Host) {
    if let Some(feed) = &host.feed {
        feed.held.borrow_mut().drain(..).for_each(|fate| fate.set(Fate::Done));
    }
}
