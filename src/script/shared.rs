//! Handles of a script: engines, models, loaders.
//!
//! Rhai copies values on assignment and on every call, so a handle is shared and cheap to clone.
//! A handle that is used while a call on it still runs (from a callback, say) gives an error;
//! nothing here panics.

use std::{
    cell::{Ref, RefCell, RefMut},
    rc::Rc,
};

use crate::error::{Code, Error, Result};

/// A shared, mutable value behind a script handle.
#[derive(Debug)]
pub struct Shared<T>(Rc<RefCell<T>>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T> Shared<T> {
    /// Puts a value behind a handle.
    pub fn new(value: T) -> Self {
        Self(Rc::new(RefCell::new(value)))
    }

    /// The value, to be read. Fails while a call that changes it still runs.
    pub fn read(&self) -> Result<Ref<'_, T>> {
        self.0.try_borrow().map_err(|_| in_use::<T>())
    }

    /// The value, to be changed. Fails while another call on it still runs.
    pub fn write(&self) -> Result<RefMut<'_, T>> {
        self.0.try_borrow_mut().map_err(|_| in_use::<T>())
    }
}

fn in_use<T>() -> Error {
    let path = std::any::type_name::<T>();
    let name = path.split('<').next().unwrap_or(path).rsplit("::").next().unwrap_or(path);
    Error::new(
        Code::CallOrder,
        format!("this {name} is in use by a call that has not returned yet"),
    )
    .hint("do not call it from a callback that it runs itself")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_in_use_is_an_error_and_not_a_panic() {
        let shared = Shared::new(vec![1]);
        let copy = shared.clone();
        let writing = shared.write().unwrap();
        let error = copy.read().unwrap_err();
        assert_eq!(error.code(), Code::CallOrder);
        assert!(error.message().contains("this Vec is in use"), "{error}");
        drop(writing);
        assert_eq!(*copy.read().unwrap(), [1]);
    }
}
