//! `meshctl proxy` (hidden): the data plane in this program, set by `MESH_*` variables like `gossamer-proxy`.

use std::process::ExitCode;

/// Run the proxy
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Runs it until a signal.
pub fn run(Args {}: Args) -> ExitCode {
    // Its connections to the control plane are its own as well. A bad value is told by the proxy itself.
    let mark = gossamer_api::settings::Values::from_env().parse("socket-mark");
    gossamer_api::process::grpc::mark_sockets(mark.unwrap_or(0));
    ExitCode::from(gossamer_proxy::main() as u8)
}
