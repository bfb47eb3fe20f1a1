//! What a pod's lifecycle calls the proxy's program for, beside running it: `init`, `await`, `wait`.
//!
//! They are part of the proxy because its image has no other program.

use gossamer_api::settings::{Values, parse_duration};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Runs what the arguments say; without any: the proxy. Gives the exit code.
pub fn main(arguments: &[String]) -> i32 {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => crate::main(),
        ["init"] => crate::init(),
        ["await"] => await_start(),
        ["wait", time] => match parse_duration(time) {
            Some(time) => {
                std::thread::sleep(time);
                0
            }
            None => usage(),
        },
        ["--version"] => {
            println!("gossamer-proxy {}", env!("CARGO_PKG_VERSION"));
            0
        }
        _ => usage(),
    }
}

fn usage() -> i32 {
    eprintln!(
        "usage: gossamer-proxy            run; settings are MESH_* variables\n       \
         gossamer-proxy init       set the redirection of this network namespace, and end\n       \
         gossamer-proxy await      end when the proxy beside has set the redirection and listens\n       \
         gossamer-proxy wait TIME  end after that time, for example 5s"
    );
    64
}

/// Ends when the proxy of this pod has set the redirection: its admin page opens after that.
fn await_start() -> i32 {
    let admin = match Values::from_env().parse::<SocketAddr>("admin-listen") {
        Ok(admin) => admin,
        Err(error) => {
            eprintln!("error: {error}");
            return 64;
        }
    };
    let ip = if admin.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { admin.ip() };
    let (address, end) = (SocketAddr::new(ip, admin.port()), Instant::now() + PATIENCE);
    while Instant::now() < end {
        if TcpStream::connect_timeout(&address, PATIENCE).is_ok() {
            return 0;
        }
        std::thread::sleep(PAUSE);
    }
    eprintln!("error: nothing listens on {address} after {} s; see the proxy's log", PATIENCE.as_secs());
    1
}

/// A proxy that starts at all listens within milliseconds; a loaded node is given time.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(2);
