//! Virtual addresses of services where no Kubernetes hands them out.
//!
//! A name hashes to its place and goes on from there while that is taken, so that a service usually has the same address
//! after a restart. **Invariant:** an address is given to one name only, and a name keeps it.

use gossamer_api::kubernetes::Name;
use ipnet::Ipv4Net;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

/// Addresses of one network.
#[derive(Clone, Debug)]
pub struct Pool {
    net: Ipv4Net,
    taken: HashSet<Ipv4Addr>,
    names: HashMap<Name, Ipv4Addr>,
}

impl Pool {
    /// All addresses of a network but its first and last.
    pub fn new(net: Ipv4Net) -> Self {
        Pool { net, taken: HashSet::new(), names: HashMap::new() }
    }

    /// The address of a name; `None` when all are taken.
    pub fn take(&mut self, name: &Name) -> Option<IpAddr> {
        if let Some(ip) = self.names.get(name) {
            return Some(IpAddr::V4(*ip));
        }
        let size =
            (u64::from(u32::from(self.net.broadcast())) - u64::from(u32::from(self.net.network()))).checked_sub(1)?;
        if size == 0 || self.taken.len() as u64 >= size {
            return None;
        }
        let start = fnv(&name.to_string()) % size;
        let first = u32::from(self.net.network()) + 1;
        let addresses = (0..size).map(|step| Ipv4Addr::from(first + u32::try_from((start + step) % size).unwrap_or(0)));
        let free = addresses.into_iter().find(|ip| !self.taken.contains(ip))?;
        self.taken.insert(free);
        self.names.insert(name.clone(), free);
        Some(IpAddr::V4(free))
    }
}

/// FNV-1a: the same in every process, unlike the standard library's.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_own_address_and_keeps_it() {
        let mut pool = Pool::new("10.96.0.0/29".parse().unwrap());
        let names: Vec<_> = (0..6).map(|n| Name::new("demo", &format!("s{n}"))).collect();
        let ips: HashSet<_> = names.iter().map(|name| pool.take(name).unwrap()).collect();
        assert_eq!(ips.len(), 6);
        assert_eq!(pool.take(&Name::new("demo", "s6")), None);
        assert!(ips.contains(&pool.take(&names[3]).unwrap()));
    }
}
