//! The hub as its users set it up: settings, the client that asks it, callbacks and pins.

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeSet,
    fmt,
    rc::Rc,
};

use super::{
    client::{Client, OnHost},
    patience::Patience,
    pins::{Contents, Pins},
    repo::{Repo, RepoKind},
    settings::HubSettings,
};
use crate::error::{Result, StopWhen};

/// How far the download of one file is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The repository, such as `Salesforce/wikitext`.
    pub repo: &'a str,
    /// The file's path in the repository.
    pub file: &'a str,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// The hub, seen through its cache.
pub struct Hub {
    pub(super) settings: HubSettings,
    client: OnceCell<Client>,
    pub(super) on_progress: Box<dyn Fn(&Progress<'_>)>,
    on_host: OnHost,
    patience: Patience,
    pub(super) pins: Pins,
    /// Revisions whose commits the hub was asked for, which stay for all that is read of them.
    asked: RefCell<BTreeSet<(RepoKind, String, String)>>,
}

/// The entry of a repository in a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit that its revision stands at.
    pub commit: String,
    /// The files that are used, with their contents.
    pub contents: Contents,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub with these settings. Nothing is read or asked before the first use.
    pub fn new(settings: HubSettings) -> Self {
        Self {
            settings,
            client: OnceCell::new(),
            on_progress: Box::new(|_| ()),
            on_host: Rc::new(|_| Ok(())),
            patience: Patience::default(),
            pins: Pins::default(),
            asked: RefCell::default(),
        }
    }

    /// Notes that the hub is asked for the commit of a revision; false where it was before.
    pub(super) fn asks_first(&self, Repo { kind, id, revision }: &Repo) -> bool {
        self.asked.borrow_mut().insert((*kind, id.clone(), revision.clone()))
    }

    /// Calls `show` at the start of each file's download, with each chunk, and at its end.
    #[must_use]
    pub fn on_progress(mut self, show: impl Fn(&Progress<'_>) + 'static) -> Self {
        self.on_progress = Box::new(show);
        self
    }

    /// Calls `check` with the host of each request, redirects included; where it fails, the request
    /// is not made.
    #[must_use]
    pub fn on_host(mut self, check: impl Fn(&str) -> Result<()> + 'static) -> Self {
        self.on_host = Rc::new(check);
        self
    }

    /// Ends requests and downloads with [`Code::Interrupted`] soon after `stop` says so; what has come of a
    /// file is kept.
    ///
    /// [`Code::Interrupted`]: crate::error::Code::Interrupted
    #[must_use]
    pub fn stop_when(mut self, stop: StopWhen) -> Self {
        self.patience = Patience::until(stop);
        self
    }

    /// Uses the commits that are pinned.
    #[must_use]
    pub fn with_pins(mut self, pins: Pins) -> Self {
        self.pins = pins;
        self
    }

    /// The client, made at its first use.
    pub(super) fn client(&self) -> Result<&Client> {
        if self.client.get().is_none() {
            let _ = self.client.set(Client::new(
                &self.settings,
                Rc::clone(&self.on_host),
                self.patience.clone(),
            )?);
        }
        Ok(self.client.get().expect("it was set just now"))
    }
}
