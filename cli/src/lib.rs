//! The command line of the mesh.
//!
//! [`main`] reads the arguments, moves the process into the mesh's private network where the command needs it (before
//! there are threads), and runs the command; each has a file in [`commands`]. [`sandbox`] is the network, `plane` the
//! control plane in this process, [`demo`] the application that is meshed for show, [`scrape`] reads proxies' figures.

pub mod certificates;
pub mod cluster;
pub mod commands;
pub mod connect;
pub mod demo;
pub mod describe;
pub mod error;
pub mod fan;
pub mod installation;
pub mod node;
pub mod output;
pub mod place;
pub mod plane;
pub mod registry;
pub mod replica;
pub mod resource;
pub mod sandbox;
pub mod scrape;
pub mod stats;
pub mod tapping;
pub mod verdict;
pub mod view;

use clap::Parser;
use std::process::ExitCode;

/// Parses, runs, reports.
pub fn main() -> ExitCode {
    match commands::run(commands::Cli::parse()) {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}
