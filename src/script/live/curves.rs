//! What the engines of a session did, step by step: for curves.

use std::{cell::RefCell, rc::Rc};

use super::Live;
use crate::{
    engine::{Engine, Observer},
    error::Result,
    script::Host,
};

/// What of a step makes a curve.
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

impl Host {
    /// Has the steps of a new engine written down, where somebody may ask for them.
    pub(crate) fn follow(&self, engine: &mut Engine) {
        if self.is_live() {
            let steps = Rc::default();
            self.curves.0.borrow_mut().push(Rc::clone(&steps));
            engine.observe(Box::new(Follower(steps)));
        }
    }
}

impl Live {
    /// The curve `name` of [`CURVES`] of the engine that was made last of those that did a step.
    pub fn curve(&self, name: &str) -> Option<Vec<(u64, f64)>> {
        let which = CURVES.iter().position(|curve| *curve == name)?;
        let curves = self.host.curves.0.borrow();
        let steps = curves.iter().rev().find(|steps| !steps.borrow().is_empty())?.borrow();
        Some(steps.iter().map(|(step, values)| (*step, values[which])).collect())
    }

    /// Forgets them.
    pub(super) fn clear_curves(&self) {
        self.host.curves.0.borrow_mut().clear();
    }
}
