//! HTTP/2 (RFC 9113), both roles, on one thread.
//!
//! A connection is a [`Driver`] task that owns the transport, and handles that share its state: [`Client`] opens
//! streams, [`Accept`] takes them, [`Stream`] is one exchange. Sending puts frames straight into the connection's
//! out-buffer; the driver writes once per turn of the event loop what all streams have put there.
//!
//! - `hpack`: header compression. `frame`: the layout of frames. `head`: heads to and from header blocks.
//! - `connection`: the state of a connection, and how streams begin, are read and end. `send`: what they send.
//!   `receive`: what the peer's frames do.
//! - `slot`: the state of a stream. `out`: what waits to be written. `driver`: the I/O.
//!
//! **Bounds.** Received content: the windows. The out-buffer: 128 KiB plus one chunk per stream, which stays with its
//! stream. Header blocks, queued answers, resets and useless frames: counted; a peer that exceeds them gets
//! GOAWAY(ENHANCE_YOUR_CALM). A request that is malformed or too large is told apart from others ([`Incoming`]). An idle
//! connection holds no buffers.
//!
//! Not here: server push (refused), priorities (parsed and ignored), upgrade from HTTP/1.1.

mod connection;
mod driver;
mod frame;
mod head;
mod hpack;
mod out;
mod receive;
mod send;
mod slot;
mod stream;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub use driver::Driver;
pub use stream::{Accept, Client, Closer, Incoming, Stream};

use connection::{Connection, Role};

/// Gives back what lies in wait: see [`crate::buffer::sweep`].
pub(crate) fn sweep() {
    out::sweep();
}

/// How this side of a connection behaves. Values that the RFC does not allow are moved to the nearest that it does.
#[derive(Clone, Debug)]
pub struct Config {
    /// Content received per stream before its reader must have taken some. 256 KiB: at 1 ms round trip that is
    /// 2 Gbit/s for one stream, and a stream that nobody reads holds no more than that.
    pub stream_window: u32,
    /// The same for all streams of the connection together: what a connection can hold. 1 MiB, as in Linkerd.
    pub connection_window: u32,
    /// Streams the peer may have open at once; more are refused, which is safe to retry. 1000: a sidecar's peer
    /// multiplexes all its requests over one connection, and a stream costs half a kilobyte.
    pub max_concurrent_streams: u32,
    /// Largest frame accepted. 16 KiB, the least: larger ones only make other streams wait.
    pub max_frame_size: u32,
    /// Largest list of fields accepted, counted as RFC 9113 section 6.5.2 says. 64 KiB.
    pub max_header_list: u32,
    /// Ping the peer after that long without a frame, and give up when nothing comes for that long after. Off.
    pub keep_alive: Option<(Duration, Duration)>,
    /// Also while no stream is open. On.
    pub keep_alive_while_idle: bool,
    /// Streams the peer may reset per second before they are answered (CVE-2023-44487). 1000: below that, resetting
    /// costs us no more than sending requests would.
    pub max_resets_per_second: u32,
    /// Client: streams to open before the server has said how many it takes. 100, which RFC 9113 recommends as the least
    /// limit; what a connection before this one was told is better.
    pub streams_before_settings: u32,
    /// Server: admit extended CONNECT (RFC 8441). Off.
    pub enable_connect_protocol: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            max_concurrent_streams: 1000,
            max_frame_size: frame::MIN_MAX_FRAME,
            max_header_list: 64 * 1024,
            keep_alive: None,
            keep_alive_while_idle: true,
            max_resets_per_second: 1000,
            streams_before_settings: 100,
            enable_connect_protocol: false,
        }
    }
}

impl Config {
    fn checked(mut self) -> Self {
        self.stream_window = self.stream_window.clamp(1, frame::MAX_31);
        self.connection_window = self.connection_window.clamp(frame::DEFAULT_WINDOW, frame::MAX_31);
        self.max_frame_size = self.max_frame_size.clamp(frame::MIN_MAX_FRAME, frame::MAX_MAX_FRAME);
        self
    }
}

/// Serves a connection. `prefix` is what protocol detection has read from `io` already.
pub fn server<S: AsyncRead + AsyncWrite + Unpin>(io: S, prefix: Bytes, config: Config) -> (Driver<S>, Accept) {
    let shared = Rc::new(RefCell::new(Connection::new(Role::Server, config)));
    (Driver::new(io, shared.clone(), &prefix), Accept { shared })
}

/// Begins a connection to a server that is known to speak HTTP/2. Streams may be opened at once.
pub fn client<S: AsyncRead + AsyncWrite + Unpin>(io: S, config: Config) -> (Driver<S>, Client) {
    let shared = Rc::new(RefCell::new(Connection::new(Role::Client, config)));
    (Driver::new(io, shared.clone(), &[]), Client { shared })
}

/// Error codes (RFC 9113 section 7).
#[allow(missing_docs)]
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const SETTINGS_TIMEOUT: u32 = 4;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const CONNECT_ERROR: u32 = 10;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
    pub const INADEQUATE_SECURITY: u32 = 12;
    pub const HTTP_1_1_REQUIRED: u32 = 13;
}
