//! The tensors of a checkpoint's files: their names, and the parts that a rank reads of them.

use crate::{
    error::{Code, Error, Result},
    fs::Place,
    tensor::{
        Kind, Tensor,
        safetensors::{SafetensorsFile, TensorEntry},
    },
    tensor_parallel::Run,
};

/// How much that does not fit is listed.
const MOST_FAULTS: usize = 12;

/// The names of parameters with their shapes.
pub(super) fn named(params: &[ParamPlace<'_>]) -> Vec<(String, Vec<i64>)> {
    params.iter().map(|param| (param.name.to_owned(), param.shape.to_vec())).collect()
}

/// The files of a checkpoint that have parameters.
pub(super) struct Parameters(pub(super) Vec<SafetensorsFile>);

impl Parameters {
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|file| file.contains(name))
    }

    /// [`read_part`] of the file that has the parameter.
    pub(super) fn read_part(&self, name: &str, runs: &[Run], part: (i64, &Tensor)) -> Result<()> {
        let file = self.0.iter().find(|file| file.contains(name));
        let missing = || Error::new(Code::Internal, format!("{name} was not looked for"));
        read_part(file.ok_or_else(missing)?, name, runs, part)
    }
}

/// Where a parameter lies.
pub(super) struct ParamPlace<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [i64],
    pub(super) unit: usize,
    pub(super) index: usize,
}

/// Reads the elements from `start` on of a rank's part of a tensor, as many as `into` has: `runs` say
/// where they are in the file.
pub(super) fn read_part(
    file: &SafetensorsFile,
    name: &str,
    runs: &[Run],
    (start, into): (i64, &Tensor),
) -> Result<()> {
    let end = start + into.numel() as i64;
    for run in runs {
        let (from, to) = (run.part.max(start), (run.part + run.len).min(end));
        if from < to {
            let into = into.f_narrow(0, from - start, to - from)?;
            file.copy_part(name, run.whole + from - run.part, &into)?;
        }
    }
    Ok(())
}

pub(super) fn float_entry<'a>(name: &'a str, shape: &'a [i64]) -> TensorEntry<'a> {
    TensorEntry { name, kind: Kind::Float, shape }
}

/// The tensor of `key`, which is made unless it was the last that was asked for.
pub(super) fn fetch<K: PartialEq>(
    last: &mut Option<(K, Tensor)>,
    key: K,
    make: impl FnOnce() -> Result<Tensor>,
) -> Result<&Tensor> {
    if last.as_ref().is_none_or(|(known, _)| *known != key) {
        // The old one goes before the new one comes.
        *last = None;
        *last = Some((key, make()?));
    }
    match last {
        Some((_, tensor)) => Ok(tensor),
        None => bail!(Code::Internal, "a tensor that was just made is gone"),
    }
}

/// Refuses a file whose tensors are not exactly the expected ones.
pub(super) fn check_names(
    dir: &Place,
    file: &SafetensorsFile,
    expected: &[(String, Vec<i64>)],
) -> Result<()> {
    let (mut faults, mut has_shapes) = (Vec::new(), true);
    for (name, wanted) in expected {
        if !file.contains(name) {
            faults.push(format!("{name} is missing"));
        } else if file.shape(name)? != *wanted {
            let found = file.shape(name)?;
            has_shapes = false;
            faults.push(format!("{name} has the shape {found:?}, the model {wanted:?}"));
        }
    }
    let known = |name: &String| expected.iter().any(|(known, _)| known == name);
    faults.extend(file.names().iter().filter(|n| !known(n)).map(|n| format!("{n} is too much")));
    if faults.is_empty() {
        return Ok(());
    }
    let shown = faults.iter().take(MOST_FAULTS).cloned().collect::<Vec<_>>().join("; ");
    let more = match faults.len().saturating_sub(MOST_FAULTS) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let message = format!("checkpoint {} is of another model: {shown}{more}", dir.display());
    Err(Error::new(Code::Checkpoint, message)
        .hint("make the model with the parameters of the run that wrote the checkpoint")
        .hint_if(has_shapes.then(|| {
            "where the model is the same, give init_engine the `freeze` and `trainable` of that run".to_owned()
        })))
}

pub(super) fn damaged(dir: &Place, e: Error) -> Error {
    let message = format!("checkpoint {}: {}", dir.display(), e.message());
    Error::new(Code::Checkpoint, message).caused_by(e)
}
