//! The page that operators and probes look at: `/live /ready /metrics /log-level /shutdown`.
//!
//! Lives until the process is killed, not only until it stops: a draining process still answers, `/ready` with 503.
//! What changes the process is answered to loopback alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use super::listen;
use super::log::LogLevel;
use super::stop::Stop;

/// What the page shows and does.
#[derive(Clone)]
pub struct Admin {
    /// `Err` says what is missing.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What is wrong all the same. A pod's event says it.
    pub warning: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    /// Prometheus text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// To look at and change.
    pub log: LogLevel,
    /// Whether `POST /shutdown` works. Off by default, as in Linkerd.
    pub shutdown: bool,
    /// The process.
    pub stop: Stop,
}

impl Admin {
    /// Ready at once, no metrics, no shutdown.
    pub fn new(log: LogLevel, stop: Stop) -> Self {
        Admin {
            ready: Arc::new(|| Ok(())),
            warning: Arc::new(|| None),
            metrics: Arc::new(String::new),
            log,
            shutdown: false,
            stop,
        }
    }

    /// Serves the page and `more` on `listener` until the process is killed.
    pub async fn serve(self, listener: TcpListener, more: Router) {
        let stop = self.stop.clone();
        let router = self.router(more);
        let serve = |(io, peer): (TcpStream, SocketAddr)| {
            listen::set_options(&io);
            let router = router.clone().layer(Extension(ConnectInfo(peer)));
            let stop = stop.clone();
            async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(READ_TIMEOUT)
                    .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
                tokio::select! {
                    _ = connection => {}
                    () = stop.killed() => {}
                }
            }
        };
        // Not tracked: a scraper's idle connection is no work to wait for.
        let spawn = |connection| {
            tokio::spawn(connection);
        };
        listen::each(MAX_CONNECTIONS, stop.killed(), || listener.accept(), serve, spawn).await;
    }

    /// The page; `more` adds paths.
    pub fn router(self, more: Router) -> Router {
        Router::new()
            .route("/live", get(|| async { "live\n" }))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/log-level", get(log_level).put(set_log_level))
            .route("/shutdown", post(shutdown))
            .with_state(self)
            .merge(more)
            .fallback(|| async { (StatusCode::NOT_FOUND, "not found; there are /live /ready /metrics /log-level\n") })
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
    }
}

/// Refuses whoever is not on this machine; for `more`'s own handlers as well.
pub fn loopback_only(peer: SocketAddr) -> Result<(), (StatusCode, &'static str)> {
    let local = match peer.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    };
    match local {
        true => Ok(()),
        false => Err((StatusCode::FORBIDDEN, "only from this machine (loopback)\n")),
    }
}

/// A kubelet takes a redirection to another host for success, and puts the body into an event of the pod, a warning of
/// reason `ProbeWarning`. It is the only way for a word that does not change whether the pod is ready.
async fn ready(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    if admin.stop.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    match (admin.ready)() {
        Ok(()) => match (admin.warning)() {
            None => "ready\n".into_response(),
            Some(warning) if is_kubelet(&headers) => {
                (StatusCode::FOUND, [(header::LOCATION, NOWHERE)], warning).into_response()
            }
            Some(warning) => format!("ready, but: {warning}\n").into_response(),
        },
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")).into_response(),
    }
}

fn is_kubelet(headers: &HeaderMap) -> bool {
    headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe/"))
}

async fn metrics(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (admin.metrics)()).into_response()
}

async fn log_level(State(admin): State<Admin>) -> String {
    format!("{}\n", admin.log.current())
}

async fn set_log_level(
    State(admin): State<Admin>,
    Extension(ConnectInfo(peer)): Extension<ConnectInfo<SocketAddr>>,
    level: String,
) -> Response {
    if let Err(refusal) = loopback_only(peer) {
        return refusal.into_response();
    }
    match admin.log.set(&level) {
        Ok(()) => {
            tracing::info!(level = level.trim(), "log level changed");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

async fn shutdown(
    State(admin): State<Admin>,
    Extension(ConnectInfo(peer)): Extension<ConnectInfo<SocketAddr>>,
) -> Result<&'static str, (StatusCode, &'static str)> {
    loopback_only(peer)?;
    if !admin.shutdown {
        return Err((StatusCode::NOT_FOUND, "shutdown over HTTP is not enabled\n"));
    }
    tracing::info!("stopping, as asked over HTTP");
    admin.stop.stop();
    Ok("stopping\n")
}

/// Not followed by whom it is meant for. The name is reserved (RFC 2606).
const NOWHERE: &str = "http://see.invalid/";
/// Probes, a scraper or two, a person.
const MAX_CONNECTIONS: usize = 256;
/// For the head of a request; an idle connection between two scrapes counts as well.
const READ_TIMEOUT: Duration = Duration::from_secs(90);
const MAX_BODY_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;
