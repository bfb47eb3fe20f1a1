//! `meshctl completion`.

use crate::error::Result;
use clap::CommandFactory;
use std::process::ExitCode;

/// Print a completion script for a shell
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  source <(meshctl completion bash)\n  meshctl completion zsh > ~/.zfunc/_meshctl")]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

/// Prints it.
pub fn run(args: Args) -> Result<ExitCode> {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "meshctl", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
