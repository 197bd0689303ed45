//! GPUs by name, and sizes of memory as people write them.

use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    fs::Bytes,
};

/// What CUDA reports as a GPU's memory, in MiB: less than the name promises, as drivers and error
/// correction take their part.
const GPUS: &[(&str, u64)] = &[
    ("RTX 3090", 24_124),
    ("RTX 4090", 24_083),
    ("RTX 5090", 32_110),
    ("T4", 14_910),
    ("L4", 22_563),
    ("V100 16GB", 16_144),
    ("V100 32GB", 32_494),
    ("A100 40GB", 40_339),
    ("A100 80GB", 81_050),
    ("H100", 81_005),
];

/// The memory of the GPU of this name.
pub(super) fn memory_of(name: &str) -> Result<Bytes> {
    let known = GPUS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name.trim()));
    if let Some(&(_, mib)) = known {
        return Ok(Bytes(mib << 20));
    }
    let names: Vec<_> = GPUS.iter().map(|(name, _)| *name).collect();
    let mut e = Error::new(Code::Usage, format!("--gpu: no GPU \"{name}\" is known"));
    if let Some(near) = nearest(name, names.iter().copied()) {
        e = e.hint(format!("did you mean \"{near}\"?"));
    }
    Err(e.hint(format!("known are {}; for others there is --gpu-memory", names.join(", "))))
}

/// A number of bytes such as `32GB`, `31.4GiB` or `512MiB`.
pub(super) fn bytes(text: &str) -> Result<Bytes, String> {
    const UNITS: &[(&str, f64)] = &[
        ("kib", 1024.0),
        ("mib", 1_048_576.0),
        ("gib", 1_073_741_824.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
    ];
    let lower = text.trim().to_ascii_lowercase();
    let found = UNITS.iter().find_map(|&(unit, size)| Some((lower.strip_suffix(unit)?, size)));
    let value = found.and_then(|(number, size)| Some(number.trim().parse::<f64>().ok()? * size));
    match value {
        Some(value) if value.is_finite() && value >= 1.0 => Ok(Bytes(value as u64)),
        _ => Err("expected a size such as 32GB, 31.4GiB or 512MiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        assert_eq!(bytes("32GB"), Ok(Bytes(32_000_000_000)));
        assert_eq!(bytes("0.5 GiB"), Ok(Bytes(1 << 29)));
        for wrong in ["32", "GB", "-1GB", "nanGB", "0GB", "1TBB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_gpu_is_known_by_its_name() {
        assert_eq!(memory_of("rtx 5090").unwrap(), Bytes(32_110 << 20));
        let e = memory_of("RTX 5091").unwrap_err();
        assert_eq!(e.hints()[0], "did you mean \"RTX 5090\"?");
    }
}
