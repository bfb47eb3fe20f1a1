//! `meshctl proxy` (hidden): the data plane in this program, set by `MESH_*` variables like `gossamer-proxy`.

use std::process::ExitCode;

/// Run the proxy
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Runs it until a signal.
pub fn run(Args {}: Args) -> ExitCode {
    ExitCode::from(gossamer_proxy::main() as u8)
}
