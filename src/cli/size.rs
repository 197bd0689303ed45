//! Sizes of memory as people write them.

use crate::fs::Bytes;

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
}
