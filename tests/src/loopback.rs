//! Addresses on loopback that nobody else uses: tests of this process and of others run side by side, and proxies share
//! ports with `SO_REUSEPORT`, so that a collision would not even be noticed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

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

/// Addresses of as many listeners there, each with a port of its own that the system chose.
pub fn free_ports<const COUNT: usize>(ip: Ipv4Addr) -> [SocketAddr; COUNT] {
    // Held together: one that was let go may be chosen again.
    let held = [(); COUNT].map(|()| TcpListener::bind((ip, 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

/// A port on which nothing listens, for a program that listens on all addresses, or that can't be handed a listener. The
/// system gives it to no connection: those have ports from 32768 up.
pub fn quiet_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    for _ in 0..2_000 {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut ports = free_ports::<200>(address());
        ports.sort();
        assert!(ports.windows(2).all(|two| two[0] != two[1]));
    }
}
