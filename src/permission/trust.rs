//! The trust file: recipes that the user trusts with what they ask for, by the hash of their text.
//!
//! ```toml
//! [recipe."9f31..."]
//! name = "gpt2_wikitext.rhai"
//! time = 1766000000
//! read = []
//! write = []
//! net = ["huggingface.co"]
//! import = []
//! ```
//!
//! An edited recipe has another hash, and is asked for again. A directory of the user's own recipes is
//! trusted with whatever their texts ask for:
//!
//! ```toml
//! [directory."/home/me/recipes"]
//! time = 1766000000
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Capability, Grants, audit, place};
use crate::{
    config::suggest,
    error::{Code, Error, IoContext, Result},
    fs::{self, Place},
    hash,
};

/// The file, wherever it is; it need not exist.
#[derive(Debug, Clone)]
pub struct TrustFile(PathBuf);

/// The content of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// By the hash of the recipe.
    #[serde(default)]
    recipe: BTreeMap<String, Trusted>,
    /// By the real path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    directory: BTreeMap<PathBuf, TrustedDirectory>,
}

/// A directory that is trusted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustedDirectory {
    /// When the user said so, in seconds since 1970.
    time: u64,
}

/// A recipe that is trusted.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trusted {
    /// Its name, for a reader of the file.
    #[serde(default)]
    name: String,
    /// When the user said so, in seconds since 1970.
    #[serde(default)]
    time: u64,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
    #[serde(default)]
    net: Vec<String>,
    #[serde(default)]
    import: Vec<String>,
}

/// Whether the items of this capability are paths.
fn is_path(capability: Capability) -> bool {
    matches!(capability, Capability::Read | Capability::Write)
}

/// Where a path leads now: a link in it that leads elsewhere later is another path.
fn real(path: &String) -> Result<String> {
    let work_dir = std::path::absolute(".")
        .map_err(|e| Error::new(Code::Io, format!("{path} has no absolute path: {e}")))?;
    Ok(place::root(&work_dir, Path::new(path)).display().to_string())
}

impl Trusted {
    fn items(&mut self, capability: Capability) -> &mut Vec<String> {
        match capability {
            Capability::Read => &mut self.read,
            Capability::Write => &mut self.write,
            Capability::Net => &mut self.net,
            Capability::Import => &mut self.import,
        }
    }
}

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
        let mut sha256 = Sha256::new();
        for (name, text) in texts {
            // Lengths keep two texts from standing for another division of the same bytes.
            sha256.update((name.len() as u64).to_le_bytes());
            sha256.update(name);
            sha256.update((text.len() as u64).to_le_bytes());
            sha256.update(text);
        }
        hash::hex(&sha256.finalize())
    }

    /// The grants of the trusted recipe of this hash; `None` where there is none.
    pub fn grants(&self, hash: &str) -> Result<Option<Grants>> {
        let Some(mut trusted) = self.content()?.recipe.remove(hash) else { return Ok(None) };
        let mut grants = Grants::default();
        for capability in Capability::ALL {
            let items = std::mem::take(trusted.items(capability)).into_iter();
            // A relative path would mean another file in each working directory.
            let items = items.filter(|item| !is_path(capability) || Path::new(item).is_absolute());
            items.for_each(|item| grants.add(capability, item));
        }
        Ok(Some(grants))
    }

    /// Trusts the recipe of this hash with `grants`, in place of what it was trusted with. Relative
    /// paths are those from the working directory of now.
    pub fn trust(&self, hash: &str, name: &str, grants: &Grants) -> Result<()> {
        let mut content = self.content()?;
        let time = audit::seconds() as u64;
        let mut trusted = Trusted { name: name.to_owned(), time, ..Trusted::default() };
        for capability in Capability::ALL {
            let items = grants.allowed(capability).items().iter();
            *trusted.items(capability) = match is_path(capability) {
                true => items.map(real).collect::<Result<_>>()?,
                false => items.cloned().collect(),
            };
        }
        content.recipe.insert(hash.to_owned(), trusted);
        self.write(&content)
    }

    /// The directories that are trusted, real paths.
    pub fn directories(&self) -> Result<Vec<PathBuf>> {
        Ok(self.content()?.directory.into_keys().collect())
    }

    /// Whether `dir` is a trusted directory or lies in one.
    pub fn trusts_directory(&self, dir: &Path) -> Result<bool> {
        let dir = dir.canonicalize().at("open", dir)?;
        Ok(self.content()?.directory.keys().any(|trusted| dir.starts_with(trusted)))
    }

    /// Trusts the recipes in a directory; gives its real path.
    pub fn trust_directory(&self, dir: &Path) -> Result<PathBuf> {
        let dir = dir.canonicalize().at("open", dir)?;
        if !dir.is_dir() {
            bail!(Code::Usage, "{} is no directory", dir.display());
        }
        if dir.parent().is_none() {
            let message = "the root of all files cannot be trusted";
            return Err(Error::new(Code::Usage, message)
                .hint("name the directory that only your own recipes are in"));
        }
        let mut content = self.content()?;
        content.directory.insert(dir.clone(), TrustedDirectory { time: audit::seconds() as u64 });
        self.write(&content)?;
        Ok(dir)
    }

    /// Takes the trust in a directory back; false where there was none.
    pub fn distrust_directory(&self, dir: &Path) -> Result<bool> {
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let mut content = self.content()?;
        let was_trusted = content.directory.remove(&dir).is_some();
        if was_trusted {
            self.write(&content)?;
        }
        Ok(was_trusted)
    }

    fn write(&self, content: &Content) -> Result<()> {
        let text = toml::to_string(content)
            .map_err(|e| Error::new(Code::Io, "the trust file has no TOML form").caused_by(e))?;
        if let Some(dir) = self.0.parent() {
            fs::create_dir_all(Place::unguarded(dir))?;
        }
        fs::write_atomic(Place::unguarded(&self.0), text.as_bytes())
    }

    fn content(&self) -> Result<Content> {
        if !self.0.exists() {
            return Ok(Content::default());
        }
        let text = fs::read_to_string(Place::unguarded(&self.0))?;
        toml::from_str(&text).map_err(|e| self.damaged(&text, &e))
    }

    fn damaged(&self, text: &str, e: &toml::de::Error) -> Error {
        let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let said = e.message().lines().collect::<Vec<_>>().join(", ");
        let message = format!("the trust file is damaged: {}:{line}: {said}", self.0.display());
        let near = suggest::for_unknown_field(e.message());
        Error::new(Code::Io, message)
            .hint_if(near.map(|near| format!("did you mean `{near}`?")))
            .hint("correct it, or remove the file: every recipe is then asked for again")
    }
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

    /// The same words in another directory would mean another file.
    #[test]
    fn trust_in_a_path_is_for_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = TrustFile::at(dir.path().join("trust.toml"));
        let mut grants = Grants::default();
        grants.add(Capability::Read, "../rows.txt".to_owned());
        file.trust("ab", "a.rhai", &grants).unwrap();
        let items = file.grants("ab").unwrap().unwrap().allowed(Capability::Read).items().to_vec();
        assert!(items.len() == 1 && Path::new(&items[0]).is_absolute(), "{items:?}");
        let older = "[recipe.\"ab\"]\nread = [\"../rows.txt\"]\nnet = [\"a.b\"]\n";
        fs::write_atomic(file.path(), older.as_bytes()).unwrap();
        let mut kept = Grants::default();
        kept.add(Capability::Net, "a.b".to_owned());
        assert_eq!(file.grants("ab").unwrap(), Some(kept));
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust.toml");
        let told = |text: &str| {
            fs::write_atomic(&path, text.as_bytes()).unwrap();
            let file = TrustFile::at(&path);
            let e = file.grants("bb").unwrap_err();
            assert_eq!(file.trust("bb", "b", &Grants::default()).unwrap_err().code(), Code::Io);
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "it is left as it is");
            assert_eq!(e.code(), Code::Io);
            format!("{}\n{}", e.message(), e.hints().join("\n"))
        };
        let said = told("[recipe.\"aa\"]\nnet = huggingface.co\n");
        assert!(said.contains("trust.toml:2: "), "{said}");
        let said = told("[recipe.aa]\nnat = [\"huggingface.co\"]\n");
        assert!(said.contains("trust.toml:2: unknown field `nat`"), "{said}");
        assert!(said.contains("did you mean `net`?"), "{said}");
        let said = told("[recipes.aa]\nnet = []\n");
        assert!(said.contains("did you mean `recipe`?"), "{said}");
        told("[recipe.aa]\nnet = \"huggingface.co\"\n");
        told("[recipe.aa]\n[recipe.aa]\n");
    }

    /// Files of earlier versions have no list of imports.
    #[test]
    fn a_list_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust.toml");
        fs::write_atomic(&path, b"# mine\n[recipe.\"aa\"]\nname = \"a\"\ntime = 1\nread = []\n")
            .unwrap();
        assert_eq!(TrustFile::at(path).grants("aa").unwrap(), Some(Grants::default()));
    }
}
