//! Connections to one endpoint: shared ones for HTTP/2, a bounded list of idle ones for HTTP/1.

use super::connect::Connector;
use super::endpoint::Waiting;
use super::transport::Session;
use crate::error::Error;
use crate::metrics::TcpMetrics;
use crate::net::Stream;
use gossamer_api::defaults;
use gossamer_api::endpoint::{Endpoint, Http2Params};
use gossamer_engine::{h1, h2};
use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::sync::watch;
use tokio::time::Instant;

/// The connections of one endpoint.
pub struct Pool {
    endpoint: Arc<Endpoint>,
    connector: Rc<Connector>,
    waiting: Rc<Waiting>,
    idle: RefCell<Vec<(h1::Client<Stream>, Instant)>>,
    shared: RefCell<Shared>,
    /// Shared ones that had no room for another stream when they were last looked at.
    full: RefCell<Vec<h2::Client>>,
    /// Streams that the endpoint takes on a connection, as far as one was full.
    streams: Cell<Option<u32>>,
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
    pub fn new(endpoint: Arc<Endpoint>, connector: Rc<Connector>, waiting: Rc<Waiting>) -> Self {
        Pool {
            endpoint,
            connector,
            waiting,
            idle: RefCell::default(),
            shared: RefCell::new(Shared::None),
            full: RefCell::default(),
            streams: Cell::new(None),
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

    /// Drops connections that lay idle for too long, and the room that most of them had.
    pub fn sweep(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|(_, since)| now.duration_since(*since) < defaults::POOL_IDLE);
        let kept = idle.len();
        idle.shrink_to(2 * kept);
    }

    /// True when no stream can be opened: all the connections that may be made have as many as their peer allows.
    #[inline]
    pub fn is_full(&self) -> bool {
        let full = self.full.borrow();
        full.len() + 1 >= defaults::H2_CONNECTIONS && {
            let taken = |client: &h2::Client| client.is_usable() && !client.has_capacity();
            matches!(&*self.shared.borrow(), Shared::Ready(client) if taken(client)) && full.iter().all(taken)
        }
    }

    /// A shared HTTP/2 connection with room for a stream, made if there is none. `None`: while it was made others have
    /// taken all streams that there can be. The connecting goes on when this future is dropped, for whoever asks next.
    pub async fn http2(&self) -> Result<Option<h2::Client>, Error> {
        while !self.is_full() {
            let client = self.shared().await?;
            // One that is gone already says so when it is used.
            if client.has_capacity() || !client.is_usable() {
                return Ok(Some(client));
            }
        }
        Ok(None)
    }

    async fn shared(&self) -> Result<h2::Client, Error> {
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
        self.streams.set(Some(client.max_streams()));
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
        let (streams, waiting) = (self.streams.get().map(|streams| streams.max(1)), self.waiting.clone());
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
            let (driver, client) = h2::client(io, config(&endpoint.http2, endpoint.tls.is_some(), streams));
            let _ = sender.send(Some(Ok(client)));
            drop(sender);
            let (mut driver, mut settled) = (pin!(driver), false);
            let ended = poll_fn(|cx| {
                let end = driver.as_mut().poll(cx);
                if !settled && driver.is_settled() {
                    // It may take more than was thought.
                    settled = true;
                    waiting.changed.notify_waiters();
                }
                end
            });
            if let Err(error) = ended.await {
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

/// Bounds of HTTP/1 messages.
pub fn limits() -> h1::Limits {
    h1::Limits { head_bytes: defaults::HEAD_BYTES, ..h1::Limits::default() }
}

#[cfg(test)]
impl Pool {
    /// Idle connections, and for how many there is room.
    pub(super) fn idle(&self) -> (usize, usize) {
        let idle = self.idle.borrow();
        (idle.len(), idle.capacity())
    }

    /// Takes all streams of all connections that there may be; those of one each.
    pub(super) fn fill(&self) -> Vec<Vec<h2::Stream>> {
        let head = gossamer_engine::RequestHead::default();
        let connection = |_| {
            // Without its driver: a peer that says nothing allows a hundred.
            let (driver, client) = h2::client(tokio::io::duplex(64).0, h2::Config::default());
            let streams = std::iter::from_fn(|| client.has_capacity().then(|| client.open(&head, true).expect("room")));
            let streams = streams.collect();
            std::mem::forget(driver);
            (client, streams)
        };
        let (mut clients, streams): (Vec<_>, _) = (0..defaults::H2_CONNECTIONS).map(connection).unzip();
        *self.shared.borrow_mut() = clients.pop().map_or(Shared::None, Shared::Ready);
        *self.full.borrow_mut() = clients;
        streams
    }
}

/// HTTP/2 settings towards an endpoint.
fn config(params: &Http2Params, hop: bool, streams: Option<u32>) -> h2::Config {
    let mut config = h2::Config::default();
    config.streams_before_settings = streams.unwrap_or(config.streams_before_settings);
    if let Some(window) = params.connection_window {
        config.connection_window = window;
    }
    if let Some(window) = params.stream_window {
        config.stream_window = window;
    }
    config.keep_alive =
        params.keep_alive.or_else(|| hop.then_some((defaults::H2_PING_INTERVAL, defaults::H2_PING_TIMEOUT)));
    config.keep_alive_while_idle = params.keep_alive_while_idle;
    config
}
