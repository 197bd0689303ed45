//! The address of the hub, its cache and the token: the settings that Python's tools read too.
//!
//! The names and defaults are those of `huggingface_hub`, so that a machine set up for Python is
//! set up for dsr. The environment comes in as a lookup closure: only `cli` reads it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::error::{Code, Error, IoContext, Result};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How to reach the hub and where to keep what it gave.
#[derive(Clone)]
pub struct HubSettings {
    /// The directory of the cache, usually `~/.cache/huggingface/hub`.
    pub cache_dir: PathBuf,
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The access token; sent to the endpoint and to nobody else.
    pub token: Option<String>,
    /// Use the cache alone, never the network.
    pub offline: bool,
    /// Ask whether a branch or tag has moved, instead of using the commit in the cache.
    pub refresh: bool,
    /// How often a request is tried before its failure is an error.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles with each further one.
    pub backoff: Duration,
    /// The address of a proxy, `http://[user:password@]host:port`.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy.
    pub no_proxy: Vec<String>,
    /// Certificates (PEM) to trust instead of the built-in ones.
    pub ca_bundle: Option<PathBuf>,
}

impl HubSettings {
    /// Settings with nothing but a cache and the public hub: no token, online.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            offline: false,
            refresh: false,
            attempts: 4,
            backoff: Duration::from_secs(1),
            proxy: None,
            no_proxy: Vec::new(),
            ca_bundle: None,
        }
    }

    /// The settings that the environment asks for; `lookup` gives a variable's value.
    ///
    /// Read are `HF_HOME` (else `XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`),
    /// `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` (else the file `HF_TOKEN_PATH`, else the file
    /// `token` in `HF_HOME`), `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`,
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`, and `REQUESTS_CA_BUNDLE` or `SSL_CERT_FILE`.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let value = |name: &str| lookup(name).filter(|v| !v.trim().is_empty());
        let any = |names: &[&str]| names.iter().find_map(|name| value(name));
        let flag = |name: &str| value(name).is_some_and(|v| is_true(&v));
        let home = value("HOME").map(PathBuf::from);
        let path = |text: String| expand_home(text, home.as_deref());

        let hf_home = match (value("HF_HOME"), value("XDG_CACHE_HOME"), &home) {
            (Some(at), ..) => path(at),
            (None, Some(caches), _) => path(caches).join("huggingface"),
            (None, None, Some(home)) => home.join(".cache/huggingface"),
            (None, None, None) => {
                return Err(Error::new(Code::Hub, "no place for the cache of the hub")
                    .hint("set HF_HOME to a directory"));
            }
        };
        let cache_dir = any(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]);
        let cache_dir = cache_dir.map_or_else(|| hf_home.join("hub"), path);
        let endpoint = value("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = check_endpoint(&endpoint)?;
        let token = match value("HF_TOKEN") {
            Some(token) => Some(token),
            None if flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            None => {
                let file = value("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), path);
                read_token(&file)?
            }
        };
        let proxy = if endpoint.starts_with("https:") {
            any(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
        } else {
            any(&["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
        };
        let no_proxy = any(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
        Ok(Self {
            cache_dir,
            endpoint,
            token: token.map(|t| t.trim().to_owned()),
            offline: flag("HF_HUB_OFFLINE"),
            proxy,
            no_proxy: no_proxy.split(',').map(|h| h.trim().to_owned()).collect(),
            ca_bundle: any(&["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"]).map(path),
            ..Self::new(PathBuf::new())
        })
    }
}

impl HubSettings {
    /// The host of the endpoint.
    pub fn host(&self) -> Option<String> {
        self.endpoint.parse::<ureq::http::Uri>().ok()?.host().map(str::to_owned)
    }
}

// A token must not reach a log.
impl fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSettings")
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_uppercase().as_str())
}

fn expand_home(text: String, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(text),
    }
}

fn check_endpoint(text: &str) -> Result<String> {
    let endpoint = text.trim().trim_end_matches('/');
    let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && endpoint.parse::<ureq::http::Uri>().is_ok() => {
            Ok(endpoint.to_owned())
        }
        _ => Err(Error::new(Code::Hub, format!("HF_ENDPOINT is not an address: `{text}`"))
            .hint(format!("an address looks like {DEFAULT_ENDPOINT}"))),
    }
}

fn read_token(file: &Path) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(token) => Ok(Some(token).filter(|t| !t.trim().is_empty())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read the token of the hub in", file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<HubSettings> {
        HubSettings::from_env(|name| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_python_puts_it() {
        let cache = |pairs| from(pairs).unwrap().cache_dir.display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/hf")]), "/h/hf/hub");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/big")]), "/big");
        assert_eq!(from(&[]).unwrap_err().code(), Code::Hub);
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).unwrap().token, None);
        fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).unwrap().token.as_deref(), Some("hf_file"));
        let quiet = from(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(quiet.unwrap().token, None);
        let settings = from(&[("HF_HOME", home), ("HF_TOKEN", "hf_var")]).unwrap();
        assert_eq!(settings.token.as_deref(), Some("hf_var"));
        assert!(!format!("{settings:?}").contains("hf_var"));
    }

    #[test]
    fn flags_and_the_endpoint_are_checked() {
        let with = |name, value| from(&[("HOME", "/h"), (name, value)]);
        assert!(with("HF_HUB_OFFLINE", "yes").unwrap().offline);
        assert!(!with("HF_HUB_OFFLINE", "0").unwrap().offline);
        assert_eq!(with("HF_ENDPOINT", "http://m:8080/").unwrap().endpoint, "http://m:8080");
        assert!(with("HF_ENDPOINT", "mirror").unwrap_err().message().contains("`mirror`"));
    }
}
