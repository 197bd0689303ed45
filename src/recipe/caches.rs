//! The directory of what dsr keeps and can make again.

use std::path::PathBuf;

/// Looks an environment variable up.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `dsr` in `XDG_CACHE_HOME`, or in `~/.cache`, if there is a home.
pub(crate) fn dir(env: Env<'_>) -> Option<PathBuf> {
    let path = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?;
    Some(caches.join("dsr"))
}

/// The directory of files that are here while they are read.
pub(crate) fn streams(env: Env<'_>) -> Option<PathBuf> {
    Some(dir(env)?.join("streams"))
}

/// The directory of tokens that are kept from one run to the next.
pub(crate) fn tokens(env: Env<'_>) -> Option<PathBuf> {
    Some(dir(env)?.join("tokens"))
}
