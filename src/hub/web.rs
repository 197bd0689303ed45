//! A small file at any address, by the client of the hub: with its retries, its proxy and its
//! certificates, and the same check of each host, but without the token.
//!
//! Addresses are encrypted ones, and those of the endpoint that the user's settings name.

use std::rc::Rc;

use ureq::http::Uri;

use super::{
    client::{Client, RequestError},
    patience::Patience,
    settings::HubSettings,
};
use crate::{
    error::{Code, Error, Result},
    units::Bytes,
};

/// Files anywhere, fetched whole.
pub struct Web {
    client: Client,
}

impl Web {
    /// Requests with these settings; `check` is called with the host of each, redirects included,
    /// and where it fails, the request is not made.
    pub fn new(
        settings: &HubSettings,
        check: impl Fn(&str) -> Result<()> + 'static,
    ) -> Result<Self> {
        let settings = HubSettings { token: None, ..settings.clone() };
        Ok(Self { client: Client::new(&settings, Rc::new(check), Patience::default())? })
    }

    /// The content at `url`, of `most` bytes at most.
    pub fn get(&self, url: &str, most: u64) -> Result<Vec<u8>> {
        let failed = |why: String| Error::new(Code::Address, format!("cannot fetch {url}: {why}"));
        let Some(uri) = parse(url) else { return Err(failed("it is no address".to_owned())) };
        if uri.scheme_str() != Some("https") && !self.client.is_endpoint(&uri) {
            return Err(failed("it is not encrypted".to_owned()).hint("an address begins https://"));
        }
        let mut reply = self.client.get(url, 0).map_err(|fault| match fault {
            RequestError::Refused(e) => e.hint(format!("it is asked for {url}")),
            RequestError::Status { status: 404 | 410, .. } => {
                failed("there is nothing (status 404)".to_owned()).hint("check the spelling")
            }
            RequestError::Status { status, .. } => failed(format!("the server answers {status}")),
            RequestError::Network { host, reason } => {
                let reason = reason.strip_prefix("io: ").unwrap_or(&reason);
                failed(format!("no answer from {host} ({reason})"))
                    .hint("check the network; HTTPS_PROXY names a proxy")
            }
        })?;
        let body = reply.body_mut().with_config().limit(most).read_to_vec();
        body.map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(_) => {
                failed(format!("it is larger than {}", Bytes(most)))
            }
            e => failed("the answer broke off".to_owned()).caused_by(e),
        })
    }
}

/// The host of an address that begins with `http://` or `https://` and names no user; `None` for
/// anything else.
pub fn host_of(url: &str) -> Option<String> {
    Some(parse(url)?.host()?.to_owned())
}

fn parse(url: &str) -> Option<Uri> {
    let uri: Uri = url.parse().ok()?;
    let is_web = matches!(uri.scheme_str(), Some("https" | "http"));
    let authority = uri.authority()?.as_str();
    (is_web && !authority.contains('@') && uri.host().is_some_and(|h| !h.is_empty())).then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_of_the_web() {
        let host = |url: &str| host_of(url);
        assert_eq!(host("https://example.org:8443/a/b.rhai?x=1").as_deref(), Some("example.org"));
        assert_eq!(host("https://[::1]/x").as_deref(), Some("[::1]"));
        for other in
            ["ftp://a/x", "https://me@a/x", "https:///x", "a/b", "https://", "https://a b/"]
        {
            assert_eq!(host(other), None, "{other}");
        }
    }
}
