//! The harness's control plane as a process of its own, to be killed as one: `plane IDENTITY DESTINATION FOLDER`. What is
//! registered comes as YAML in `FOLDER/objects` and as lines of `FOLDER/tokens`; its anchors go to `FOLDER/anchors.pem`.

use anyhow::Context;
use gossamer_api::process::grpc::ServerTls;
use gossamer_api::process::log::{self, Format};
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::ClientAuth;
use gossamer_destination::index::Cluster;
use gossamer_destination::pool::Pool;
use gossamer_destination::registry::Registry;
use gossamer_identity::token::{JoinTokens, TokenCheck};
use gossamer_identity::{Authority, Config};
use gossamer_tests::mesh::service_identity;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;

fn main() -> anyhow::Result<()> {
    // It ends with the process that holds its standard input open.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(99);
    });
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    log::init(Format::Plain, "warn")?;
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [identity, destination, folder] = &arguments[..] else { anyhow::bail!("see the source") };
    let (folder, stop, tokens) = (PathBuf::from(folder), Stop::new(), JoinTokens::new());
    let mut config = Config::new(folder.join("identity"), TokenCheck::JoinTokens(tokens.clone()));
    config.listen = identity.parse()?;
    let authority = Authority::start(&config, &stop)?;
    let credentials = authority.service.keep_issued(service_identity("gossamer-destination"))?;
    let registry = Registry::new(Cluster::default(), Some(Pool::new("10.96.0.0/16".parse()?)));
    let identity = TcpListener::bind(config.listen).await.context("identity")?;
    let listeners = vec![TcpListener::bind(destination).await.context("destination")?];
    let settings = gossamer_destination::Config { files: Some(folder.join("objects")), admit: None };
    let tls = ServerTls { credentials, auth: ClientAuth::Required };
    tokio::spawn(gossamer_destination::run(settings, registry, listeners, Some(tls), stop.clone()));
    let anchors = authority.service.anchors().pem().to_string();
    tokio::spawn(async move { authority.serve(&config, identity, stop).await });
    // Complete when it is there.
    std::fs::write(folder.join("anchors.new"), anchors)?;
    std::fs::rename(folder.join("anchors.new"), folder.join("anchors.pem"))?;
    follow(&folder.join("tokens"), &tokens).await
}

/// Takes over tokens as they are added.
async fn follow(path: &Path, tokens: &JoinTokens) -> anyhow::Result<()> {
    let mut read = 0;
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if let Some(end) = text.rfind('\n').filter(|end| *end >= read) {
            tokens.read(&text[read..=end])?;
            read = end + 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
