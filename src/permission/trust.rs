//! The trust file: recipes that the user trusts with what they ask for, by the hash of their text.
//!
//! ```toml
//! [recipe."9f31..."]
//! name = "gpt2_wikitext.rhai"
//! time = 1766000000
//! read = []
//! write = []
//! net = ["huggingface.co"]
//! ```
//!
//! An edited recipe has another hash, and is asked for again.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Capability, Grants, audit};
use crate::{
    error::{Code, Error, Result},
    fs,
};

const CAPABILITIES: [Capability; 3] = [Capability::Read, Capability::Write, Capability::Net];

/// The file, wherever it is; it need not exist.
#[derive(Debug, Clone)]
pub struct TrustFile(PathBuf);

impl TrustFile {
    /// The file at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The hash of a recipe and its imports, each a name and a text.
    pub fn hash<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let mut hash = Sha256::new();
        for (name, text) in texts {
            // Lengths keep two texts from standing for another division of the same bytes.
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// What the recipe of this hash was trusted with; `None` where it was not.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn grants(&self, hash: &str) -> Result<Option<Grants>> {
        if !self.0.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&self.0)?;
        let header = header(hash);
        let mut lines = text.lines().enumerate().skip_while(|(_, line)| line.trim() != header);
        if lines.next().is_none() {
            return Ok(None);
        }
        let mut grants = Grants::default();
        for (i, line) in lines.take_while(|(_, line)| !line.trim().starts_with('[')) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let Some(capability) = CAPABILITIES.iter().find(|c| c.name() == key.trim()) else {
                continue;
            };
            let items: Vec<String> = serde_json::from_str(value.trim()).map_err(|e| {
                let message = format!("{}:{}: not a list", self.0.display(), i + 1);
                Error::new(Code::Io, message).caused_by(e)
            })?;
            items.into_iter().for_each(|item| grants.add(*capability, item));
        }
        Ok(Some(grants))
    }

    /// Trusts the recipe of this hash with `grants`, in place of what it was trusted with.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn trust(&self, hash: &str, name: &str, grants: &Grants) -> Result<()> {
        let old = if self.0.exists() { fs::read_to_string(&self.0)? } else { String::new() };
        let header = header(hash);
        let mut text = String::new();
        let mut is_old = false;
        for line in old.lines() {
            if line.trim().starts_with('[') {
                is_old = line.trim() == header;
            }
            if !is_old {
                text.push_str(line);
                text.push('\n');
            }
        }
        let name = serde_json::Value::from(name);
        let _ = writeln!(text, "{header}\nname = {name}\ntime = {}", audit::seconds() as u64);
        let items: BTreeMap<_, _> =
            CAPABILITIES.iter().map(|&c| (c, grants.allowed(c).items())).collect();
        for (capability, items) in items {
            let _ = writeln!(text, "{} = {}", capability.name(), serde_json::json!(items));
        }
        if let Some(dir) = self.0.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write_atomic(&self.0, text.as_bytes())
    }
}

fn header(hash: &str) -> String {
    format!("[recipe.\"{hash}\"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trusted_is_found_again_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = TrustFile::at(dir.path().join("dsr/trust.toml"));
        let (one, two) = (TrustFile::hash([("a", "1")]), TrustFile::hash([("a", "2")]));
        assert_ne!(one, two);
        assert_eq!(file.grants(&one).unwrap(), None);
        let mut grants = Grants::default();
        grants.add(Capability::Net, "huggingface.co".to_owned());
        grants.add(Capability::Read, "/a \"b\"/[c]\n".to_owned());
        file.trust(&one, "a.rhai", &grants).unwrap();
        file.trust(&two, "a.rhai", &Grants::default()).unwrap();
        assert_eq!(file.grants(&one).unwrap(), Some(grants.clone()));
        assert_eq!(file.grants(&two).unwrap(), Some(Grants::default()));
        file.trust(&two, "b.rhai", &grants).unwrap();
        assert_eq!(file.grants(&two).unwrap(), Some(grants));
        assert_eq!(fs::read_to_string(file.path()).unwrap().matches("[recipe").count(), 2);
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust.toml");
        fs::write_atomic(&path, b"[recipe.\"aa\"]\nnet = huggingface.co\n").unwrap();
        assert_eq!(TrustFile::at(path).grants("aa").unwrap_err().code(), Code::Io);
    }
}
