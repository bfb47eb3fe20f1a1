//! HTTP/2 and gRPC: some connections, many streams on each at once.

use super::{Kind, State};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};
use std::rc::Rc;
use std::time::Instant;
use tokio::net::TcpStream;

/// A gRPC message of 1 KiB with its prefix.
fn message() -> Bytes {
    let mut message = vec![0, 0, 0, 4, 0];
    message.resize(5 + 1024, b'x');
    message.into()
}

/// Opens the connections and starts the streams.
pub(crate) async fn run(state: &Rc<State>) -> Result<()> {
    for _ in 0..state.args.connections {
        let io = TcpStream::connect(state.args.target).await.context("connect")?;
        io.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(16 << 20);
        let (client, connection) = builder.handshake::<_, Bytes>(io).await.context("handshake")?;
        let failing = state.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await
                && !failing.stopping()
            {
                failing.failed(&error.into());
            }
        });
        for _ in 0..state.args.streams {
            tokio::task::spawn_local(stream(state.clone(), client.clone()));
        }
    }
    Ok(())
}

async fn stream(state: Rc<State>, mut client: SendRequest<Bytes>) {
    let message = message();
    while !state.stopping() {
        let began = Instant::now();
        let done = match state.args.kind {
            Kind::Http2 => get(&state, &mut client).await,
            Kind::Unary => unary(&state, &mut client, &message).await,
            _ => streaming(&state, &mut client, &message).await,
        };
        match done {
            Ok(()) if state.args.kind == Kind::Streaming => {}
            Ok(()) => state.answered(began),
            Err(error) => {
                if !state.stopping() {
                    state.failed(&error);
                }
                return;
            }
        }
    }
}

fn request(state: &State, method: Method, path: &str) -> Result<Request<()>> {
    let request = Request::builder().method(method).uri(format!("http://{}{path}", state.args.target));
    let request = request.header("user-agent", "bench/1.0");
    Ok(match state.args.kind {
        Kind::Http2 => request.header("accept", "*/*"),
        _ => request.header("content-type", "application/grpc").header("te", "trailers"),
    }
    .body(())?)
}

async fn get(state: &State, client: &mut SendRequest<Bytes>) -> Result<()> {
    let request = request(state, Method::GET, &state.args.path)?;
    let mut ready = client.clone().ready().await?;
    let (response, _) = ready.send_request(request, true)?;
    let mut body = ok(response.await?)?;
    ensure!(drain(&mut body).await? == crate::server::SMALL, "a short answer");
    Ok(())
}

async fn unary(state: &State, client: &mut SendRequest<Bytes>, message: &Bytes) -> Result<()> {
    let request = request(state, Method::POST, "/bench.Echo/Unary")?;
    let mut ready = client.clone().ready().await?;
    let (response, mut send) = ready.send_request(request, false)?;
    send.send_data(message.clone(), true)?;
    let mut body = ok(response.await?)?;
    ensure!(drain(&mut body).await? == message.len(), "not the whole echo");
    let trailers = body.trailers().await?.context("no trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "no grpc-status 0");
    Ok(())
}

/// Message after message on one stream, until the end.
async fn streaming(state: &State, client: &mut SendRequest<Bytes>, message: &Bytes) -> Result<()> {
    let request = request(state, Method::POST, "/bench.Echo/Stream")?;
    let mut ready = client.clone().ready().await?;
    let (response, mut send) = ready.send_request(request, false)?;
    let mut began = Instant::now();
    push(&mut send, message)?;
    let mut body = ok(response.await?)?;
    while !state.stopping() {
        let mut received = 0;
        while received < message.len() {
            let data = body.data().await.context("the stream has ended")??;
            received += data.len();
            body.flow_control().release_capacity(data.len())?;
        }
        state.answered(began);
        began = Instant::now();
        push(&mut send, message)?;
    }
    Ok(())
}

fn push(send: &mut SendStream<Bytes>, message: &Bytes) -> Result<()> {
    // At most one message is on its way, so nothing piles up.
    Ok(send.send_data(message.clone(), false)?)
}

fn ok(response: Response<RecvStream>) -> Result<RecvStream> {
    ensure!(response.status() == 200, "status {}", response.status());
    Ok(response.into_body())
}

async fn drain(body: &mut RecvStream) -> Result<usize> {
    let mut total = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        total += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(total)
}
