//! Hosts: which name is part of which, and which addresses are private.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::names;

/// The hub, and the domain of the hosts that it keeps large files on.
const HUB: (&str, &str) = ("huggingface.co", "hf.co");

/// Whether `host` is `domain` or a part of it.
pub(super) fn is_within(host: &str, domain: &str) -> bool {
    let (host, domain) = (host.to_ascii_lowercase(), domain.to_ascii_lowercase());
    let is_in = |domain: &str| {
        host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    // A part of an address in numbers is no domain.
    let is_name = domain.parse::<IpAddr>().is_err();
    host == domain || (is_name && is_in(&domain)) || (domain == HUB.0 && is_in(HUB.1))
}

/// Whether `host` is an address of this machine or of its network, or a name of one.
pub(super) fn is_private(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return is_private_address(address);
    }
    // A name that cannot be looked up here is left to a proxy.
    names::addresses(bare).into_iter().any(is_private_address)
}

fn is_private_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => v6.to_ipv4().map_or_else(|| is_private_v6(v6), is_private_v4),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_multicast()
        || a == 0
        // Carriers' networks, and those of tests.
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_unique_local()
        || address.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_have_many_forms() {
        for host in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[::ffff:127.0.0.1]",
            "localhost",
        ] {
            assert!(is_private(host), "{host}");
        }
        for host in ["8.8.8.8", "1.1.1.1", "[2606:4700::1111]", "172.32.0.1"] {
            assert!(!is_private(host), "{host}");
        }
    }
}
