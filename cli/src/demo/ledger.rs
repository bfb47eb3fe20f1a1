//! A line protocol over TCP whose server speaks first, on a port that no list knows: what detection must not delay.

use super::figures::{Figures, PATIENCE};
use super::serve;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

const GREETING: &str = "LEDGER ready\n";
/// Entries after which a client opens a new connection, so that there is something to see.
const ENTRIES_PER_CONNECTION: u32 = 50;

/// Greets, then numbers every line.
pub(crate) async fn server(port: u16, figures: Arc<Figures>) -> Result<()> {
    let entries = Arc::new(AtomicU64::new(0));
    let listener = serve::listen(port).await?;
    let serve_one = move |stream: TcpStream| {
        let (entries, figures) = (entries.clone(), figures.clone());
        async move {
            let _open = figures.connection();
            let _ = converse(BufStream::new(stream), &entries, &figures).await;
        }
    };
    serve::connections(listener, serve_one).await;
    Ok(())
}

async fn converse(mut stream: BufStream<TcpStream>, entries: &AtomicU64, figures: &Figures) -> std::io::Result<()> {
    stream.write_all(GREETING.as_bytes()).await?;
    stream.flush().await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let started = Instant::now();
        let number = entries.fetch_add(1, Ordering::Relaxed) + 1;
        stream.write_all(format!("OK {number}\n").as_bytes()).await?;
        stream.flush().await?;
        figures.count(started, true);
        line.clear();
    }
    Ok(())
}

/// One connection to the ledger, opened anew after some entries and after an error.
#[derive(Default)]
pub(crate) struct Client {
    connection: Option<(BufStream<TcpStream>, u32)>,
}

impl Client {
    /// Writes a line and waits for its number.
    pub(crate) async fn add(&mut self, server: &str, entry: &str) -> Result<String, String> {
        let exchange = async {
            let (mut stream, used) = match self.connection.take() {
                Some(open) => open,
                None => (connect(server).await?, 0),
            };
            stream.write_all(format!("ADD {entry}\n").as_bytes()).await.map_err(|e| e.to_string())?;
            stream.flush().await.map_err(|e| e.to_string())?;
            let reply = read_line(&mut stream).await?;
            if used < ENTRIES_PER_CONNECTION {
                self.connection = Some((stream, used + 1));
            }
            Ok(reply)
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("timed out".into()))
    }
}

async fn connect(server: &str) -> Result<BufStream<TcpStream>, String> {
    let mut stream = BufStream::new(TcpStream::connect(server).await.map_err(|e| e.to_string())?);
    let greeting = read_line(&mut stream).await?;
    if greeting == GREETING { Ok(stream) } else { Err(format!("unexpected greeting {greeting:?}")) }
}

async fn read_line(stream: &mut BufStream<TcpStream>) -> Result<String, String> {
    let mut line = String::new();
    match stream.read_line(&mut line).await {
        Ok(0) => Err("the ledger closed the connection".into()),
        Ok(_) => Ok(line),
        Err(error) => Err(error.to_string()),
    }
}
