//! The control plane of a plain machine in this process: identity and destination on the node's address, a registry on
//! a Unix socket. [`Directory`] is what is left of it without a mesh: addresses and names.

use crate::error::{CommandError, Result};
use crate::sandbox::network;
use gossamer_api::defaults::CLUSTER_DOMAIN;
use gossamer_api::wire::mesh::Registered;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};

/// The first replica's address; those before it are the node's.
const FIRST: u32 = 10;
/// Replicas at once. A bridge has at most 1,024 ports.
const REPLICAS: u32 = 1000;

/// Addresses of replicas; each belongs to one until it is given back.
#[derive(Default)]
pub(crate) struct Addresses {
    taken: BTreeSet<u32>,
    last: u32,
}

impl Addresses {
    /// One that has not been used for as long as possible.
    pub(crate) fn take(&mut self) -> Result<Ipv4Addr> {
        for _ in 0..REPLICAS {
            self.last = (self.last + 1) % REPLICAS;
            if self.taken.insert(self.last) {
                return Ok(Ipv4Addr::from_bits((network::NODE.to_bits() & 0xffff_0000) + FIRST + self.last));
            }
        }
        Err(CommandError::failed(format!("{REPLICAS} replicas run already")))
    }

    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&((address.to_bits() & 0xffff) - FIRST));
    }
}

/// Names without a mesh: a service's name leads to all of its replicas.
#[derive(Clone, Default)]
pub struct Directory(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    addresses: Addresses,
    replicas: BTreeMap<String, Vec<Ipv4Addr>>,
}

impl Directory {
    /// Gives a new replica its address and name.
    pub fn register(&self, name: &str, namespace: &str) -> Result<Registered> {
        let mut entries = self.entries();
        let address = entries.addresses.take()?;
        let replicas = entries.replicas.entry(format!("{name}.{namespace}")).or_default();
        replicas.push(address);
        let replica = format!("{name}-{}", replicas.len());
        Ok(Registered { replica, address: address.to_string(), ..Registered::default() })
    }

    /// The replicas' addresses, in an order that spreads clients which take the first.
    pub fn resolve(&self, name: &str) -> Option<Vec<IpAddr>> {
        let service = name.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix(".svc.")?;
        let mut addresses = self.entries().replicas.get(service)?.clone();
        fastrand::shuffle(&mut addresses);
        Some(addresses.into_iter().map(IpAddr::V4).collect())
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_reused_as_late_as_possible() {
        let mut addresses = Addresses::default();
        let first = addresses.take().unwrap();
        addresses.give_back(first);
        for _ in 0..REPLICAS - 1 {
            assert_ne!(addresses.take().unwrap(), first);
        }
        assert_eq!(addresses.take().unwrap(), first);
        assert!(addresses.take().is_err());
    }

    #[test]
    fn a_service_is_all_of_its_replicas() {
        let directory = Directory::default();
        directory.register("web", "demo").unwrap();
        directory.register("web", "demo").unwrap();
        assert_eq!(directory.resolve("web.demo.svc.cluster.local").unwrap().len(), 2);
        assert_eq!(directory.resolve("db.demo.svc.cluster.local"), None);
    }
}

// TEMPORARY until destination lands
#[allow(missing_docs)]
pub struct Plane;
#[allow(missing_docs)]
impl Plane {
    pub fn prepare(_: Option<std::path::PathBuf>, _: gossamer_api::process::stop::Stop) -> Result<Plane> { Err(CommandError::failed("not yet")) }
    pub fn resolver(&self) -> crate::sandbox::dns::Resolve { Arc::new(|_| None) }
    pub async fn serve(&self, _: &crate::node::Node) -> Result<()> { Ok(()) }
    pub fn keep(&self, _: gossamer_api::wire::mesh::RegisterWorkload) -> Result<Registered> { Err(CommandError::failed("not yet")) }
}
