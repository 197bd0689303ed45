//! One thing that a recipe asks for: a path to read or to write, or a host.

use std::{fmt, path::Path};

use super::grants::Capability;
use crate::foreign::{Foreign, ForeignPath};

/// One thing that a recipe asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access<'a> {
    /// To read a file or what is in a directory.
    Read(&'a Path),
    /// To make or change a file or a directory.
    Write(&'a Path),
    /// To send a request to a host.
    Net(&'a str),
    /// To run code of a host.
    Import(&'a str),
}

impl Access<'_> {
    /// The capability that it takes.
    pub fn capability(self) -> Capability {
        match self {
            Self::Read(_) => Capability::Read,
            Self::Write(_) => Capability::Write,
            Self::Net(_) => Capability::Net,
            Self::Import(_) => Capability::Import,
        }
    }

    /// The object of the access: a path or a host.
    pub fn what(self) -> String {
        match self {
            Self::Read(path) | Self::Write(path) => path.display().to_string(),
            Self::Net(host) | Self::Import(host) => host.to_owned(),
        }
    }
}

impl fmt::Display for Access<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path) => write!(f, "read {}", ForeignPath(path)),
            Self::Write(path) => write!(f, "write {}", ForeignPath(path)),
            Self::Net(host) => write!(f, "connect to {}", Foreign(host)),
            Self::Import(host) => write!(f, "import from {}", Foreign(host)),
        }
    }
}
