//! Files of weights: as they are, and with a length and data that fit the header.

use std::io::Write;

use dsr::fs::Place;
use dsr::tensor::{Device, Kind, SafetensorsFile, Tensor};
use serde_json::Value;

/// Bytes of data that a header may ask for here.
const MOST_DATA: u64 = 1 << 16;

/// Reads the input as a file, and as the header of one.
pub(crate) fn run(data: &[u8]) {
    open(&[data]);
    // Almost no change of a file leaves its length right: what is behind would never be reached.
    let length = (data.len() as u64).to_le_bytes();
    let body = vec![0; usize::try_from(promised(data)).expect("a limited length")];
    open(&[&length, data, &body]);
}

/// Bytes of data that the header is about, as far as that can be told and is not too many.
fn promised(header: &[u8]) -> u64 {
    let Ok(Value::Object(entries)) = serde_json::from_slice(header) else { return 0 };
    let ends = entries.values().filter_map(|entry| entry["data_offsets"][1].as_u64());
    ends.filter(|end| *end <= MOST_DATA).max().unwrap_or(0)
}

fn open(parts: &[&[u8]]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    let parts = parts.concat();
    file.write_all(&parts).expect("space for a file");
    let Ok(found) = SafetensorsFile::open(Place::unguarded(file.path())) else { return };
    let mut sum = 0;
    for name in found.names() {
        assert!(found.contains(&name));
        // Outside of the file this would panic.
        let bytes = found.bytes(&name).expect("a tensor that was named");
        sum += bytes.len();
        let (Ok(shape), Ok(kind)) = (found.shape(&name), found.kind(&name)) else { continue };
        let numel = shape.iter().fold(1, |numel: i128, &dim| numel.saturating_mul(dim.into()));
        assert_eq!(numel * kind.elt_size_in_bytes() as i128, bytes.len() as i128, "{name}");
        let count = i64::try_from(numel).expect("no more elements than bytes");
        let into = Tensor::zeros([count], (Kind::Float, Device::Cpu));
        // What is no floating-point number is refused, and so is more than there is.
        let _ = found.copy_part(&name, 0, &into);
        assert!(found.copy_part(&name, 1, &into).is_err() || count == 0);
        let _ = found.copy_into(&name, &into);
    }
    assert!(sum < parts.len(), "data beside the header");
    found.metadata("format");
    assert!(found.bytes("no such tensor").is_err() || found.contains("no such tensor"));
}
