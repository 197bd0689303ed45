//! The resolver of the client: a host whose addresses were judged is connected to at those.

use std::net::SocketAddr;

use ureq::{
    Error,
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

use crate::names;

/// Gives judged addresses; other names, such as that of a proxy, are looked up as usual.
#[derive(Debug, Default)]
pub(super) struct JudgedAddresses(DefaultResolver);

impl Resolver for JudgedAddresses {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let Some(addresses) = uri.host().and_then(names::judged) else {
            return self.0.resolve(uri, config, timeout);
        };
        let usual = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        let port = uri.port_u16().unwrap_or(usual);
        let mut resolved = self.empty();
        // More than sixteen are as good as the first ones.
        addresses.iter().take(16).for_each(|&ip| resolved.push(SocketAddr::new(ip, port)));
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(resolved) }
    }
}

#[cfg(test)]
mod tests {
    use ureq::{Agent, unversioned::transport::DefaultConnector};

    use super::*;

    /// The port is that of the address, and the addresses are those that were judged.
    #[test]
    fn a_judged_name_is_not_looked_up_again() {
        let agent = Agent::with_parts(
            Config::default(),
            DefaultConnector::default(),
            JudgedAddresses::default(),
        );
        let name = "judged-name-of-a-test.invalid";
        assert!(names::addresses(name).is_empty());
        let e = agent.get(format!("http://{name}/")).call().unwrap_err();
        assert!(matches!(e, Error::HostNotFound), "{e}");
    }
}
