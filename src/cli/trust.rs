//! `dsr trust`: directories whose recipes are the user's own.

use std::path::PathBuf;

use clap::Args;

use super::{console, grants::trust_file};
use crate::{
    error::{Code, Error, Result},
    permission::TrustFile,
    recipe::rights::Rights,
};

/// The arguments of `dsr trust`.
#[derive(Debug, Args)]
pub(super) struct TrustArgs {
    /// Directories of your own recipes; none lists those that are trusted.
    #[arg(value_name = "DIRECTORY")]
    directories: Vec<PathBuf>,

    /// Take the trust in them back.
    #[arg(long, requires = "directories")]
    remove: bool,
}

/// Trusts directories, or lists them.
pub(super) fn run(args: &TrustArgs) -> Result<()> {
    let file = file()?;
    if args.directories.is_empty() {
        for dir in file.directories()? {
            console::out(&format!("{}\n", dir.display()));
        }
    }
    for dir in &args.directories {
        if !args.remove {
            let dir = file.trust_directory(dir)?;
            console::out(&format!("recipes in {} get what they ask for\n", dir.display()));
        } else if !file.distrust_directory(dir)? {
            bail!(Code::Usage, "{} is not trusted", dir.display());
        }
    }
    Ok(())
}

fn file() -> Result<TrustFile> {
    let mut rights = Rights::new(".");
    rights.env = Box::new(|name| std::env::var(name).ok());
    trust_file(&rights).ok_or_else(|| {
        Error::new(Code::Io, "there is no place for the trust file")
            .hint("set HOME, or XDG_CONFIG_HOME")
    })
}
