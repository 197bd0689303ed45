//! Curves of the steps of a session's engines.

use std::{cell::RefCell, rc::Rc};

use crate::{
    engine::{Engine, Observer},
    error::Result,
};

/// The names of the curves.
pub const CURVES: [&str; 3] = ["loss", "lr", "grad_norm"];

/// A step: its number, and the values of [`CURVES`].
type Step = (u64, [f64; 3]);

/// The steps of all engines of a session, one list for each.
#[derive(Debug, Default)]
pub(crate) struct Curves(RefCell<Vec<Rc<RefCell<Vec<Step>>>>>);

/// Writes down the steps of one engine.
struct Follower(Rc<RefCell<Vec<Step>>>);

impl Observer for Follower {
    fn on_step(&mut self, engine: &Engine) -> Result<()> {
        if let Some(last) = engine.last_step() {
            self.0.borrow_mut().push((engine.global_step(), [last.loss, last.lr, last.grad_norm]));
        }
        Ok(())
    }
}

impl Curves {
    /// Has the steps of a new engine written down.
    pub(super) fn follow(&self, engine: &mut Engine) {
        let steps = Rc::default();
        self.0.borrow_mut().push(Rc::clone(&steps));
        engine.observe(Box::new(Follower(steps)));
    }

    /// Forgets all steps.
    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    /// The curve `name` of [`CURVES`] of the engine that was made last of those that did a step.
    pub(super) fn curve(&self, name: &str) -> Option<Vec<(u64, f64)>> {
        let which = CURVES.iter().position(|curve| *curve == name)?;
        let curves = self.0.borrow();
        let steps = curves.iter().rev().find(|steps| !steps.borrow().is_empty())?.borrow();
        Some(steps.iter().map(|(step, values)| (*step, values[which])).collect())
    }
}
