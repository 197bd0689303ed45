//! SHA-256, as recipes, locks and bundles write it: 64 hexadecimal digits in lower case.

use sha2::Digest;

/// The hash of some bytes.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// A hash of bytes that come part by part.
#[derive(Debug, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// That of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash, as [`sha256`] writes it.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Bytes as hexadecimal digits in lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `text` is a hash as [`sha256`] writes it.
pub fn is_sha256(text: &str) -> bool {
    is_hex(text, 64)
}

/// Whether `text` is so many hexadecimal digits in lower case.
pub fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_nothing_is_known() {
        let known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(""), known);
        assert!(is_sha256(known) && !is_sha256(&known.to_uppercase()) && !is_sha256("e3"));
    }
}
