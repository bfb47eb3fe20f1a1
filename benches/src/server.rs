//! The application behind the proxies: small answers, large answers, gRPC echo, and bytes. Its cost is not counted.

use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// HTTP/1.1.
pub(crate) const HTTP: u16 = 8080;
/// HTTP/2 without TLS.
pub(crate) const HTTP2: u16 = 8081;
/// gRPC: echoes every message.
pub(crate) const GRPC: u16 = 8082;
/// The client sends eight bytes, a big-endian number, and gets that many.
pub(crate) const BULK: u16 = 8083;

/// Size of the answer to `/`.
pub(crate) const SMALL: usize = 1024;
/// Size of the answer to `/big`.
pub(crate) const BIG: usize = 1 << 20;

static BYTES: [u8; BIG] = [b'x'; BIG];

/// Serves until it is killed.
pub(crate) async fn run() -> Result<()> {
    let listen = |port| TcpListener::bind(("0.0.0.0", port));
    let (http, http2, grpc, bulk) = tokio::try_join!(listen(HTTP), listen(HTTP2), listen(GRPC), listen(BULK))?;
    loop {
        tokio::select! {
            Ok((io, _)) = http.accept() => { tokio::spawn(serve_http1(io)); }
            Ok((io, _)) = http2.accept() => { tokio::spawn(serve_http2(io)); }
            Ok((io, _)) = grpc.accept() => { tokio::spawn(serve_http2(io)); }
            Ok((io, _)) = bulk.accept() => { tokio::spawn(serve_bulk(io)); }
        }
    }
}

async fn serve_http1(io: TcpStream) {
    let _ = io.set_nodelay(true);
    let http = hyper::server::conn::http1::Builder::new();
    let _ = http.serve_connection(TokioIo::new(io), service_fn(answer)).await;
}

async fn serve_http2(io: TcpStream) {
    let _ = io.set_nodelay(true);
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new()).max_concurrent_streams(1000);
    let _ = http.serve_connection(TokioIo::new(io), service_fn(answer)).await;
}

type Body = BoxBody<Bytes, hyper::Error>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let full = |bytes: &'static [u8]| Full::new(Bytes::from_static(bytes)).map_err(|never| match never {}).boxed();
    let response = match request.uri().path() {
        "/big" => Response::new(full(&BYTES)),
        path if path.starts_with("/bench.Echo/") => {
            let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
            let messages = request.into_body().into_data_stream().map(|data| data.map(Frame::data));
            let end = futures_util::stream::iter([Ok(Frame::trailers(trailers))]);
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(messages.chain(end))));
            response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        _ => Response::new(full(&BYTES[..SMALL])),
    };
    Ok(response)
}

const GRPC_STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");

async fn serve_bulk(mut io: TcpStream) -> std::io::Result<()> {
    let mut left = io.read_u64().await?;
    while left > 0 {
        let chunk = left.min(BYTES.len() as u64);
        io.write_all(&BYTES[..chunk as usize]).await?;
        left -= chunk;
    }
    io.shutdown().await
}
