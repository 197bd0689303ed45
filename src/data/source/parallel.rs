//! Reading on one core and parsing on all: text is read in parts, and these become batches beside each
//! other, in their order.

use std::collections::VecDeque;

use arrow::array::RecordBatch;

use crate::{data::stage::Batches, error::Result};

/// The batches that `parse` makes of the parts that `take` reads, `at_once` of them at a time; `take` gives
/// none at the end. What cannot be read or parsed is an error at its place.
pub(super) fn parsed<T: Send + 'static>(
    at_once: usize,
    mut take: impl FnMut() -> Result<Option<T>> + 'static,
    parse: impl Fn(&T) -> Result<RecordBatch> + Sync + 'static,
) -> Batches {
    let mut read = some(at_once, &mut take);
    let mut ready = VecDeque::new();
    Box::new(std::iter::from_fn(move || {
        if ready.is_empty() {
            let parts = std::mem::take(&mut read);
            let mut batches: Vec<_> = parts.iter().map(|_| None).collect();
            // This thread reads on while the others parse.
            rayon::in_place_scope(|scope| {
                for (batch, part) in batches.iter_mut().zip(parts) {
                    let parse = &parse;
                    scope.spawn(move |_| *batch = Some(part.and_then(|part| parse(&part))));
                }
                read = some(at_once, &mut take);
            });
            ready = batches.into_iter().flatten().collect();
        }
        ready.pop_front()
    }))
}

/// The next parts; an error is the last of them.
fn some<T>(most: usize, take: &mut impl FnMut() -> Result<Option<T>>) -> Vec<Result<T>> {
    let mut parts = Vec::new();
    while parts.len() < most && !matches!(parts.last(), Some(Err(_))) {
        let Some(part) = take().transpose() else { break };
        parts.push(part);
    }
    parts
}
