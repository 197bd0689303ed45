//! Writing: entries first, then each tensor as it is brought.

use std::io::{BufWriter, Write};

use safetensors::tensor::Dtype;
use serde_json::{Map, Value};

use super::{KINDS, LENGTH_BYTES};
use crate::{
    bridge::ops::with_bytes,
    error::{Code, IoContext, Result},
    fs::Place,
    tensor::{Device, Kind, Tensor},
};

/// A tensor that is to be written.
#[derive(Debug, Clone, Copy)]
pub struct TensorEntry<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its format in the file.
    pub kind: Kind,
    /// Its shape in the file.
    pub shape: &'a [i64],
}

/// Writes a new file and flushes it to the disk. `fetch` brings the tensors by their number among
/// `entries`, one at a time, in the order of the file; they need only have the elements of their
/// shape, and come to host memory one after another. Without a place they are fetched in the same
/// order and not written, for ranks that only take part in bringing them.
///
/// # Errors
/// [`Code::Io`] when the file exists already, as another process may have it mapped. A file that was
/// begun stays; write into a [`crate::fs::NewDir`].
pub fn write<'a>(
    place: Option<&Place>,
    entries: impl IntoIterator<Item = TensorEntry<'a>>,
    mut fetch: impl FnMut(usize) -> Result<Tensor>,
) -> Result<()> {
    let entries = in_file_order(entries)?;
    let Some(place) = place else {
        return entries.iter().try_for_each(|placed| fetch(placed.index).map(drop));
    };
    let header = header(&entries)?;
    let (file, path) = (place.create_new()?, place.path());
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    writer.write_all(&(header.len() as u64).to_le_bytes()).at("write", path)?;
    writer.write_all(&header).at("write", path)?;
    for Placed { entry, index, .. } in &entries {
        let tensor = fetch(*index)?;
        let on_host = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(entry.kind)?;
        let on_host = on_host.f_contiguous()?;
        if on_host.numel() as i64 != entry.shape.iter().product::<i64>() {
            bail!(Code::Internal, "{} does not have the shape {:?}", entry.name, entry.shape);
        }
        with_bytes(&on_host, |bytes| writer.write_all(bytes))?.at("write", path)?;
    }
    writer.flush().at("write", path)?;
    drop(writer);
    file.sync_all().at("write", path)
}

/// [`write`] for tensors that are there.
#[cfg(test)]
pub fn write_tensors<'a>(
    place: impl Into<Place>,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().map(|(name, t)| (name, t, t.size())).collect();
    let entry =
        |(name, t, shape): &'_ (&'a str, &'a Tensor, Vec<i64>)| (*name, t.kind(), shape.clone());
    let described: Vec<_> = tensors.iter().map(entry).collect();
    let entries =
        described.iter().map(|(name, kind, shape)| TensorEntry { name, kind: *kind, shape });
    write(Some(&place.into()), entries, |i| Ok(tensors[i].1.shallow_clone()))
}

/// An entry with its dtype, and its number among those that were given.
struct Placed<'a> {
    entry: TensorEntry<'a>,
    dtype: Dtype,
    index: usize,
}

/// By falling alignment, so that every tensor is aligned, then by name, as Hugging Face orders them.
fn in_file_order<'a>(
    entries: impl IntoIterator<Item = TensorEntry<'a>>,
) -> Result<Vec<Placed<'a>>> {
    let mut placed = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let TensorEntry { name, kind, .. } = entry;
        let Some(&(_, dtype)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            bail!(Code::Internal, "{name} has the dtype {kind:?}, which is not written to files");
        };
        placed.push(Placed { entry, dtype, index });
    }
    placed.sort_by_key(|placed| (std::cmp::Reverse(placed.dtype), placed.entry.name));
    Ok(placed)
}

/// The header's JSON, with the blanks that align the data.
fn header(tensors: &[Placed<'_>]) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    // As transformers does: without it, old versions refuse to load the file.
    entries.insert("__metadata__".to_owned(), serde_json::json!({"format": "pt"}));
    let mut end = 0;
    for Placed { entry: TensorEntry { name, kind, shape }, dtype, .. } in tensors {
        let start = end;
        end += shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
        let entry = serde_json::json!({
            "dtype": dtype.to_string(),
            "shape": shape,
            "data_offsets": [start, end],
        });
        if entries.insert((*name).to_owned(), entry).is_some() {
            bail!(Code::Internal, "two tensors of the name {name} in one file");
        }
    }
    let mut json = Value::from(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(LENGTH_BYTES), b' ');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CPU: Device = Device::Cpu;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_file_that_exists_is_not_written_over() {
        let dir = directory();
        let path = dir.path().join("a");
        fs::write(&path, "mine").unwrap();
        assert_eq!(write_tensors(&path, []).unwrap_err().code(), Code::Io);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_full_disk_has_its_own_code() {
        let root = directory();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(root.path())
            .output();
        if !mount.as_ref().is_ok_and(|o| o.status.success()) {
            println!("skipped: a small tmpfs cannot be mounted here");
            return;
        }
        let large = Tensor::zeros([1 << 20], (Kind::Float, CPU));
        let outcome = write_tensors(root.path().join("a"), [("w", &large)]);
        std::process::Command::new("umount").arg(root.path()).status().unwrap();
        assert_eq!(outcome.unwrap_err().code(), Code::DiskFull);
    }
}
