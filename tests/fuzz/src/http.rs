//! The two protocols, both sides of each. The first byte says how the rest is cut into reads.

use bytes::Bytes;
use gossamer_engine::h1::{self, Length, Limits};
use gossamer_engine::io::Io;
use gossamer_engine::message::Method;
use gossamer_engine::{RequestHead, ResponseHead, h2};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A peer that sends these pieces and then closes, and takes everything.
struct Peer(VecDeque<Bytes>);

impl Peer {
    fn new(data: &[u8], piece: usize) -> Self {
        Peer(data.chunks(piece.max(1)).map(Bytes::copy_from_slice).collect())
    }
}

impl Io for Peer {}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(piece) = self.0.front_mut() {
            buf.put_slice(&piece.split_to(piece.len().min(buf.remaining())));
            if piece.is_empty() {
                self.0.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// HTTP/1 as a server and as a client: heads, chunked bodies, trailers. Where the bytes are cut changes nothing.
pub fn h1(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    let whole = served(data, usize::MAX);
    assert_eq!(served(data, usize::from(cut)), whole, "cut into {cut}");
    let whole = answered(data, usize::MAX);
    assert_eq!(answered(data, usize::from(cut)), whole, "cut into {cut}");
}

/// What a server makes of it.
fn served(data: &[u8], piece: usize) -> Vec<String> {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut server = h1::Server::new(Peer::new(data, piece), Bytes::new(), Limits::default());
    let mut seen = Vec::new();
    let mut head = RequestHead::default();
    loop {
        head.clear();
        match server.poll_request(cx, &mut head) {
            Poll::Ready(Some(Ok(()))) => {}
            Poll::Ready(Some(Err(_))) => {
                // Of several faults the first that is seen is told, and which that is depends on the cuts.
                seen.push("refused".into());
                return seen;
            }
            Poll::Ready(None) | Poll::Pending => return seen,
        }
        if seen.len() > 64 {
            return seen;
        }
        seen.push(format!("{:?} {} {:?}", head.method, head.path(), head.authority()));
        seen.extend(head.headers.iter().map(|(name, value)| format!("{name:?}: {value:?}")));
        let mut body = Vec::new();
        loop {
            match server.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) => body.extend_from_slice(&chunk),
                Poll::Ready(Some(Err(_))) => {
                    // How much of a broken body came first depends on the cuts.
                    seen.push("a broken body".into());
                    return seen;
                }
                Poll::Ready(None) => break,
                Poll::Pending => return seen,
            }
        }
        seen.push(format!("{body:?} {:?}", server.take_trailers().map(|t| t.iter().count())));
        server.send_response(&ResponseHead::new(200), Length::Known(1));
        server.send_data(Bytes::from_static(b"x"));
        if !matches!(server.poll_flush(cx), Poll::Ready(Ok(()))) || !server.keep_alive() {
            return seen;
        }
    }
}

/// What a client makes of it.
fn answered(data: &[u8], piece: usize) -> Vec<String> {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut client = h1::Client::new(Peer::new(data, piece), Limits::default());
    let mut request = RequestHead::default();
    request.method = Method::GET;
    request.set_path("/");
    request.set_authority("web");
    client.send_request(&request, Length::Empty);
    client.send_end(None);
    let _ = client.poll_flush(cx);
    let mut head = ResponseHead::new(0);
    let mut seen = Vec::new();
    loop {
        head.clear();
        match client.poll_response(cx, &mut head) {
            Poll::Ready(Ok(())) => seen.push(format!("{} {}", head.status, head.headers.iter().count())),
            Poll::Ready(Err(_)) => {
                seen.push("refused".into());
                return seen;
            }
            Poll::Pending => return seen,
        }
        if !head.is_informational() || head.status == 101 || seen.len() > 64 {
            break;
        }
    }
    let mut body = Vec::new();
    loop {
        match client.poll_data(cx) {
            Poll::Ready(Some(Ok(chunk))) => body.extend_from_slice(&chunk),
            Poll::Ready(Some(Err(_))) => {
                seen.push("a broken body".into());
                return seen;
            }
            Poll::Ready(None) => break,
            Poll::Pending => return seen,
        }
    }
    // What follows a response is only noticed once it is read.
    let _ = client.is_reusable();
    seen.push(format!("{body:?}"));
    seen
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// HTTP/2 as a server and as a client: frames and HPACK.
pub fn h2(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _inside = runtime.enter();
    let cx = &mut Context::from_waker(Waker::noop());

    let from = [PREFACE, data].concat();
    let (driver, mut accept) = h2::server(Peer::new(&from, usize::from(cut)), Bytes::new(), h2::Config::default());
    let mut driver = pin!(driver);
    let mut streams = Vec::new();
    for _ in 0..64 {
        let ended = driver.as_mut().poll(cx).is_ready();
        while let Poll::Ready(Some(h2::Incoming::Request(_, mut stream) | h2::Incoming::Refused(_, mut stream, _))) =
            accept.poll_incoming(cx)
        {
            let _ = stream.send_response(&ResponseHead::new(200), false);
            streams.push(stream);
        }
        for stream in &mut streams {
            while let Poll::Ready(Some(Ok(_))) = stream.poll_data(cx) {}
            stream.take_trailers();
        }
        if ended {
            break;
        }
    }

    let from = [&PREFACE[24..], data].concat();
    let (driver, client) = h2::client(Peer::new(&from, usize::from(cut)), h2::Config::default());
    let mut driver = pin!(driver);
    let mut request = RequestHead::default();
    request.method = Method::GET;
    request.set_path("/");
    request.set_authority("web");
    let mut streams: Vec<_> = (0..3).filter_map(|_| client.open(&request, true).ok()).collect();
    for _ in 0..64 {
        let ended = driver.as_mut().poll(cx).is_ready();
        for stream in &mut streams {
            let mut head = ResponseHead::new(0);
            while let Poll::Ready(Ok(())) = stream.poll_response(cx, &mut head) {
                if !head.is_informational() {
                    break;
                }
            }
            while let Poll::Ready(Some(Ok(_))) = stream.poll_data(cx) {}
        }
        if ended {
            break;
        }
    }
}
