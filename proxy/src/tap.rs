//! Stub.
#![allow(missing_docs)]
use gossamer_api::process::stop::Stop;
use std::sync::Arc;
pub struct Taps;
impl Taps {
    pub fn new() -> Self { Taps }
    pub async fn serve(self: Arc<Self>, _l: tokio::net::TcpListener, _s: Stop) {}
}
