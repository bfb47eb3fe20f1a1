//! Requests of one client connection: one after the other for HTTP/1, side by side for HTTP/2.

use super::ends::Downstream;
use super::{After, Connection, handle};
use crate::error::Error;
use crate::net::Stream;
use crate::record::Record;
use crate::{balance::pool, request::respond, tcp};
use bytes::Bytes;
use gossamer_api::defaults;
use gossamer_engine::{RequestHead, Version, h1, h2};
use std::future::{poll_fn, ready};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

/// HTTP/1 until either side closes. Draining: the connection ends after the request in flight.
///
/// Made to be small while it waits: this is what an idle connection costs.
pub fn http1(conn: Rc<Connection>, io: Stream, prefix: Bytes) -> impl Future<Output = ()> {
    // Captured, since what an async function is given lies in its future twice.
    let mut server = h1::Server::new(io, prefix, pool::limits());
    let mut head = RequestHead::default();
    async move {
        let drain = &conn.shard.drain;
        // One for all requests: to wait for it anew each time takes a lock and a place in a list.
        let mut stopping = pin!(drain.begun());
        // From the start: the first request may be there already, and has to be woken as well.
        poll_fn(|cx| {
            let _ = stopping.as_mut().poll(cx);
            Poll::Ready(())
        })
        .await;
        loop {
            let next = tokio::select! {
                biased;
                next = server.request(&mut head) => next,
                () = ready(()), if drain.is_begun() => break,
                () = &mut stopping, if !drain.is_begun() => break,
            };
            match next {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    let error = Error::of_client(error);
                    if !matches!(error, Error::ClientGone) {
                        let mut record = Record::request(&conn, &head);
                        let id = record.refused(&head, &error);
                        respond::send(&error, id, Version::Http11, false, false, &mut Downstream::H1(&mut server));
                    }
                    break;
                }
            }
            if drain.is_begun() {
                server.set_close();
            }
            // Boxed: a connection that is idle holds only itself.
            let after = Box::pin(handle(&conn, &mut head, &mut Downstream::H1(&mut server))).await;
            match after {
                After::Ready => {}
                After::Abort => {
                    let (io, _) = server.into_parts();
                    io.reset_on_close();
                    return;
                }
                After::Tunnel(client) => return Box::pin(tunnel(server, *client)).await,
            }
            head.release();
            if server.flush().await.is_err() || !server.keep_alive() {
                break;
            }
        }
        Box::pin(server.close()).await;
    }
}

/// After a 101 or a CONNECT: bytes both ways.
async fn tunnel(server: h1::Server<Stream>, client: h1::Client<Stream>) {
    let (mut near, first) = server.into_parts();
    let (mut far, greeting) = client.into_parts();
    let _ = tcp::relay(&mut near, &mut far, first, greeting).await;
}

/// HTTP/2 until either side closes. Draining: GOAWAY, and the connection ends after the streams in flight.
pub async fn http2(conn: Rc<Connection>, io: Stream, prefix: Bytes) {
    let config = h2::Config {
        max_concurrent_streams: defaults::H2_MAX_STREAMS,
        max_header_list: defaults::HEAD_BYTES as u32,
        ..h2::Config::default()
    };
    let (driver, mut accept) = h2::server(io, prefix, config);
    let drain = &conn.shard.drain;
    let serve = async {
        let (mut begun, mut draining) = (pin!(drain.begun()), false);
        loop {
            let next = tokio::select! {
                biased;
                next = accept.incoming() => next,
                () = &mut begun, if !draining => {
                    draining = true;
                    accept.shutdown();
                    // Each has to look at the drain from now on.
                    accept.wake_streams();
                    continue;
                }
            };
            let (mut head, stream) = match next {
                None => return,
                Some(h2::Incoming::Request(head, stream)) => (head, stream),
                Some(h2::Incoming::Refused(head, stream, error)) => {
                    refuse(&conn, &head, stream, error);
                    continue;
                }
            };
            let conn = conn.clone();
            // Boxed: the runtime moves a task's future several times.
            tokio::task::spawn_local(Box::pin(async move {
                let mut down = Downstream::H2(stream);
                let after = handle(&conn, &mut head, &mut down).await;
                if let (Downstream::H2(stream), After::Abort) = (&mut down, after) {
                    stream.reset(h2::code::INTERNAL_ERROR);
                }
                head.release();
            }));
        }
    };
    let (ended, ()) = tokio::join!(driver, serve);
    if let Err(error) = ended {
        tracing::debug!(client = %conn.client, %error, "client connection ended");
        let error = Error::of_client(error);
        if !matches!(error, Error::ClientGone) {
            conn.shard.metrics.http_errors(conn.metrics.direction).count(error.reason());
        }
    }
}

/// A request that nobody else will see. One that is malformed was reset (RFC 9113 section 8.1.1), and is recorded alone.
fn refuse(conn: &Connection, head: &RequestHead, stream: h2::Stream, error: gossamer_engine::Error) {
    let error = Error::of_client(error);
    let id = Record::request(conn, head).refused(head, &error);
    let head_only = head.method == gossamer_engine::message::Method::HEAD;
    respond::send(&error, id, Version::Http2, head.is_grpc(), head_only, &mut Downstream::H2(stream));
}
