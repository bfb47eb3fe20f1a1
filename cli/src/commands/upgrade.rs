//! `meshctl upgrade`.

use super::install::{Shared, values_help};
use crate::error::{CommandError, Result};
use crate::installation::present::Present;
use std::process::ExitCode;

/// Print this version's control plane with the values of the one in the cluster
///
/// As `install`, but what was set at installation stays set. Trust anchors and issuer are never replaced.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  meshctl upgrade | kubectl apply -f -\n  meshctl upgrade --set logLevel=debug | kubectl apply -f -", after_long_help = values_help())]
pub struct Args {
    #[command(flatten)]
    shared: Shared,
}

/// Prints it.
pub async fn run(args: Args) -> Result<ExitCode> {
    let cluster = args.shared.cluster.connect().await?;
    let present = Present::read(&cluster).await?;
    let Some((stored, _)) = present.stored.clone() else {
        return Err(CommandError::failed(format!("there is no mesh in namespace {:?}", cluster.control_namespace))
            .hint("install one with `meshctl install | kubectl apply -f -`")
            .hint("or say where it is with --control-namespace"));
    };
    let overrides = args.shared.overrides(stored)?;
    args.shared.print(&overrides, &present)
}
