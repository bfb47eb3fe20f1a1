//! `gossamer-identity`: the certificate authority as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use gossamer_api::defaults;
use gossamer_api::process::admin::Admin;
use gossamer_api::process::log;
use gossamer_api::process::stop::Stop;
use gossamer_identity::token::{JoinTokens, TokenCheck};
use gossamer_identity::{Authority, Config};
use tokio::net::TcpListener;

const HELP: &str = "\
Signs the certificates of workloads

Usage: gossamer-identity --state-dir DIR [--listen ADDR] [--admin ADDR] [--anchors PATH] [--tokens FILE]
                         [--control-namespace NS] [--trust-domain DOMAIN] [--service-account NAME]
                         [--log-level FILTER] [--log-format plain|json]

Each can be given as an environment variable as well: MESH_IDENTITY_STATE_DIR and so on.
--tokens has lines of IDENTITY TOKEN.
";

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<ExitCode> {
    let mut options = Options::read()?;
    if options.help {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    let format = options.take("log-format").as_deref().unwrap_or("plain").parse()?;
    let level = log::init(format, options.take("log-level").as_deref().unwrap_or("info"))?;
    let state_dir = PathBuf::from(options.take("state-dir").context("--state-dir is needed")?);
    let tokens = JoinTokens::new();
    if let Some(path) = options.take("tokens") {
        tokens.read(&std::fs::read_to_string(&path).with_context(|| path.clone())?).with_context(|| path.clone())?;
    }
    let mut config = Config::new(state_dir, TokenCheck::JoinTokens(tokens));
    config.anchors = options.take("anchors").map(PathBuf::from);
    if let Some(listen) = options.take("listen") {
        config.listen = listen.parse().with_context(|| format!("--listen {listen}"))?;
    }
    for (name, value) in [
        ("control-namespace", &mut config.control_namespace),
        ("trust-domain", &mut config.trust_domain),
        ("service-account", &mut config.service_account),
    ] {
        if let Some(given) = options.take(name) {
            *value = given;
        }
    }
    let admin = options.take("admin").unwrap_or_else(|| "0.0.0.0:9990".to_owned());
    options.finish()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(config, admin, level))
}

async fn run(config: Config, admin: String, level: log::LogLevel) -> anyhow::Result<ExitCode> {
    let stop = Stop::new();
    stop.on_signals()?;
    let authority = Authority::start(&config, &stop)?;
    let page = TcpListener::bind(&admin).await.with_context(|| format!("--admin {admin}"))?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("--listen {}", config.listen))?;
    let service = authority.service.clone();
    let page_of = Admin { metrics: Arc::new(move || service.metrics()), ..Admin::new(level, stop.clone()) };
    let page = tokio::spawn(page_of.serve(page, axum::Router::new()));
    tracing::info!(address = %config.listen, identity = %config.server_identity()?, "issuing certificates");
    authority.serve(&config, listener, stop.clone()).await?;
    let clean = stop.wait(defaults::SHUTDOWN_GRACE).await;
    page.await?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `--name value`, `--name=value`, or the environment.
struct Options {
    given: Vec<(String, String)>,
    help: bool,
}

impl Options {
    fn read() -> anyhow::Result<Self> {
        let mut options = Options { given: Vec::new(), help: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--help" || argument == "-h" {
                options.help = true;
                continue;
            }
            let Some(name) = argument.strip_prefix("--") else { bail!("unexpected argument {argument:?}; see --help") };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (name, arguments.next().with_context(|| format!("--{name} needs a value"))?),
            };
            options.given.push((name.to_owned(), value));
        }
        Ok(options)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        match self.given.iter().position(|(given, _)| given == name) {
            Some(at) => Some(self.given.remove(at).1),
            None => std::env::var(format!("MESH_IDENTITY_{}", name.to_uppercase().replace('-', "_"))).ok(),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        match self.given.first() {
            Some((name, _)) => bail!("unknown option --{name}; see --help"),
            None => Ok(()),
        }
    }
}
