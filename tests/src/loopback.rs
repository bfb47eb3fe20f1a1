//! Addresses on loopback that nobody else uses: tests of this process and of others run side by side, and proxies share
//! ports with `SO_REUSEPORT`, so that a collision would not even be noticed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Mutex;

/// A port that marks a block of 254 addresses as taken for as long as the process lives.
const CLAIM: u16 = 4199;

struct Block {
    _claim: TcpListener,
    net: [u8; 2],
    next: u8,
}

static BLOCK: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// An address of 127.0.0.0/8 that no other caller gets.
pub fn address() -> Ipv4Addr {
    let mut blocks = BLOCK.lock().unwrap();
    if blocks.last().is_none_or(|block| block.next == 255) {
        blocks.push(claim());
    }
    let block = blocks.last_mut().unwrap();
    block.next += 1;
    Ipv4Addr::new(127, block.net[0], block.net[1], block.next - 1)
}

/// A listener's address there, with a port that the system chose.
pub fn free_port(ip: Ipv4Addr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

fn claim() -> Block {
    let seed = std::process::id();
    for attempt in 0..10_000u32 {
        // 127.0.x.y is where others listen.
        let hash = seed.wrapping_add(attempt).wrapping_mul(2_654_435_761);
        let net = [(hash >> 24) as u8 % 254 + 1, (hash >> 16) as u8];
        if let Ok(claim) = TcpListener::bind((Ipv4Addr::new(127, net[0], net[1], 1), CLAIM)) {
            return Block { _claim: claim, net, next: 2 };
        }
    }
    panic!("no block of loopback addresses is free");
}
