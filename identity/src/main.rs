//! `gossamer-identity`: the certificate authority as a process of its own.

use std::process::ExitCode;

use clap::Parser;
use gossamer_identity::command::{self, Options};

#[derive(Parser)]
#[command(name = "gossamer-identity", version, about = "Signs the certificates of workloads")]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let options = Cli::parse().options;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from);
    match runtime.and_then(|runtime| runtime.block_on(command::start(options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
