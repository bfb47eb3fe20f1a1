//! Connections to one endpoint: shared ones for HTTP/2, a bounded list of idle ones for HTTP/1.

use super::connect::Connector;
use super::transport::Session;
use crate::error::Error;
use crate::metrics::TcpMetrics;
use crate::net::Stream;
use gossamer_api::defaults;
use gossamer_api::endpoint::{Endpoint, Http2Params};
use gossamer_engine::{h1, h2};
use std::cell::{OnceCell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::sync::watch;
use tokio::time::Instant;

/// The connections of one endpoint.
pub struct Pool {
    endpoint: Arc<Endpoint>,
    connector: Rc<Connector>,
    idle: RefCell<Vec<(h1::Client<Stream>, Instant)>>,
    shared: RefCell<Shared>,
    /// Shared ones that had no room for another stream when they were last looked at.
    full: RefCell<Vec<h2::Client>>,
    meter: OnceCell<Arc<TcpMetrics>>,
}

/// The connection that HTTP/2 requests share.
enum Shared {
    None,
    Connecting(watch::Receiver<Option<Result<h2::Client, Error>>>),
    Ready(h2::Client),
}

impl Pool {
    /// No connection yet.
    pub fn new(endpoint: Arc<Endpoint>, connector: Rc<Connector>) -> Self {
        Pool {
            endpoint,
            connector,
            idle: RefCell::default(),
            shared: RefCell::new(Shared::None),
            full: RefCell::default(),
            meter: OnceCell::new(),
        }
    }

    /// Counts connections here from now on.
    pub fn measure(&self, meter: Arc<TcpMetrics>) {
        let _ = self.meter.set(meter);
    }

    async fn connect(&self, session: Option<Session>) -> Result<Stream, Error> {
        // Rare and large: boxed, so that requests on connections that stand do not carry it.
        let mut io = Box::pin(self.connector.connect(&self.endpoint, session)).await?;
        if let Some(meter) = self.meter.get() {
            io.measure(meter.open(), 0);
        }
        Ok(io)
    }

    /// A connection for bytes.
    pub async fn bytes(&self) -> Result<Stream, Error> {
        self.connect(None).await
    }

    /// An idle HTTP/1 connection that the endpoint has not closed, or a new one. True: it was used before.
    pub async fn http1(&self) -> Result<(h1::Client<Stream>, bool), Error> {
        if let Some(idle) = self.take_idle() {
            return Ok((idle, true));
        }
        let io = self.connect(Some(Session::Http1)).await?;
        Ok((h1::Client::new(io, limits()), false))
    }

    fn take_idle(&self) -> Option<h1::Client<Stream>> {
        let mut idle = self.idle.borrow_mut();
        let now = Instant::now();
        while let Some((mut client, since)) = idle.pop() {
            let fresh = now.duration_since(since) < defaults::POOL_IDLE;
            if fresh && client.poll_idle_closed(&mut Context::from_waker(Waker::noop())).is_pending() {
                return Some(client);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub fn give_back(&self, client: h1::Client<Stream>) {
        let mut idle = self.idle.borrow_mut();
        if client.is_reusable() && idle.len() < defaults::POOL_SIZE {
            idle.push((client, Instant::now()));
        }
    }

    /// Drops connections that lay idle for too long.
    pub fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|(_, since)| now.duration_since(*since) < defaults::POOL_IDLE);
    }

    /// The shared HTTP/2 connection, made if there is none. The connecting goes on when this future is dropped, for
    /// whoever asks next.
    pub async fn http2(&self) -> Result<h2::Client, Error> {
        self.make_room();
        let mut connecting = match &mut *self.shared.borrow_mut() {
            Shared::Ready(client) if client.is_usable() => return Ok(client.clone()),
            Shared::Connecting(receiver) if receiver.has_changed().is_ok() || receiver.borrow().is_some() => {
                receiver.clone()
            }
            shared => {
                let receiver = self.start();
                *shared = Shared::Connecting(receiver.clone());
                receiver
            }
        };
        let result = match connecting.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => None,
        };
        let result = result.unwrap_or(Err(Error::ShuttingDown));
        let mut shared = self.shared.borrow_mut();
        if let Shared::Connecting(receiver) = &*shared
            && receiver.same_channel(&connecting)
        {
            *shared = match &result {
                Ok(client) => Shared::Ready(client.clone()),
                Err(_) => Shared::None,
            };
        }
        result
    }

    /// When the shared connection has no room for another stream, one that has takes its place, or a new one will.
    fn make_room(&self) {
        let mut shared = self.shared.borrow_mut();
        let Shared::Ready(client) = &mut *shared else { return };
        if client.has_capacity() || !client.is_usable() {
            return;
        }
        let mut full = self.full.borrow_mut();
        full.retain(h2::Client::is_usable);
        if let Some(roomy) = full.iter_mut().find(|other| other.has_capacity()) {
            std::mem::swap(client, roomy);
        } else if full.len() + 1 < defaults::H2_CONNECTIONS {
            full.push(client.clone());
            *shared = Shared::None;
        }
    }

    fn start(&self) -> watch::Receiver<Option<Result<h2::Client, Error>>> {
        let (sender, receiver) = watch::channel(None);
        let (endpoint, connector, meter) = (self.endpoint.clone(), self.connector.clone(), self.meter.get().cloned());
        tokio::task::spawn_local(async move {
            let io = match connector.connect(&endpoint, Some(Session::Http2)).await {
                Ok(mut io) => {
                    if let Some(meter) = meter {
                        io.measure(meter.open(), 0);
                    }
                    io
                }
                Err(error) => {
                    let _ = sender.send(Some(Err(error)));
                    return;
                }
            };
            let (driver, client) = h2::client(io, config(&endpoint.http2, endpoint.tls.is_some()));
            let _ = sender.send(Some(Ok(client)));
            drop(sender);
            if let Err(error) = driver.await {
                tracing::debug!(addr = %endpoint.addr, %error, "connection to endpoint ended");
            }
        });
        receiver
    }

    /// Ends all connections after what is in flight.
    pub fn close(&self) {
        self.idle.borrow_mut().clear();
        self.full.borrow_mut().drain(..).for_each(|client| client.shutdown());
        if let Shared::Ready(client) = std::mem::replace(&mut *self.shared.borrow_mut(), Shared::None) {
            client.shutdown();
        }
    }
}

/// Opens a stream when the peer has room for one.
pub async fn open(
    client: &h2::Client,
    head: &gossamer_engine::RequestHead,
    end: bool,
) -> Result<h2::Stream, gossamer_engine::Error> {
    poll_fn(|cx| client.poll_ready(cx)).await?;
    client.open(head, end)
}

/// Bounds of HTTP/1 messages.
pub fn limits() -> h1::Limits {
    h1::Limits { head_bytes: defaults::HEAD_BYTES, ..h1::Limits::default() }
}

/// HTTP/2 settings towards an endpoint.
fn config(params: &Http2Params, hop: bool) -> h2::Config {
    let mut config = h2::Config::default();
    if let Some(window) = params.connection_window {
        config.connection_window = window;
    }
    if let Some(window) = params.stream_window {
        config.stream_window = window;
    }
    config.keep_alive =
        params.keep_alive.or_else(|| hop.then_some((defaults::H2_PING_INTERVAL, defaults::H2_PING_TIMEOUT)));
    config
}
