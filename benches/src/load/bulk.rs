//! Bytes from the server, as many as come.

use super::State;
use anyhow::{Context, Result, ensure};
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Downloads over every connection until the end.
pub(crate) fn run(state: &Rc<State>) {
    for _ in 0..state.args.connections {
        let state = state.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = download(&state).await {
                state.failed(&error);
            }
        });
    }
}

async fn download(state: &State) -> Result<()> {
    let mut io = TcpStream::connect(state.args.target).await.context("connect")?;
    // More than comes.
    io.write_u64(1 << 40).await?;
    let mut buffer = vec![0; 256 * 1024];
    while !state.stopping() {
        let read = io.read(&mut buffer).await.context("receive")?;
        ensure!(read > 0, "closed early");
        state.moved(read as u64);
    }
    Ok(())
}
