//! Names of hosts, looked up once: the address that was judged is the one that is connected to.
//!
//! Whoever owns a name may answer with a public address when it is judged, and with one of this
//! machine's network a moment later (DNS rebinding).

use std::{
    collections::BTreeMap,
    net::{IpAddr, ToSocketAddrs},
    sync::{Mutex, PoisonError},
};

static KNOWN: Mutex<BTreeMap<String, Vec<IpAddr>>> = Mutex::new(BTreeMap::new());

/// The addresses of a name; none where it cannot be looked up. Later calls give the same ones until
/// [`forget`].
pub fn addresses(name: &str) -> Vec<IpAddr> {
    if let Some(addresses) = judged(name) {
        return addresses;
    }
    let found = (name, 0).to_socket_addrs().into_iter().flatten();
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(name.to_owned()).or_insert(found).clone()
}

/// The addresses that [`addresses`] gave for a name, if it was asked for.
pub fn judged(name: &str) -> Option<Vec<IpAddr>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
}

/// Lets a name be looked up anew, and judged anew, after a connection has failed: hosts move.
pub fn forget(name: &str) {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_addresses_until_it_is_forgotten() {
        let name = "name-of-a-test.invalid";
        assert_eq!(judged(name), None);
        assert!(addresses(name).is_empty(), "no such name exists");
        assert_eq!(
            judged(name),
            Some(Vec::new()),
            "and none is found later without a new judgement"
        );
        forget(name);
        assert_eq!(judged(name), None);
        assert!(addresses("localhost").iter().all(IpAddr::is_loopback));
    }
}
