//! The directory of one checkpoint: its name, and whether it is one of dsr's that may be replaced.

use super::manifest::Manifest;
use crate::{
    error::{Code, Error, Result},
    fs::Place,
};

pub(super) fn directory_name(step: u64) -> String {
    format!("step-{step:08}")
}

pub(super) fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    let all_digits = digits.bytes().all(|b| b.is_ascii_digit());
    if digits.len() >= 8 && all_digits { digits.parse().ok() } else { None }
}

/// Refuses to replace or remove what is no checkpoint of dsr: its manifest says that it is one, of the step
/// in its name, and lists exactly the files that are there.
pub(super) fn check_ours(place: &Place) -> Result<()> {
    let refused = |why: &str| {
        let message = format!("{} stays as it is: {why}", place.display());
        Err(Error::new(Code::Checkpoint, message)
            .hint("move it away, or save to another directory"))
    };
    if !place.is_taken()? {
        return Ok(());
    }
    let step = place.name().and_then(step_of);
    match Manifest::read(place) {
        Ok(manifest) if Some(manifest.step) != step => refused("its manifest is of another step"),
        Ok(manifest) => match manifest.foreign(place)? {
            Some(name) => refused(&format!("{name:?} in it is not as a checkpoint of dsr has it")),
            None => Ok(()),
        },
        Err(_) => refused("it is no checkpoint of dsr"),
    }
}
