//! Links and addresses of the private network: one bridge, a cable from it to every replica.

use crate::error::{Context, Result};
use gossamer_proxy::redirect::netlink::{CREATE, EXCLUSIVE, Message, ROUTE, send};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The bridge's name, in a namespace of its own.
pub const BRIDGE: &str = "mesh0";
/// The node's own address: control plane, DNS, the view from outside.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The network of nodes and replicas.
pub const PREFIX: u8 = 16;
/// The IPv6 network, a unique local one; its last 32 bits are a replica's IPv4 address.
pub const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x676f, 0x7373, 0, 0, 0, 0, 0);

// linux/rtnetlink.h, linux/if_link.h
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const UP: u32 = 1;
const LOOPBACK_INDEX: u32 = 1;

/// The IPv6 address that goes with a replica's IPv4 address.
pub fn v6_of(v4: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(PREFIX_V6.to_bits() | u128::from(v4.to_bits()))
}

/// Makes the bridge in this namespace and gives it the node's address. One of an earlier control plane is taken over.
pub fn make_bridge() -> Result<()> {
    if index(BRIDGE).is_ok() {
        return Ok(());
    }
    // A bridge without an address of its own takes over its ports', and changes it with them.
    let mac = [0x02, 0x67, 0x6f, 0x73, 0, 1];
    let bridge = link(0, CREATE | EXCLUSIVE, "bridge")
        .text(IFLA_IFNAME, BRIDGE)
        .attr(IFLA_ADDRESS, &mac)
        .nest(IFLA_LINKINFO, |m| m.text(INFO_KIND, "bridge"));
    send(ROUTE, &[link(LOOPBACK_INDEX, 0, "loopback"), bridge]).context("making the mesh's bridge")?;
    set_addresses(index(BRIDGE)?, NODE)
}

/// Gives this namespace another address on its bridge.
pub fn add_address(ip: Ipv4Addr) -> Result<()> {
    send(ROUTE, &[address(index(BRIDGE)?, ip.into(), PREFIX)]).context("adding an address")
}

/// Lays a cable from the bridge into another namespace, where it appears as `eth0`. It vanishes with that namespace.
pub fn plug(name: &str, namespace: BorrowedFd<'_>) -> Result<()> {
    let descriptor = (namespace.as_raw_fd() as u32).to_ne_bytes();
    let cable = link(0, CREATE | EXCLUSIVE, format!("cable {name}"))
        .text(IFLA_IFNAME, name)
        .attr(IFLA_MASTER, &index(BRIDGE)?.to_ne_bytes())
        .nest(IFLA_LINKINFO, |m| {
            m.text(INFO_KIND, "veth").nest(INFO_DATA, |m| {
                m.nest(VETH_PEER, |m| m.head(&[0; 16]).text(IFLA_IFNAME, "eth0").attr(IFLA_NET_NS_FD, &descriptor))
            })
        });
    send(ROUTE, &[cable]).context("connecting a replica to the mesh's bridge")
}

/// Inside a replica's namespace: loopback, its address, everything else by way of the node.
pub fn configure(address: Ipv4Addr) -> Result<()> {
    send(ROUTE, &[link(LOOPBACK_INDEX, 0, "loopback")]).context("loopback")?;
    // Ports below 1024 are nobody else's in here. An old kernel keeps them for root.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let eth0 = index("eth0")?;
    set_addresses(eth0, address)?;
    let route = |family: u8, gateway: &[u8]| {
        // Main table, static, universe, unicast.
        let head = [family, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        Message::new(NEW_ROUTE, CREATE, "default route").head(&head).attr(5, gateway).attr(4, &eth0.to_ne_bytes())
    };
    send(ROUTE, &[route(2, &NODE.octets())]).context("default route")?;
    // A machine may have IPv6 switched off.
    let _ = send(ROUTE, &[route(10, &v6_of(NODE).octets())]);
    Ok(())
}

fn set_addresses(index: u32, v4: Ipv4Addr) -> Result<()> {
    send(ROUTE, &[link(index, 0, "link up"), address(index, v4.into(), PREFIX)]).context("setting an address")?;
    let _ = send(ROUTE, &[address(index, v6_of(v4).into(), 64)]);
    Ok(())
}

fn address(index: u32, ip: IpAddr, prefix: u8) -> Message {
    // Nobody else can have it: no duplicate detection, which would delay its use.
    const NO_DUPLICATE_DETECTION: u8 = 2;
    let (family, bytes) = match ip {
        IpAddr::V4(ip) => (2, ip.octets().to_vec()),
        IpAddr::V6(ip) => (10, ip.octets().to_vec()),
    };
    let head = [&[family, prefix, NO_DUPLICATE_DETECTION, 0][..], &index.to_ne_bytes()].concat();
    Message::new(NEW_ADDRESS, CREATE, format!("address {ip}")).head(&head).attr(2, &bytes).attr(1, &bytes)
}

/// A link that is up afterwards. (The far end of a cable can't be at first: its near end does not exist yet.)
fn link(index: u32, flags: u16, what: impl Into<String>) -> Message {
    let head = [[0; 4], index.to_ne_bytes(), UP.to_ne_bytes(), UP.to_ne_bytes()].concat();
    Message::new(NEW_LINK, flags, what).head(&head)
}

fn index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).context(format!("interface {name}"))
}
