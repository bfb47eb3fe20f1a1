//! `meshctl identity rotate-root`.

use crate::cluster::{self, Cluster};
use crate::error::{CommandError, Context, Result};
use crate::output::{paint, paint_err};
use crate::rotation::{self, State, Wanted, laggards, named};
use gossamer_api::process::tls;
use gossamer_identity::issuer::{self, new_issuer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Replace the mesh's root of trust while everything runs
///
/// First a new root is trusted beside the present ones. Once every proxy trusts it, certificates are issued under it.
/// Once every proxy has such a certificate, the old roots are trusted no more. Each step waits for all proxies, and a
/// rotation that was interrupted goes on where it was.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  meshctl identity rotate-root --dry-run     what would be done
  meshctl identity rotate-root               all of it
  meshctl identity rotate-root --phase add   only the first step; issue and drop follow when you like

Where cert-manager writes the Secret gossamer-identity-issuer:
  meshctl identity rotate-root --phase add --new-root root.crt
  (let cert-manager issue gossamer-identity-issuer under the new root)
  meshctl identity rotate-root --phase issue
  meshctl identity rotate-root --phase drop")]
pub struct Args {
    /// Only this step
    #[arg(long, value_enum)]
    phase: Option<Phase>,
    /// A root of your own (PEM, its certificate alone), whose issuer you bring into the Secret
    #[arg(long, value_name = "FILE")]
    new_root: Option<PathBuf>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Don't ask before beginning
    #[arg(short, long)]
    yes: bool,
    /// How long to wait for all proxies, in each step (seconds)
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    #[command(flatten)]
    cluster: cluster::Options,
}

/// The steps.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Trust a new root beside the present ones
    Add,
    /// Issue under the new root
    Issue,
    /// Trust the old ones no more
    Drop,
}

/// Goes on from what the cluster has.
pub async fn run(args: Args) -> Result<ExitCode> {
    let cluster = args.cluster.connect().await?;
    let state = State::read(&cluster).await?;
    let new_root = args.new_root.as_deref().map(read_root).transpose()?;
    tell(&state);
    let plan = plan(&args, &state, new_root.as_ref())?;
    for step in &plan {
        println!("{} {}", paint("•", "1"), step.1);
    }
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !confirmed()? {
        return Err(CommandError::failed("nothing was changed"));
    }
    let patience = Duration::from_secs(args.timeout);
    for (phase, _) in plan {
        match phase {
            Phase::Add => add(&cluster, new_root.clone(), patience).await?,
            Phase::Issue => issue(&cluster, patience).await?,
            Phase::Drop => drop_old(&cluster, patience).await?,
        }
    }
    println!("{} done", paint("√", "32"));
    Ok(ExitCode::SUCCESS)
}

/// The steps that are left, in words.
fn plan(args: &Args, state: &State, new_root: Option<&CertificateDer<'static>>) -> Result<Vec<(Phase, String)>> {
    let anothers = state.issuer_is_anothers();
    let all = [Phase::Add, Phase::Issue, Phase::Drop];
    let phases = args.phase.map_or(all.to_vec(), |phase| vec![phase]);
    if anothers && phases.contains(&Phase::Add) && new_root.is_none() {
        return Err(CommandError::usage("another controller writes the issuer, so a root made here would have none")
            .hint("give its new root with --phase add --new-root FILE; see --help for the order"));
    }
    if !anothers && phases.len() == all.len() && new_root.is_some() {
        return Err(CommandError::usage("--new-root: its issuer is not there yet, so only --phase add can be done")
            .hint("then put the issuer into the Secret gossamer-identity-issuer, and go on with --phase issue"));
    }
    let pending = state.pending.as_ref().map(|(root, _)| root);
    let step = |phase| match phase {
        Phase::Add => match pending.or(new_root) {
            Some(root) => format!("trust {} beside the present roots, and wait until all proxies do", named(root)),
            None => "make a new root, trust it beside the present ones, and wait until all proxies do".to_owned(),
        },
        Phase::Issue => "issue certificates under the new root, and wait until all proxies have one".to_owned(),
        Phase::Drop => "trust only the roots that are in use, and wait until all proxies do".to_owned(),
    };
    Ok(phases.into_iter().map(|phase| (phase, step(phase))).collect())
}

/// First step.
async fn add(cluster: &Cluster, new_root: Option<CertificateDer<'static>>, patience: Duration) -> Result<()> {
    let mut state = State::read(cluster).await?;
    let root = match new_root.or_else(|| state.pending.as_ref().map(|(root, _)| root.clone())) {
        Some(root) => root,
        None => {
            // Kept before it is trusted: whoever goes on needs it. The root's key ends here.
            let now = SystemTime::now();
            let domain = trust_domain(&state);
            let root = issuer::new_root(&domain, now).context("a new root")?;
            let next = new_issuer(&root.pem(), &domain, now).context("an issuer")?;
            state.keep_next(cluster, &root.certificate, &next).await?;
            state = State::read(cluster).await?;
            CertificateDer::from_pem_slice(root.certificate.as_bytes()).context("the new root")?
        }
    };
    if !state.trusts(&root) {
        let mut roots = state.anchors.certificates().to_vec();
        roots.push(root.clone());
        state.write_anchors(cluster, roots).await?;
        eprintln!("trusting {}", named(&root));
    }
    wait(cluster, &Wanted::Trusts(tls::fingerprint(&root)), "trust the new root", patience).await
}

/// Second step.
async fn issue(cluster: &Cluster, patience: Duration) -> Result<()> {
    let state = State::read(cluster).await?;
    if let Some((root, fingerprint)) = &state.pending
        && state.issuer.fingerprint() != *fingerprint
    {
        if !state.trusts(root) {
            return Err(CommandError::failed(format!("the new root {} is not trusted yet", named(root)))
                .hint("meshctl identity rotate-root --phase add"));
        }
        // Once more, since time may have passed: whoever doesn't trust it would refuse all others.
        wait(cluster, &Wanted::Trusts(tls::fingerprint(root)), "trust the new root", patience).await?;
        state.write_issuer(cluster).await?;
        eprintln!("issuing under {}", named(root));
    }
    let issuer = State::read(cluster).await?.issuer.fingerprint();
    wait(cluster, &Wanted::SignedBy(issuer), "have a certificate of the new issuer", patience).await
}

/// Last step.
async fn drop_old(cluster: &Cluster, patience: Duration) -> Result<()> {
    let state = State::read(cluster).await?;
    if let Some((root, fingerprint)) = &state.pending
        && state.issuer.fingerprint() != *fingerprint
    {
        return Err(CommandError::failed(format!("nothing is issued under the new root {} yet", named(root)))
            .hint("meshctl identity rotate-root --phase issue"));
    }
    // A root is in use while anybody's certificate leads to it.
    let (late, all) = laggards(cluster, &Wanted::SignedBy(state.issuer.fingerprint())).await?;
    if !late.is_empty() {
        return Err(unfinished(&late, all, "have a certificate of the present issuer")
            .hint("a root that is in use is not dropped; meshctl identity rotate-root --phase issue waits for them"));
    }
    let kept = state.issuer.roots(SystemTime::now());
    for root in state.old_roots() {
        eprintln!("no longer trusting {}", named(&root));
    }
    if kept.len() < state.anchors.certificates().len() {
        state.write_anchors(cluster, kept.clone()).await?;
    }
    let only = kept.iter().map(|root| tls::fingerprint(root)).collect();
    wait(cluster, &Wanted::TrustsOnly(only), "trust only the new root", patience).await?;
    state.forget_next(cluster).await?;
    for root in &kept {
        warn_of_restarts(&rotation::injected_without(cluster, &tls::fingerprint(root)).await?);
    }
    Ok(())
}

/// Waits until all have it; says who has not.
async fn wait(cluster: &Cluster, wanted: &Wanted, what: &str, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut told = usize::MAX;
    loop {
        let (late, all) = laggards(cluster, wanted).await?;
        if late.is_empty() {
            eprintln!("{} all {all} {what}", paint_err("√", "32"));
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(unfinished(&late, all, what)
                .hint("run the command again when they do: it goes on from here; nothing is lost meanwhile"));
        }
        if told != late.len() {
            told = late.len();
            eprintln!("{} of {all} {what}; waiting for {}", all - late.len(), late[0].0);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn unfinished(late: &[(String, String)], all: usize, what: &str) -> CommandError {
    let mut text = format!("{} of {all} don't {what}", late.len());
    for (name, reason) in late.iter().take(SHOWN) {
        text.push_str(&format!("\n  {name}: {reason}"));
    }
    if late.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", late.len() - SHOWN));
    }
    CommandError::failed(text)
}

fn warn_of_restarts(pods: &[String]) {
    if let Some(first) = pods.first() {
        eprintln!(
            "{} {} pods (as {first}) were made before the new root. They go on, but should their proxy's container be \
             restarted, it would not get a certificate: replace them soon (kubectl rollout restart)",
            paint_err("warning:", "1;33"),
            pods.len(),
        );
    }
}

fn tell(state: &State) {
    let used = state.issuer.roots(SystemTime::now());
    for root in state.anchors.certificates() {
        let end = tls::not_after_of(root).map(gossamer_identity::issuer::rfc3339).unwrap_or_default();
        let role = if used.contains(root) { "in use by the issuer" } else { "trusted" };
        println!("root {}, until {end}: {role}", named(root));
    }
}

fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(CommandError::usage("there is nobody to ask").hint("--yes begins at once, --dry-run only looks"));
    }
    eprint!("Go on? [y/N] ");
    std::io::stderr().flush().context("stderr")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("stdin")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn read_root(path: &Path) -> Result<CertificateDer<'static>> {
    let pem = std::fs::read_to_string(path).context(path.display())?;
    let anchors = tls::Anchors::from_pem(&pem).context(path.display())?;
    match anchors.certificates() {
        [root] => Ok(root.clone()),
        several => Err(CommandError::usage(format!("{} has {} certificates, not one", path.display(), several.len()))),
    }
}

/// The new root is named after the domain as the old one was; the name has no further meaning.
fn trust_domain(state: &State) -> String {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let root = state.issuer.roots(SystemTime::now()).into_iter().next();
    let name = root.as_ref().and_then(|root| {
        let (_, parsed) = X509Certificate::from_der(root).ok()?;
        let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
        Some(name.strip_prefix("root.").unwrap_or(name).to_owned())
    });
    name.unwrap_or_else(|| gossamer_api::defaults::TRUST_DOMAIN.to_owned())
}

/// Between two looks at all proxies: they take a change over within seconds.
const AGAIN: Duration = Duration::from_secs(2);
/// Names in an error.
const SHOWN: usize = 5;
