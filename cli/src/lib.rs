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
pub mod health;
pub mod installation;
pub mod manifest;
pub mod node;
pub mod output;
pub mod place;
pub mod plane;
pub mod registry;
pub mod replica;
pub mod resource;
pub mod rotation;
pub mod samples;
pub mod sandbox;
pub mod scrape;
pub mod selector;
pub mod stats;
pub mod tapping;
pub mod verdict;
pub mod view;

use clap::{CommandFactory, FromArgMatches};
use std::process::ExitCode;

/// Parses, runs, reports.
pub fn main() -> ExitCode {
    let mut command = commands::Cli::command();
    if place::is_plugin(std::env::args_os().next().as_deref()) {
        command = command.bin_name("kubectl gossamer");
    }
    let parsed = command.try_get_matches_from_mut(std::env::args_os());
    let parsed = parsed.and_then(|matches| commands::Cli::from_arg_matches(&matches));
    match commands::run(parsed.unwrap_or_else(|error| error.exit())) {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}
