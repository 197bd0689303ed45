//! Code at an address, which counts only with the hash of its text: `https://host/x.rhai#sha256=HEX`.
//!
//! A text that was fetched is kept by its hash, and needs no network again. A text with another hash is
//! refused before it is read. An address without a hash is refused with the line that has it.

use std::path::PathBuf;

use super::{
    Recipe,
    caches::{self, Env},
    embedded::EMBEDDED,
};
use crate::{
    error::{Code, Error, Result},
    fs::{self, Place},
    hash,
    hub::{HubSettings, Web, host_of},
    permission::{Access, AccessContext, Grants, Permissions},
};

/// Bytes of a text, at most.
const MOST_BYTES: u64 = 4 << 20;

/// The mark between an address and its hash.
const MARK: &str = "#sha256=";

/// An address and the hash of its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Without the hash.
    pub(crate) url: String,
    /// The host, which a grant names.
    pub(crate) host: String,
    /// `None` where none was written.
    pub(crate) sha256: Option<String>,
}

/// Whether `text` is an address, with or without a hash, and no path.
pub fn is_address(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

impl Address {
    /// Reads an address as it is written.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
        let Some(host) = host_of(url) else {
            return Err(Error::new(Code::BadValue, format!("{url} is not an address of a recipe"))
                .hint(
                    "one looks like https://host/recipe.rhai#sha256=HEX, without a user's name",
                ));
        };
        let sha256 = match fragment {
            "" => None,
            _ => Some(read_hash(fragment).ok_or_else(|| {
                let message = format!("`#{fragment}` behind {url} is not a hash of SHA-256");
                Error::new(Code::BadValue, message)
                    .hint("it is written #sha256= with 64 hexadecimal digits")
            })?),
        };
        Ok(Self { url: url.to_owned(), host, sha256 })
    }

    /// The address with this hash, as it is written.
    pub(crate) fn with_hash(&self, sha256: &str) -> String {
        format!("{}{MARK}{sha256}", self.url)
    }

    /// The text of the address, from the cache or from its host, which `permissions` must allow. An
    /// address without a hash is refused with the hash of the text.
    pub(crate) fn obtain(&self, env: Env<'_>, permissions: Permissions) -> Result<String> {
        let Some(sha256) = &self.sha256 else {
            permissions.check(Access::Import(&self.host), "").map_err(|e| self.with_hint(e))?;
            let text = self.fetch(env, permissions)?;
            return Err(self.without_hash(&hash::sha256(&text)));
        };
        if let Some(text) = cached(env, sha256) {
            return Ok(text);
        }
        permissions
            .check(Access::Import(&self.host), "")
            .map_err(|e| e.hint(format!("{} is not in the cache", self.url)))?;
        let text = self.fetch(env, permissions)?;
        self.check(&text)?;
        keep(env, sha256, &text);
        Ok(text)
    }

    /// Refuses a text that has another hash.
    pub(crate) fn check(&self, text: &str) -> Result<()> {
        let found = hash::sha256(text);
        match &self.sha256 {
            Some(sha256) if *sha256 == found => Ok(()),
            Some(sha256) => {
                let message = format!("the text at {} has another hash than is written", self.url);
                Err(Error::new(Code::Pin, message)
                    .hint(format!("written: sha256={sha256}"))
                    .hint(format!("found:   sha256={found}"))
                    .hint("it was changed: look at it before you write the new hash"))
            }
            None => Err(self.without_hash(&found)),
        }
    }

    fn without_hash(&self, found: &str) -> Error {
        let message = format!("{} has no hash: there may be another text tomorrow", self.url);
        self.with_hint(Error::new(Code::Missing, message))
            .hint(format!("with that of what is there now: {}", self.with_hash(found)))
    }

    /// Adds to an error that a hash is needed, if there is none.
    pub(crate) fn with_hint(&self, e: Error) -> Error {
        match self.sha256 {
            Some(_) => e,
            None => e.hint("code of another place runs by its hash: ADDRESS#sha256=HEX"),
        }
    }

    fn fetch(&self, env: Env<'_>, permissions: Permissions) -> Result<String> {
        let settings = HubSettings::from_env(env)?;
        let url = &self.url;
        if settings.offline {
            let message =
                format!("{url} is not in the cache, and nothing may be fetched (offline)");
            return Err(Error::new(Code::Address, message)
                .hint("run once without --offline and HF_HUB_OFFLINE"));
        }
        let check = move |host: &str| permissions.check(Access::Import(host), "");
        let bytes = Web::new(&settings, check)?.get(url, MOST_BYTES)?;
        String::from_utf8(bytes).map_err(|e| {
            Error::new(Code::Address, format!("what is at {url} is no text in UTF-8")).caused_by(e)
        })
    }
}

/// The recipe at an address of the command line, which is consent to ask that host. A redirection to
/// another host needs a grant.
pub fn recipe(text: &str, env: Env<'_>, mut grants: Grants) -> Result<Recipe> {
    let address = Address::parse(text)?;
    grants.import.add(address.host.clone());
    let permissions = Permissions::new(grants, AccessContext::default(), None);
    let text = address.obtain(env, permissions)?;
    Ok(Recipe { name: address.url, text, base_dir: ".".into() })
}

/// The directory of the texts, if there is a home.
pub(crate) fn cache_dir(env: Env<'_>) -> Option<PathBuf> {
    Some(caches::dir(env)?.join("recipes"))
}

/// The text with this hash, if it was fetched before and is not damaged.
pub(crate) fn cached(env: Env<'_>, sha256: &str) -> Option<String> {
    let file = Place::unguarded(cache_dir(env)?).join(format!("{sha256}.rhai"));
    let text = file.read_to_string().ok()?;
    (hash::sha256(&text) == sha256).then_some(text)
}

/// Keeps a text. A text that cannot be kept is fetched again.
pub(crate) fn keep(env: Env<'_>, sha256: &str, text: &str) {
    let Some(dir) = cache_dir(env) else { return };
    let dir = Place::unguarded(dir);
    let file = dir.join(format!("{sha256}.rhai"));
    let kept = dir.create_dir_all().and_then(|()| fs::write_atomic(file, text.as_bytes()));
    if let Err(e) = kept {
        tracing::warn!("the text of an address is not kept: {e}");
    }
}

/// The name of a text in a lock or a bundle: an address without its hash, which stands beside it.
pub(crate) fn without_hash(name: &str) -> &str {
    match is_address(name) {
        true => name.split('#').next().unwrap_or(name),
        false => name,
    }
}

/// Whether a source, or the path of an import, is a file: neither an address nor a part of dsr.
pub fn has_files(source: &str) -> bool {
    !is_address(source) && !source.starts_with(EMBEDDED)
}

fn read_hash(fragment: &str) -> Option<String> {
    let digits = fragment.strip_prefix(&MARK[1..])?.to_ascii_lowercase();
    hash::is_sha256(&digits).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_its_hash() {
        let sha256 = hash::sha256("x");
        let read = |text: &str| Address::parse(text);
        let upper = sha256.to_uppercase();
        let address = read(&format!("https://h.org/a.rhai?x=1#sha256={upper}")).unwrap();
        assert_eq!(address.url, "https://h.org/a.rhai?x=1");
        assert_eq!((address.host.as_str(), address.sha256.as_ref()), ("h.org", Some(&sha256)));
        assert_eq!(read("https://h.org/a").unwrap().sha256, None);
        for wrong in [
            "https://h.org/a#sha256=12",
            "https://h.org/a#md5=12",
            "https://me:pw@h.org/a",
            "https:///a",
            "https://h.org/a b",
        ] {
            assert_eq!(read(wrong).unwrap_err().code(), Code::BadValue, "{wrong}");
        }
    }
}
