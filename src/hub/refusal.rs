//! The errors of failed requests: one sentence for the user, and the remedy.
//!
//! The hub hides private repositories behind the same answer as missing ones, and says with
//! `X-Error-Code` what its status codes leave open; mirrors may not send that header.

use super::{client::RequestError, repo::Repo};
use crate::error::{Code, Error};

/// The subject of a request, for the wording of errors.
pub(super) struct RequestContext<'a> {
    pub(super) repo: &'a Repo,
    /// The file that was asked for; `None` for the repository itself.
    pub(super) file: Option<&'a str>,
    pub(super) endpoint: &'a str,
    pub(super) has_token: bool,
}

impl RequestContext<'_> {
    /// The error for `fault`.
    pub(super) fn error(&self, fault: RequestError) -> Error {
        match fault {
            RequestError::Network { host, reason } => self.unreachable(&host, &reason),
            RequestError::Refused(e) if e.code() == Code::Interrupted => e,
            RequestError::Refused(e) => e.hint(format!("it is asked for {}", self.what())),
            RequestError::Status { status, code, message } => {
                let gated = message.as_deref().is_some_and(|m| m.contains("gated"));
                let said = message.as_deref().unwrap_or("no reason given");
                match (code.as_deref(), status) {
                    (Some("GatedRepo"), _) => self.gated(),
                    // Without a token the hub says the same of what does not exist.
                    (Some("RepoNotFound") | None, 401)
                        if self.has_token && is_about_credentials(said) =>
                    {
                        self.bad_token(said)
                    }
                    (Some("RepoNotFound"), _) => self.no_repo(),
                    (Some("RevisionNotFound"), _) => self.no_revision(),
                    (Some("EntryNotFound"), _) => self.no_file(),
                    (_, 401 | 403) if gated => self.gated(),
                    (_, 401) => self.no_repo(),
                    (_, 403) => self.forbidden(said),
                    (_, 404) if self.file.is_some() => self.no_file(),
                    (_, 404) => self.no_repo(),
                    (_, 429) => self
                        .plain(format!("the hub asks for fewer requests ({said})"))
                        .hint("wait some minutes; with a token in HF_TOKEN the limit is higher"),
                    _ => self
                        .plain(format!("the hub answers with status {status} ({said})"))
                        .hint("https://status.huggingface.co shows whether the hub has trouble"),
                }
            }
        }
    }

    fn plain(&self, what: String) -> Error {
        Error::new(Code::Hub, format!("cannot get {}: {what}", self.what()))
    }

    fn what(&self) -> String {
        match self.file {
            Some(file) => format!("{file} of the {}", self.repo),
            None => format!("the {}", self.repo),
        }
    }

    fn gated(&self) -> Error {
        let page = self.repo.page(self.endpoint);
        let noun = self.repo.kind.noun();
        let e =
            self.plain(format!("the {noun} is gated, its owner asks everybody to accept terms"));
        let e = e.hint(format!("log in and accept them at {page}"));
        if self.has_token {
            e.hint("the token in use (HF_TOKEN or the token file) has no access yet")
        } else {
            e.hint(format!(
                "then set HF_TOKEN to an access token from {}/settings/tokens",
                self.endpoint
            ))
        }
    }

    fn bad_token(&self, said: &str) -> Error {
        let message = format!("the access token is not valid: the hub says \"{said}\"");
        self.plain(message).hint(format!(
            "renew the token in use (HF_TOKEN or the token file) at {}/settings/tokens, or unset it \
             for what is public",
            self.endpoint
        ))
    }

    fn no_repo(&self) -> Error {
        let message = format!("no {} on {}", self.repo, self.endpoint);
        let e = Error::new(Code::Hub, message).hint("check the spelling, with the owner's name");
        if self.has_token {
            e.hint("if it is private: the token in use (HF_TOKEN or the token file) cannot see it")
        } else {
            e.hint("if it is private: set HF_TOKEN to an access token that can read it")
        }
    }

    fn no_revision(&self) -> Error {
        let revision = &self.repo.revision;
        let message = format!("the {} has no revision `{revision}`", self.repo);
        let tree = self.repo.page(self.endpoint) + "/tree/main";
        Error::new(Code::Hub, message).hint(format!("branches and tags are listed at {tree}"))
    }

    fn no_file(&self) -> Error {
        let file = self.file.unwrap_or("the file");
        let message = format!("the {} has no file {file} any more", self.repo);
        Error::new(Code::Hub, message)
            .hint("if its history was rewritten: delete its directory in the cache (HF_HUB_CACHE)")
    }

    fn forbidden(&self, said: &str) -> Error {
        let e = self.plain(format!("the hub forbids it ({said})"));
        e.hint("the access token needs the permission to read this repository")
    }

    fn unreachable(&self, host: &str, reason: &str) -> Error {
        let reason = reason.strip_prefix("io: ").unwrap_or(reason);
        let e = self.plain(format!("no answer from {host} ({reason})"));
        if reason.contains("certificate") {
            return e.hint(
                "where a proxy signs with a certificate of its own, SSL_CERT_FILE names the file \
                 of those to trust",
            );
        }
        e.hint("check the network; HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror of the hub")
            .hint("what is in the cache already is used without the network")
    }
}

/// Whether the hub's words are about the token itself: it is expired, revoked or misspelt.
fn is_about_credentials(said: &str) -> bool {
    let said = said.to_lowercase();
    said.contains("invalid") && ["credential", "token", "password"].iter().any(|w| said.contains(w))
}
