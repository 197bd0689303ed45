//! Numbers in JSON that come back to the bit: as text, which Rust reads exactly; the reader of JSON
//! may miss the last bit of a number.

use serde::{Deserialize, Serialize};

/// A number that is written as text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Exact(pub f64);

impl From<Exact> for String {
    fn from(Exact(number): Exact) -> Self {
        format!("{number:?}")
    }
}

impl TryFrom<String> for Exact {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back_to_the_bit() {
        let mut number = 0.1f64;
        for _ in 0..1000 {
            number = (number * 1.618_033_988_749_895).fract() * 1e-3 + f64::MIN_POSITIVE;
            let text = serde_json::to_string(&Exact(number)).unwrap();
            let Exact(back) = serde_json::from_str(&text).unwrap();
            assert_eq!(back.to_bits(), number.to_bits(), "{text}");
        }
        assert_eq!(serde_json::to_string(&Exact(1e-4)).unwrap(), "\"0.0001\"");
        assert!(serde_json::from_str::<Exact>("\"x\"").is_err());
    }
}
