//! Listening for HTTP/1, HTTP/2 and bare TCP in the demo's programs.

use super::figures::Figures;
use crate::error::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::future::Future;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream};

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// Listens on every address, IPv6 where there is one.
pub(crate) async fn listen(port: u16) -> Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.context(format!("port {port}")),
    }
}

/// One task per connection, for ever.
pub(crate) async fn connections<F>(listener: TcpListener, handle: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(handle(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// HTTP/1 and HTTP/2 without TLS.
pub(crate) async fn http<H, F>(port: u16, figures: Arc<Figures>, handle: H) -> Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = listen(port).await?;
    let serve = move |stream: TcpStream| {
        let (handle, figures) = (handle.clone(), figures.clone());
        async move {
            let _open = figures.connection();
            let service = service_fn(|request| {
                let answer = handle(request);
                let figures = figures.clone();
                async move {
                    let started = Instant::now();
                    let response = answer.await;
                    figures.count(started, !response.status().is_server_error());
                    Ok::<_, Infallible>(response)
                }
            });
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        }
    };
    connections(listener, serve).await;
    Ok(())
}

/// A text answer.
pub(crate) fn text(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// What `/metrics` answers on the admin port where no proxy does.
pub(crate) async fn metrics(port: u16, figures: Arc<Figures>) -> Result<()> {
    let unseen = Arc::new(Figures::new("inbound"));
    http(port, unseen, move |_| std::future::ready(text(200, figures.text()))).await
}
