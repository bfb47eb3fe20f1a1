//! `meshctl as-user` (hidden): becomes a program that runs as the user who started the mesh.
//!
//! In a mesh's user namespace its user looks like root and may change the network. A workload should see itself as it is
//! outside and may not: a namespace of its own maps the one back to the other, and the privileges are gone with `exec`.

use crate::error::{CommandError, Context, Result};
use nix::sched::{CloneFlags, unshare};
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Become a program
#[derive(clap::Args, Debug)]
pub struct Args {
    /// UID:GID
    user: String,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// As a shell has it for a program that is not there.
const NOT_FOUND: u8 = 127;

/// Returns only if it fails.
pub fn run(args: Args) -> Result<ExitCode> {
    let (uid, gid) = args.user.split_once(':').ok_or_else(|| CommandError::usage("expected UID:GID"))?;
    unshare(CloneFlags::CLONE_NEWUSER).context("the workload's user")?;
    for (file, text) in
        [("setgroups", "deny".to_string()), ("uid_map", format!("{uid} 0 1")), ("gid_map", format!("{gid} 0 1"))]
    {
        fs::write(format!("/proc/self/{file}"), text).context("the workload's user")?;
    }
    let (program, arguments) = args.command.split_first().ok_or_else(|| CommandError::usage("no program"))?;
    let error = Command::new(program).args(arguments).exec();
    let name = program.to_string_lossy();
    let failed = CommandError::failed(format!("{name} can't be started: {error}"));
    if error.kind() == std::io::ErrorKind::NotFound {
        failed.hint("is it installed, and on the PATH?").report();
        return Ok(ExitCode::from(NOT_FOUND));
    }
    Err(failed)
}
