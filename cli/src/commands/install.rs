//! `meshctl install`.

use crate::cluster::Options;
use crate::error::{CommandError, Result};
use crate::installation::authority::{self, Files};
use crate::installation::present::Present;
use crate::installation::render;
use crate::installation::values::{KEYS, Overrides};
use crate::output::paint_err;
use clap::builder::StyledStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

/// Print the control plane as YAML, to be applied to a cluster
///
/// Everything is in it, in an order that one `kubectl apply` takes: definitions (Gateway API's routes only where the
/// cluster has none), the namespace, accounts, roots of trust, programs, webhooks. Roots of trust and their issuer are
/// made when the cluster has none, and stay as they are when it has.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  meshctl install | kubectl apply -f -\n  meshctl install --ha --set logLevel=info | kubectl apply -f -\n  meshctl install --ignore-cluster > mesh.yaml", after_long_help = values_help())]
pub struct Args {
    #[command(flatten)]
    pub(crate) shared: Shared,
    /// Don't look at the cluster: everything new, new roots of trust among it
    #[arg(long)]
    ignore_cluster: bool,
}

/// What `upgrade` has as well.
#[derive(clap::Args, Debug)]
pub struct Shared {
    #[command(flatten)]
    pub(crate) cluster: Options,
    #[command(flatten)]
    files: Files,
    /// Three replicas that stay apart, disruption budgets, and no pod without a proxy
    #[arg(long)]
    ha: bool,
    /// Set a value; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Values from a YAML file; may be repeated, the later wins, --set over all
    #[arg(long, value_name = "FILE")]
    values: Vec<PathBuf>,
}

impl Shared {
    /// What people set here, on top of `base`.
    pub(crate) fn overrides(&self, base: Overrides) -> Result<Overrides> {
        let mut overrides = base;
        for file in &self.values {
            overrides.merge(Overrides::read(file)?);
        }
        if self.ha {
            overrides.set("highAvailability=true")?;
        }
        for assignment in &self.set {
            overrides.set(assignment)?;
        }
        Ok(overrides)
    }

    /// Prints it all.
    pub(crate) fn print(&self, overrides: &Overrides, present: &Present) -> Result<ExitCode> {
        let values = overrides.values(&self.cluster.control_namespace)?;
        let (kept, now) = (present.kept.clone(), SystemTime::now());
        let authority = authority::decide(&self.files, kept, values.external_issuer, &values.trust_domain, now)?;
        let text = render(&values, overrides, &authority, present)?;
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            // Who closes a pipe has seen enough.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CommandError::failed(error)),
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Prints it.
pub async fn run(args: Args) -> Result<ExitCode> {
    let overrides = args.shared.overrides(Overrides::default())?;
    // Before the cluster is asked: a mistake in a value needs no cluster to be found.
    overrides.values(&args.shared.cluster.control_namespace)?;
    let present = match args.ignore_cluster {
        true => Present::default(),
        false => look(&args.shared.cluster).await?,
    };
    if let Some((stored, _)) = &present.stored
        && *stored != overrides
    {
        let hint = paint_err("hint:", "1;36");
        eprintln!("{hint} the cluster was installed with other values; `meshctl upgrade` keeps those");
    }
    args.shared.print(&overrides, &present)
}

async fn look(options: &Options) -> Result<Present> {
    let looked = match options.connect().await {
        Ok(cluster) => Present::read(&cluster).await,
        Err(error) => Err(error),
    };
    looked.map_err(|error| error.hint("or give --ignore-cluster, if the output is for a cluster that has no mesh"))
}

/// The table of values, for `--help`.
pub(crate) fn values_help() -> StyledStr {
    let defaults = Overrides::default().values("").ok().and_then(|values| serde_json::to_value(values).ok());
    let defaults = defaults.unwrap_or_default();
    let mut text = String::from("Values, for --set and --values:\n");
    for (key, help) in KEYS {
        let default = key.split('.').fold(&defaults, |value, part| &value[part]);
        let default = default.as_str().map_or_else(|| default.to_string(), str::to_string);
        let default = if default.is_empty() || default == "{}" || default == "[]" {
            String::new()
        } else {
            format!(" [default: {default}]")
        };
        text += &format!("  {key:<22} {help}{default}\n");
    }
    text.into()
}
