//! Stub.
#![allow(missing_docs)]
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use gossamer_api::policy::Meta;
use gossamer_api::process::tls::Credentials;
#[derive(Clone, Debug)]
pub struct Labels(Vec<(String, String)>);
impl Labels {
    pub fn new(direction: &str) -> Self { Labels(vec![("direction".into(), direction.into())]) }
    pub fn add(&mut self, name: &str, value: &str) { self.0.push((name.into(), value.into())); }
    pub fn object(&mut self, prefix: &str, meta: &Meta) { self.add(prefix, &meta.to_string()); }
}
pub struct Metrics;
pub struct RequestMetrics;
pub struct TcpMetrics;
impl Metrics {
    pub fn new() -> Self { Metrics }
    pub fn requests(&self, _l: &Labels) -> Arc<RequestMetrics> { Arc::new(RequestMetrics) }
    pub fn tcp(&self, _peer: &str, _l: &Labels) -> Arc<TcpMetrics> { Arc::new(TcpMetrics) }
    pub fn http_error(&self, _d: &str, _r: &'static str) {}
    pub fn tcp_error(&self, _d: &str, _r: &'static str) {}
    pub fn render(&self) -> String { String::new() }
    pub fn follow_certificate(&self, _c: watch::Receiver<Option<Arc<Credentials>>>) {}
}
impl RequestMetrics {
    pub fn request(&self) {}
    pub fn allow(&self) {}
    pub fn deny(&self) {}
    pub fn retry(&self) {}
    pub fn retry_overflow(&self) {}
    pub fn latency(&self, _l: Duration) {}
    pub fn response(&self, _s: u16, _g: Option<u16>, _ok: bool, _e: Option<&'static str>) {}
}
impl TcpMetrics {
    pub fn open(&self) {}
    pub fn close(&self, _e: Option<std::io::ErrorKind>) {}
    pub fn read(&self, _b: u64) {}
    pub fn write(&self, _b: u64) {}
    pub fn deny(&self) {}
}
