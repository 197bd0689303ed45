//! `for` over a handle: one item after another, until the data ends or fails.

use std::{any::TypeId, iter};

use rhai::{Dynamic, Module, Variant};

use crate::{error::Result, recipe::error::ScriptResult};

/// Lets `for` go over values of the type `T`. An error of `open` or of an item stops the loop, at the
/// position of the value.
pub(crate) fn set_iterator<T, I>(module: &mut Module, open: fn(T) -> Result<I>)
where
    T: Variant + Clone,
    I: Iterator<Item = Result<Dynamic>> + 'static,
{
    module.set_iter_result(TypeId::of::<T>(), move |value| match open(value.cast()) {
        Ok(items) => Box::new(until_error(items)),
        Err(e) => Box::new(iter::once(Err(e.into()))),
    });
}

/// Ends after an error: Rhai asks for more when the body of the loop is empty.
fn until_error(
    mut items: impl Iterator<Item = Result<Dynamic>>,
) -> impl Iterator<Item = ScriptResult<Dynamic>> {
    let mut failed = false;
    iter::from_fn(move || {
        let item = if failed { None } else { items.next() }?;
        failed = item.is_err();
        Some(item.map_err(Into::into))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, Error};

    #[test]
    fn nothing_follows_an_error() {
        let endless = iter::repeat_with(|| Err(Error::new(Code::Data, "a bad record")));
        assert_eq!(until_error(endless).count(), 1);
    }
}
