//! HTTP/2 clients that flood a proxy: told off and closed, and nobody else notices.

use crate::{Pair, http_pair};
use gossamer_api::keys::ALPN_TRANSPORT;
use gossamer_proxy::balance::transport::Session;
use gossamer_tests::client::{self, H1, H2};
use gossamer_tests::expect::{becomes, within};
use gossamer_tests::mesh::{Proxy, identity_of};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

// RFC 9113 sections 3.4, 6 and 7.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;

/// `GET /hang` to `web` (RFC 7541): two indexed fields, a path and an authority in full.
const HEAD: &[u8] = b"\x82\x86\x04\x05/hang\x01\x03web";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// What is sent over and over; the number is that of the round.
type Round = fn(u32) -> Vec<u8>;

const FLOODS: &[(&str, Round)] = &[
    ("rapid reset", |n| {
        let id = 2 * n + 1;
        [frame(HEADERS, END_HEADERS | END_STREAM, id, HEAD), frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat()
    }),
    // A reset that the server is made to send itself: DATA after the end.
    ("made you reset", |n| {
        let id = 2 * n + 1;
        [frame(HEADERS, END_HEADERS | END_STREAM, id, HEAD), frame(DATA, 0, id, b"x")].concat()
    }),
    ("CONTINUATION", |n| match n {
        0 => frame(HEADERS, END_STREAM, 1, HEAD),
        // A new field with every frame, and never the last.
        _ => frame(CONTINUATION, 0, 1, format!("\x00\x08x-{n:06}\x64{}", "v".repeat(100)).as_bytes()),
    }),
    ("empty CONTINUATION", |n| match n {
        0 => frame(HEADERS, END_STREAM, 1, HEAD),
        _ => frame(CONTINUATION, 0, 1, b""),
    }),
    ("empty DATA", |n| match n {
        0 => frame(HEADERS, END_HEADERS, 1, HEAD),
        _ => frame(DATA, 0, 1, b""),
    }),
];

/// Answered each, so only a flood when the answers are not read.
const UNREAD: &[(&str, Round)] =
    &[("SETTINGS", |_| frame(SETTINGS, 0, 0, &[])), ("PING", |n| frame(PING, 0, 0, &u64::from(n).to_be_bytes()))];

/// Enough for every bound, far too little to fill the buffers of sockets with what nobody reads.
const ROUNDS: u32 = 2_000_000;

/// Floods until the other side closes. The code of its GOAWAY, if it was read.
async fn flood(io: impl AsyncRead + AsyncWrite + Unpin, round: Round, read: bool) -> Option<u32> {
    let (mut from, mut to) = tokio::io::split(io);
    let write = async {
        let start = [PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat();
        if to.write_all(&start).await.is_err() {
            return;
        }
        for n in (0..ROUNDS).step_by(64) {
            let block: Vec<u8> = (n..n + 64).flat_map(round).collect();
            if to.write_all(&block).await.is_err() {
                return;
            }
        }
        panic!("{ROUNDS} rounds and nobody minds");
    };
    if !read {
        within("the connection breaks", write).await;
        return None;
    }
    let mut got = Vec::new();
    let reading = async {
        // A reset may follow the GOAWAY, since more was sent than was read.
        let mut block = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut block).await {
            got.extend_from_slice(&block[..count]);
            assert!(got.len() < 16 << 20, "answers are bounded");
        }
    };
    within("the end", async { tokio::join!(write, reading) }).await;
    goaway(&got)
}

fn goaway(mut bytes: &[u8]) -> Option<u32> {
    let mut code = None;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let payload = rest.get(..length)?;
        if *kind == GOAWAY {
            code = Some(u32::from_be_bytes(payload.get(4..8)?.try_into().unwrap()));
        }
        bytes = &rest[length..];
    }
    code
}

/// Others are served, and memory is what it was, but for a few MiB of buffers.
async fn unharmed(pair: &Pair, proxy: &Proxy, before: u64, what: &str) {
    let mut h1 = H1::connect(pair.entry()).await;
    assert_eq!(h1.get("web", "/bytes/1").await.status, 200, "{what}");
    assert_eq!(H2::connect(pair.entry()).await.get("web", "/bytes/1").await.status, 200, "{what}");
    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{what}: {} grew by {} KiB", proxy.name, grown >> 10);
}

#[tokio::test]
async fn a_workload_that_floods_its_own_proxy_is_closed() {
    let (pair, _) = http_pair().await;
    let before = pair.shop.memory();
    for (what, round) in FLOODS {
        let io = TcpStream::connect(pair.entry()).await.unwrap();
        let code = flood(io, *round, true).await;
        assert!(code.is_none_or(|code| code != 0), "{what}: {code:?}");
        unharmed(&pair, &pair.shop, before, what).await;
    }
    for (what, round) in UNREAD {
        flood(TcpStream::connect(pair.entry()).await.unwrap(), *round, false).await;
        unharmed(&pair, &pair.shop, before, what).await;
    }
    becomes((FLOODS.len() + UNREAD.len()) as f64, || async {
        pair.shop.metrics().await.sum("outbound_http_errors_total", &[("error", "flood")])
    })
    .await;
}

#[tokio::test]
async fn a_meshed_client_that_floods_is_closed() {
    let (pair, _) = http_pair().await;
    let before = pair.web.memory();
    let config = pair.mesh.credentials("flooder").client_config(&[ALPN_TRANSPORT]);
    let name = identity_of("web");
    let connect = || client::meshed(pair.web.inbound(), config.clone(), &name, 8080, Some(Session::Http2));
    for (what, round) in FLOODS {
        let code = flood(connect().await.unwrap(), *round, true).await;
        assert!(code.is_none_or(|code| code != 0), "{what}: {code:?}");
        unharmed(&pair, &pair.web, before, what).await;
    }
    for (what, round) in UNREAD {
        flood(connect().await.unwrap(), *round, false).await;
        unharmed(&pair, &pair.web, before, what).await;
    }
    becomes((FLOODS.len() + UNREAD.len()) as f64, || async {
        pair.web.metrics().await.sum("inbound_http_errors_total", &[("error", "flood")])
    })
    .await;
}

/// Not a flood: requests that are no HTTP, and a connection that is none.
#[tokio::test]
async fn what_is_malformed_in_http2_is_reset_and_counted() {
    let (pair, app) = http_pair().await;
    let counted = || async { pair.shop.metrics().await.sum("outbound_http_errors_total", &[("error", "bad-request")]) };
    let answered = || async {
        let labels = [("direction", "outbound"), ("error", "bad-request"), ("status_code", "400")];
        pair.shop.metrics().await.sum("response_total", &labels)
    };
    let mut io = TcpStream::connect(pair.entry()).await.unwrap();
    let upper = [HEAD, b"\x00\x01X\x01y"].concat();
    let settings = frame(SETTINGS, 0, 0, &[]);
    let start = [PREFACE, &settings, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &upper)].concat();
    io.write_all(&start).await.unwrap();
    becomes((1.0, 1.0), || async { (counted().await, answered().await) }).await;
    // The connection goes on, until its peer speaks something else.
    io.write_all(&frame(DATA, 0, 0, b"x")).await.unwrap();
    let mut got = Vec::new();
    let _ = within("the end", io.read_to_end(&mut got)).await;
    assert_eq!(goaway(&got), Some(1), "PROTOCOL_ERROR");
    becomes(2.0, counted).await;
    assert_eq!(app.count(), 0);
}
