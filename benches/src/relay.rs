//! The floors: a program that moves bytes, and the same with mutual TLS 1.3 on the hop. Nothing can do less.

use crate::peers::Certificates;
use anyhow::Result;
use rustls_pki_types::ServerName;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What it does.
#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// `listen=connect`.
    #[arg(long)]
    route: Vec<String>,
    /// The folder of certificates; without one there is no TLS.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// TLS towards the client rather than the server.
    #[arg(long)]
    inbound: bool,
}

/// One TLS record; what a plain loop would take.
const BUFFER: usize = 16 * 1024;

/// Relays until it is killed.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let mut listeners = tokio::task::JoinSet::new();
    let certificates = args.tls.as_deref().map(Certificates::read).transpose()?;
    let (acceptor, connector) = match &certificates {
        Some(certificates) if args.inbound => (Some(TlsAcceptor::from(Arc::new(certificates.server()?))), None),
        Some(certificates) => (None, Some(TlsConnector::from(Arc::new(certificates.client()?)))),
        None => (None, None),
    };
    for route in &args.route {
        let (listen, connect) = route.split_once('=').unwrap_or((route, ""));
        let (listen, connect): (SocketAddr, SocketAddr) = (listen.parse()?, connect.parse()?);
        listeners.spawn(accept(TcpListener::bind(listen).await?, connect, acceptor.clone(), connector.clone()));
    }
    listeners.join_all().await;
    Ok(())
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    connector: Option<TlsConnector>,
) {
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        let (acceptor, connector) = (acceptor.clone(), connector.clone());
        tokio::spawn(async move {
            let far = TcpStream::connect(target).await?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            match (acceptor, connector) {
                (Some(tls), _) => relay(tls.accept(near).await?, far).await,
                (None, Some(tls)) => {
                    let name = ServerName::try_from(crate::peers::SERVER_NAME).map_err(std::io::Error::other)?;
                    relay(near, tls.connect(name, far).await?).await
                }
                (None, None) => relay(near, far).await,
            }
        });
    }
}

async fn relay<A, B>(mut near: A, mut far: B) -> std::io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await.map(drop)
}
