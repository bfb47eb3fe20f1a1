//! An echo over HTTP/1 on one thread, by this engine or by hyper, to compare what a request costs:
//! `h1_echo ours 8080` or `h1_echo hyper 8080`, then `wrk -c 32 -t 1 http://127.0.0.1:8080/`.
//!
//! A request without a body is answered with 13 bytes; `/SIZE` answers with that many.

use std::convert::Infallible;
use std::future::poll_fn;

use bytes::Bytes;
use gossamer_engine::h1::{Length, Limits, Server};
use gossamer_engine::{RequestHead, ResponseHead};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use tokio::net::{TcpListener, TcpStream};

const HELLO: Bytes = Bytes::from_static(b"hello, world\n");

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let engine = args.next().unwrap_or_else(|| "ours".to_owned());
    let port = args.next().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                match engine.as_str() {
                    "hyper" => tokio::task::spawn_local(with_hyper(stream)),
                    _ => tokio::task::spawn_local(with_ours(stream)),
                };
            }
        })
        .await
}

fn answer(path: &str, body: Bytes) -> Bytes {
    match path.strip_prefix('/').and_then(|size| size.parse().ok()) {
        Some(size) => Bytes::from(vec![b'x'; usize::min(size, 1 << 24)]),
        None if body.is_empty() => HELLO,
        None => body,
    }
}

async fn with_ours(stream: TcpStream) {
    let mut server = Server::new(stream, Bytes::new(), Limits::default());
    let (mut head, mut response) = (RequestHead::default(), ResponseHead::new(200));
    response.headers.append("content-type", "text/plain");
    response.headers.append("date", "Sat, 21 Nov 2026 13:00:00 GMT");
    while let Some(Ok(())) = server.request(&mut head).await {
        let mut body = Vec::new();
        while let Some(Ok(data)) = poll_fn(|cx| server.poll_data(cx)).await {
            body.extend_from_slice(&data);
        }
        let body = answer(head.path(), body.into());
        server.send_response(&response, Length::Known(body.len() as u64));
        server.send_data(body);
        if server.flush().await.is_err() {
            return;
        }
    }
    server.close().await;
}

async fn with_hyper(stream: TcpStream) {
    let service = service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let response = hyper::Response::builder().header("content-type", "text/plain");
        Ok::<_, Infallible>(response.body(Full::new(answer(&path, body))).unwrap_or_default())
    });
    let io = hyper_util::rt::TokioIo::new(stream);
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}
