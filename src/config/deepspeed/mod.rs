//! DeepSpeed's own config file, read as the options of `init_engine`.
//!
//! Each value has the meaning that DeepSpeed 0.19.8 gives it. Tables (`key`, and one file for each
//! family of blocks) say of every key that DeepSpeed knows what type it has and what becomes of it: an
//! option of dsr, nothing with a note that says why, or a refusal. `found` checks a file against them,
//! `draft` builds the options, and each family's `translate` sees to what is more than a copy. All
//! faults of a file come together, each with its place.
//!
//! A value `"auto"` is left to the recipe, as transformers' Trainer does it; a micro batch that the
//! recipe leaves to dsr too is the largest that fits.

mod check;
mod checkpoint;
mod draft;
mod extras;
mod fault;
mod found;
mod json;
mod key;
mod listing;
mod monitor;
mod optimizer;
mod options;
mod parallel;
mod precision;
mod removed;
mod scheduler;
mod sparse;
mod top;
mod zero;

use serde_json::{Map, Value, json};

use self::{
    draft::{Draft, Given},
    found::Found,
};
pub use self::{
    draft::{Origin, Settings},
    fault::{Fault, Note, Position},
    listing::KnownKey,
};
/// Reads the text of a file. `given` is what the recipe says, in dsr's terms: it stands in for
/// `"auto"` and for what the file does not say, and must not contradict the rest.
///
/// # Errors
/// All faults, in the order of the file: of syntax, of keys and types, of what cannot be honoured;
/// contradictions to `given`; with `given`, an `"auto"` that nothing resolves and dsr needs.
pub fn read(text: &str, given: Option<&Map<String, Value>>) -> Result<Settings, Vec<Fault>> {
    let mut faults = Vec::new();
    let entries = json::parse(text, &mut faults).map_err(|fault| vec![fault])?;
    let mut notes = Vec::new();
    let found = Found::of(&entries, top::keys(), &mut notes, &mut faults);
    let given = Given::of(given);
    let mut draft = Draft::new(notes, faults);
    for (key, option) in found.copies() {
        draft.copy(&found, key, option);
    }
    precision::translate(&found, &given, &mut draft);
    zero::translate(&found, &mut draft);
    optimizer::translate(&found, &given, &mut draft);
    scheduler::translate(&found, &given, &mut draft);
    checkpoint::translate(&found, &given, &mut draft);
    parallel::translate(&found, &mut draft);
    monitor::translate(&found, &mut draft);
    sparse::translate(&found, &mut draft);
    // DeepSpeed divides the loss of each micro batch by their number.
    draft.imply("loss_average", json!("micro_batches"));
    draft.fill(&given);
    scheduler::settle(&mut draft);
    draft.finish(&given)
}

/// Every known key, block by block.
pub fn known_keys() -> Vec<KnownKey> {
    listing::known_keys(top::keys())
}

#[cfg(test)]
mod tests;
