//! The user's grants to a recipe, and denials.

use std::path::{Path, PathBuf};

use super::{address, place};

/// A power over this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Files are read.
    Read,
    /// Files are made or changed.
    Write,
    /// Hosts are asked.
    Net,
    /// Code of hosts runs.
    Import,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Net, Self::Import];

    /// As the flags say it: `--allow-NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Net => "net",
            Self::Import => "import",
        }
    }
}

/// How much of a capability: paths or hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// Nothing.
    #[default]
    None,
    /// These paths with all that is below, or these hosts with their subdomains.
    These(Vec<String>),
    /// Everything.
    All,
}

impl Scope {
    /// The scope of a flag with a list: without items it is everything.
    pub fn of_flag(items: Vec<String>) -> Self {
        match items.iter().all(String::is_empty) {
            true => Self::All,
            false => Self::These(items),
        }
    }

    /// Adds one path or host.
    pub fn add(&mut self, item: String) {
        match self {
            Self::All => {}
            Self::None => *self = Self::These(vec![item]),
            Self::These(items) => items.push(item),
        }
    }

    /// Adds all that `more` has, each path or host once.
    fn extend(&mut self, more: &Self) {
        if *more == Self::All {
            *self = Self::All;
        }
        for item in more.items() {
            if !self.items().contains(item) {
                self.add(item.clone());
            }
        }
    }

    /// The items, where there is a list.
    pub fn items(&self) -> &[String] {
        match self {
            Self::These(items) => items,
            Self::None | Self::All => &[],
        }
    }

    pub(super) fn covers_path(&self, real: &Path) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(items) => items.iter().any(|item| real.starts_with(item)),
        }
    }

    pub(super) fn covers_host(&self, host: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(items) => items.iter().any(|item| address::is_within(host, item)),
        }
    }

    /// Whether the host itself is in the list.
    pub(super) fn names_host(&self, host: &str) -> bool {
        self.items().iter().any(|item| item.eq_ignore_ascii_case(host))
    }

    /// The paths of the list; the root for everything.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::None => Vec::new(),
            Self::All => vec![PathBuf::from("/")],
            Self::These(items) => items.iter().map(PathBuf::from).collect(),
        }
    }

    /// The same with real paths.
    fn resolved(&self, work_dir: &Path) -> Self {
        match self {
            Self::These(items) => {
                let real = |item: &String| {
                    place::root(work_dir, Path::new(item)).to_string_lossy().into_owned()
                };
                Self::These(items.iter().filter(|item| !item.is_empty()).map(real).collect())
            }
            other => other.clone(),
        }
    }
}

/// All grants and denials. A denial wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Paths to read.
    pub read: Scope,
    /// Paths to write.
    pub write: Scope,
    /// Hosts to ask.
    pub net: Scope,
    /// Hosts to import from.
    pub import: Scope,
    /// Paths not to read.
    pub deny_read: Scope,
    /// Paths not to write.
    pub deny_write: Scope,
    /// Hosts not to ask.
    pub deny_net: Scope,
    /// Hosts not to import from.
    pub deny_import: Scope,
}

impl Grants {
    /// Everything that can be given.
    pub fn all() -> Self {
        let all = || Scope::All;
        Self { read: all(), write: all(), net: all(), import: all(), ..Self::default() }
    }

    /// The granted scope of `capability`.
    pub fn allowed(&self, capability: Capability) -> &Scope {
        match capability {
            Capability::Read => &self.read,
            Capability::Write => &self.write,
            Capability::Net => &self.net,
            Capability::Import => &self.import,
        }
    }

    /// The denied scope of `capability`.
    pub fn denied(&self, capability: Capability) -> &Scope {
        match capability {
            Capability::Read => &self.deny_read,
            Capability::Write => &self.deny_write,
            Capability::Net => &self.deny_net,
            Capability::Import => &self.deny_import,
        }
    }

    /// Gives one more path or host.
    pub fn add(&mut self, capability: Capability, item: String) {
        match capability {
            Capability::Read => self.read.add(item),
            Capability::Write => self.write.add(item),
            Capability::Net => self.net.add(item),
            Capability::Import => self.import.add(item),
        }
    }

    /// These, with what `more` gives and denies.
    pub fn and(mut self, more: &Self) -> Self {
        self.extend(more);
        self
    }

    /// Gives and denies also what `more` does.
    pub fn extend(&mut self, more: &Self) {
        // Each field is named, so that none can be forgotten.
        let Self { read, write, net, import, deny_read, deny_write, deny_net, deny_import } = more;
        self.read.extend(read);
        self.write.extend(write);
        self.net.extend(net);
        self.import.extend(import);
        self.deny_read.extend(deny_read);
        self.deny_write.extend(deny_write);
        self.deny_net.extend(deny_net);
        self.deny_import.extend(deny_import);
    }

    pub(super) fn resolved(self, work_dir: &Path) -> Self {
        Self {
            read: self.read.resolved(work_dir),
            write: self.write.resolved(work_dir),
            deny_read: self.deny_read.resolved(work_dir),
            deny_write: self.deny_write.resolved(work_dir),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_extended_in_all_that_they_give_and_deny() {
        let these = |name: &str| Scope::These(vec![name.to_owned()]);
        let more = Grants {
            read: these("/r"),
            write: these("/w"),
            net: these("n.example"),
            import: these("i.example"),
            deny_read: these("/dr"),
            deny_write: these("/dw"),
            deny_net: these("dn.example"),
            deny_import: Scope::All,
        };
        assert_eq!(Grants::default().and(&more), more);
        assert_eq!(more.clone().and(&more), more, "each once");
        let all = Grants::all().and(&more);
        assert_eq!((all.import, all.deny_net), (Scope::All, these("dn.example")));
    }
}
