//! Counts and sizes of memory as text: as people read and write them, and as Linux has them in `/proc`.

use std::{fmt, str::FromStr};

/// The value in bytes of a line such as `VmRSS:   1234 kB` in a text of Linux's `/proc`.
pub fn proc_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A count with commas between its thousands.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count as people read it: `950`, `3.4k`, `124.4M`, `1.56B`.
#[derive(Debug, Clone, Copy)]
pub struct Count(pub f64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n < 999.5 => write!(f, "{n:.0}"),
            n if n < 999_950.0 => write!(f, "{:.1}k", n / 1e3),
            n if n < 999.95e6 => write!(f, "{:.1}M", n / 1e6),
            n => write!(f, "{:.2}B", n / 1e9),
        }
    }
}

/// A number of bytes as people read it: `1.9 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0 as f64;
        match self.0 {
            0..0x400 => write!(f, "{} bytes", self.0),
            0x400..0x10_0000 => write!(f, "{:.1} KiB", value / 1024.0),
            0x10_0000..0x4000_0000 => write!(f, "{:.1} MiB", value / (1024.0 * 1024.0)),
            _ => write!(f, "{:.1} GiB", value / (1024.0 * 1024.0 * 1024.0)),
        }
    }
}

impl FromStr for Bytes {
    type Err = String;

    /// Reads a number of bytes such as `32GB`, `31.4GiB` or `512MiB`.
    fn from_str(text: &str) -> Result<Self, String> {
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
        let value =
            found.and_then(|(number, size)| Some(number.trim().parse::<f64>().ok()? * size));
        match value {
            Some(value) if value.is_finite() && value >= 1.0 => Ok(Self(value as u64)),
            _ => Err("expected a size such as 32GB, 31.4GiB or 512MiB".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_read_as_people_say_them() {
        let counts = [950.4, 999.7, 1.23e6, 124_439_808.0, 999.96e6, 1_557_611_200.0];
        let texts = counts.map(|n| Count(n).to_string());
        assert_eq!(texts, ["950", "1.0k", "1.2M", "124.4M", "1.00B", "1.56B"]);
    }

    #[test]
    fn sizes_read_as_people_say_them() {
        let text = |bytes| Bytes(bytes).to_string();
        assert_eq!(text(12), "12 bytes");
        assert_eq!(text(3 << 19), "1.5 MiB");
        assert_eq!(text(2_040_109_466), "1.9 GiB");
    }

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        assert_eq!("32GB".parse(), Ok(Bytes(32_000_000_000)));
        assert_eq!("0.5 GiB".parse(), Ok(Bytes(1 << 29)));
        for wrong in ["32", "GB", "-1GB", "nanGB", "0GB", "1TBB"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_kernels_numbers_are_read() {
        let text = "MemTotal:       24683628 kB\nMemAvailable:   22846372 kB\n";
        assert_eq!(proc_bytes(text, "MemAvailable:"), Some(22_846_372 * 1024));
        assert_eq!(proc_bytes(text, "SwapFree:"), None);
    }
}
