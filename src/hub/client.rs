//! Requests to the hub: redirects followed by hand, retries, and the token kept to one host.
//!
//! The hub answers requests for large files with a redirect to a storage host. The token is sent to
//! the endpoint's own scheme, host and port and to no other, which is why redirects are not left to
//! the HTTP library. This file knows addresses and status codes, not repositories.

use std::{fs, rc::Rc, time::Duration};

use ureq::{
    Agent, Body, Proxy, ResponseExt,
    http::{Response, Uri, header},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
    unversioned::transport::DefaultConnector,
};

use super::{judged::JudgedAddresses, patience::Patience, settings::HubSettings};
use crate::{
    error::{Code, Error, IoContext, Result},
    names,
};

/// Redirects followed before the server is taken to be broken.
const MAX_REDIRECTS: usize = 10;

/// The longest wait that a busy server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The server answered with an error.
    Status {
        status: u16,
        /// The hub's own word for it, such as `GatedRepo`.
        code: Option<String>,
        /// The hub's sentence about it.
        message: Option<String>,
    },
    /// No answer, or a broken one.
    Network { host: String, reason: String },
    /// The request was not made, or not waited for: its host is not one that may be asked, or the user
    /// wants to stop.
    Refused(Error),
}

/// Says whether a host may be asked.
pub(super) type OnHost = Rc<dyn Fn(&str) -> Result<()>>;

/// A client of one endpoint.
pub(super) struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
    attempts: u32,
    backoff: Duration,
    on_host: OnHost,
    patience: Patience,
}

impl Client {
    pub(super) fn new(settings: &HubSettings, on_host: OnHost, patience: Patience) -> Result<Self> {
        let endpoint = settings.endpoint.parse().map_err(|e| {
            Error::new(Code::Hub, format!("not an address: `{}`", settings.endpoint)).caused_by(e)
        })?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("dsr/", env!("CARGO_PKG_VERSION")))
            // Sizes and hashes are those of the file itself.
            .accept_encoding("identity")
            .proxy(proxy(settings)?)
            .tls_config(tls(settings)?)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Ok(Self {
            agent: Agent::with_parts(
                config,
                DefaultConnector::default(),
                JudgedAddresses::default(),
            ),
            endpoint,
            token: settings.token.clone(),
            attempts: settings.attempts.max(1),
            backoff: settings.backoff,
            on_host,
            patience,
        })
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Whether an address is on the server that the settings name.
    pub(super) fn is_endpoint(&self, uri: &Uri) -> bool {
        same_origin(uri, &self.endpoint)
    }

    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Reads a JSON document, and the address of its next page where there is one.
    pub(super) fn json(
        &self,
        url: &str,
    ) -> Result<(serde_json::Value, Option<String>), RequestError> {
        let mut attempt = 1;
        loop {
            let mut reply = self.get(url, 0)?;
            let next = header(&reply, "link").and_then(next_page);
            match reply.body_mut().with_config().limit(256 << 20).read_to_vec() {
                Ok(bytes) => match serde_json::from_slice(&bytes) {
                    Ok(value) => return Ok((value, next)),
                    Err(e) => return Err(network(reply.get_uri(), format!("not JSON: {e}"))),
                },
                Err(e) if attempt == self.attempts => {
                    return Err(network(reply.get_uri(), e.to_string()));
                }
                Err(_) => self.wait(attempt, None)?,
            }
            attempt += 1;
        }
    }

    /// Opens the content at `url`, from byte `start` on where the server can (status 206).
    pub(super) fn get(&self, url: &str, start: u64) -> Result<Response<Body>, RequestError> {
        let mut attempt = 1;
        loop {
            let (fault, retry_after) = match self.follow(url, start) {
                Ok(reply) if reply.status().is_success() => return Ok(reply),
                Ok(mut reply) => {
                    let wait = header(&reply, "retry-after").and_then(|s| s.parse().ok());
                    (refusal(&mut reply), wait.map(Duration::from_secs))
                }
                Err(fault) => (fault, None),
            };
            if attempt == self.attempts || !fault.is_passing() {
                return Err(fault);
            }
            self.wait(attempt, retry_after)?;
            attempt += 1;
        }
    }

    /// Waits before the next attempt, longer each time.
    pub(super) fn wait(&self, attempt: u32, asked: Option<Duration>) -> Result<(), RequestError> {
        let own = self.backoff.saturating_mul(1 << (attempt - 1).min(6));
        self.patience.sleep(asked.unwrap_or(own).min(MAX_WAIT)).map_err(RequestError::Refused)
    }

    fn follow(&self, url: &str, start: u64) -> Result<Response<Body>, RequestError> {
        let mut uri: Uri = url.parse().map_err(|_| network(&self.endpoint, bad_address(url)))?;
        for _ in 0..MAX_REDIRECTS {
            (self.on_host)(uri.host().unwrap_or_default()).map_err(RequestError::Refused)?;
            let mut request = self.agent.get(&uri);
            if let Some(token) = self.token.as_ref().filter(|_| same_origin(&uri, &self.endpoint)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            let reply =
                self.patience.wait_for(move || request.call()).map_err(RequestError::Refused)?;
            let reply = reply.map_err(|e| {
                // The next try judges the host where it is then.
                uri.host().inspect(|host| names::forget(host));
                network(&uri, e.to_string())
            })?;
            if !reply.status().is_redirection() {
                return Ok(reply);
            }
            let to = header(&reply, "location").unwrap_or_default();
            uri = redirected(&uri, to).ok_or_else(|| network(&uri, bad_address(to)))?;
        }
        Err(network(&uri, "redirects without an end".to_owned()))
    }
}

impl RequestError {
    /// True when trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Network { .. } => true,
            Self::Refused(_) => false,
        }
    }

    /// True when the hub was not reached, so that what it said last is the best there is.
    pub(super) fn is_silence(&self) -> bool {
        self.is_passing() || matches!(self, Self::Refused(_))
    }
}

pub(super) fn network(uri: &Uri, reason: String) -> RequestError {
    RequestError::Network { host: uri.host().unwrap_or("the hub").to_owned(), reason }
}

fn bad_address(text: &str) -> String {
    format!("the answer leads to a bad address: `{text}`")
}

fn header<'a>(reply: &'a Response<Body>, name: &str) -> Option<&'a str> {
    reply.headers().get(name)?.to_str().ok()
}

fn refusal(reply: &mut Response<Body>) -> RequestError {
    let status = reply.status().as_u16();
    let code = header(reply, "x-error-code").map(str::to_owned);
    let said = header(reply, "x-error-message").map(str::to_owned);
    let message = said.or_else(|| {
        let body = reply.body_mut().with_config().limit(64 << 10).read_to_string().ok()?;
        let body: serde_json::Value = serde_json::from_str(&body).ok()?;
        body["error"].as_str().map(str::to_owned)
    });
    RequestError::Status { status, code, message }
}

fn origin(uri: &Uri) -> (Option<&str>, Option<&str>, u16) {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    (uri.scheme_str(), uri.host(), uri.port_u16().unwrap_or(default))
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    origin(a) == origin(b)
}

/// Where a redirect leads; `None` for no address, or for one that gives up encryption.
fn redirected(from: &Uri, to: &str) -> Option<Uri> {
    let uri: Uri = if to.starts_with("//") {
        format!("{}:{to}", from.scheme_str()?).parse().ok()?
    } else if to.starts_with('/') {
        format!("{}://{}{to}", from.scheme_str()?, from.authority()?).parse().ok()?
    } else {
        to.parse().ok()?
    };
    match (from.scheme_str(), uri.scheme_str()?) {
        (_, "https") => Some(uri),
        (Some("http"), "http") => Some(uri),
        _ => None,
    }
}

/// The address with `rel="next"` in a Link header.
fn next_page(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

fn proxy(settings: &HubSettings) -> Result<Option<Proxy>> {
    let Some(address) = &settings.proxy else { return Ok(None) };
    // Only the builder takes the exceptions.
    let build = || {
        let proxy = Proxy::new(address)?;
        let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
        if let Some(name) = proxy.username() {
            builder = builder.username(name);
        }
        if let Some(password) = proxy.password() {
            builder = builder.password(password);
        }
        settings.no_proxy.iter().fold(builder, |b, host| b.no_proxy(host)).build()
    };
    build().map(Some).map_err(|e: ureq::Error| {
        // The address may hold a password.
        Error::new(Code::Hub, "the address of the proxy cannot be used")
            .hint("HTTPS_PROXY and HTTP_PROXY look like http://host:port")
            .caused_by(e)
    })
}

fn tls(settings: &HubSettings) -> Result<TlsConfig> {
    let Some(file) = &settings.ca_bundle else { return Ok(TlsConfig::default()) };
    let pem = fs::read(file).at("read the certificates in", file)?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        bail!(Code::Hub, "no certificates in {}", file.display());
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_is_scheme_host_and_port() {
        let hub: Uri = "https://hub.test".parse().unwrap();
        let same = |other: &str| same_origin(&hub, &other.parse().unwrap());
        assert!(same("https://hub.test:443/x"));
        for other in ["http://hub.test/x", "https://hub.test:8443/", "https://cdn.hub.test/"] {
            assert!(!same(other), "{other}");
        }
    }

    #[test]
    fn redirects_are_resolved_and_keep_encryption() {
        let from: Uri = "https://hub.test/a/b".parse().unwrap();
        let to = |to| redirected(&from, to).map(|u| u.to_string());
        assert_eq!(to("/c?d=1").as_deref(), Some("https://hub.test/c?d=1"));
        assert_eq!(to("https://cdn.test/x").as_deref(), Some("https://cdn.test/x"));
        assert_eq!(to("http://cdn.test/x"), None);
        assert_eq!(to(""), None);
    }

    #[test]
    fn the_next_page_is_found() {
        let link = r#"<https://h/x?cursor=2>; rel="next", <https://h/x>; rel="first""#;
        assert_eq!(next_page(link).as_deref(), Some("https://h/x?cursor=2"));
        assert_eq!(next_page("<https://h/x>; rel=\"first\""), None);
    }
}
