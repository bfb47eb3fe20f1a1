//! `gossamer-control`: the parts of the control plane in one program, for one image. The first argument says which.

use clap::Parser;
use gossamer_api::process::memory;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A part of the mesh's control plane
#[derive(Parser)]
#[command(name = "gossamer-control", version)]
enum Part {
    Identity(gossamer_identity::command::Options),
    Destination(gossamer_destination::command::Options),
    Injector(gossamer_injector::command::Options),
}

fn main() -> ExitCode {
    memory::small_from_the_start();
    let part = Part::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        tokio::spawn(memory::when_idle());
        match part {
            Part::Identity(options) => gossamer_identity::command::start(options).await,
            Part::Destination(options) => gossamer_destination::command::start(options).await,
            Part::Injector(options) => gossamer_injector::command::start(options).await,
        }
    });
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
