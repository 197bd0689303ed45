//! Real paths, with all links followed, and the places that are never given.

use std::path::{Component, Path, PathBuf};

use crate::error::{Code, Error, IoContext, Result};

/// Files of the kernel, of other processes and of devices.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// A directory in memory, which is a place for data like any other.
const SHARED_MEMORY: &str = "/dev/shm";

/// The paths in a home that hold credentials, and the file of trusted recipes.
const SECRETS: [&str; 14] = [
    ".ssh",
    ".aws",
    ".azure",
    ".gnupg",
    ".kube",
    ".docker",
    ".netrc",
    ".git-credentials",
    ".pgpass",
    ".config/dsr",
    ".config/gcloud",
    ".config/gh",
    ".cache/huggingface/token",
    ".cache/huggingface/stored_tokens",
];

/// Entries of a directory that are looked at for links.
const MOST_ENTRIES: usize = 100_000;

/// Where `path`, which starts from `work_dir`, really is. Of a path that does not exist yet, the
/// part that does is followed.
pub(super) fn real(work_dir: &Path, path: &Path) -> std::result::Result<PathBuf, String> {
    let full = work_dir.join(path);
    if full.as_os_str().as_encoded_bytes().contains(&0) {
        return Err("the path has a zero byte".to_owned());
    }
    let mut existing = full.as_path();
    let mut absent = Vec::new();
    loop {
        if let Ok(mut real) = existing.canonicalize() {
            real.extend(absent.iter().rev());
            return Ok(real);
        }
        if existing.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
            return Err("it is a link that leads nowhere".to_owned());
        }
        match (existing.components().next_back(), existing.parent()) {
            (Some(Component::Normal(name)), Some(parent)) => {
                absent.push(name.to_owned());
                existing = parent;
            }
            _ => return Err("the path has `..` behind a name that does not exist".to_owned()),
        }
    }
}

/// A root that is given: as it really is, or as it is written where that cannot be told.
pub(super) fn root(work_dir: &Path, path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    real(work_dir, path).unwrap_or_else(|_| work_dir.join(path))
}

/// Whether `real` is in `root`, and not below a name that begins with a dot.
pub(super) fn is_visible_in(root: &Path, real: &Path) -> bool {
    let Ok(below) = real.strip_prefix(root) else { return false };
    !below.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."))
}

/// Whether `real` is the kernel's or a device.
pub(super) fn is_system(real: &Path) -> bool {
    SYSTEM.iter().any(|dir| real.starts_with(dir)) && !real.starts_with(SHARED_MEMORY)
}

/// The real paths of what holds credentials.
pub(super) fn secrets(home: Option<&Path>, further: &[PathBuf]) -> Vec<PathBuf> {
    let of_home = home.iter().flat_map(|home| SECRETS.iter().map(|name| home.join(name)));
    let all: Vec<PathBuf> = of_home.chain(further.iter().cloned()).collect();
    // A secret that is a link is one at both of its ends.
    let real = all.iter().map(|path| root(Path::new("."), path)).collect::<Vec<_>>();
    all.into_iter().chain(real).collect()
}

/// All links in the directory `path` and below; they are not followed.
pub(super) fn links_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    let mut open = Vec::new();
    if path.is_dir() {
        open.push(path.to_owned());
    }
    let mut seen = 0;
    while let Some(dir) = open.pop() {
        for entry in dir.read_dir().at("read", &dir)? {
            let entry = entry.at("read", &dir)?;
            seen += 1;
            if seen > MOST_ENTRIES {
                let message = format!("{} holds more than {MOST_ENTRIES} files", path.display());
                return Err(Error::new(Code::Data, message)
                    .hint("name a directory that holds the data alone, or a pattern"));
            }
            let kind = entry.file_type().at("look at", &entry.path())?;
            if kind.is_symlink() {
                links.push(entry.path());
            } else if kind.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(links)
}
