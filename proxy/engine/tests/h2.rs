//! HTTP/2 over an in-memory transport: our client against our server, and each against the `h2` crate.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use gossamer_engine::h2::{self, Accept, Client, Config, Stream, code};
use gossamer_engine::{Error, Headers, RequestHead, ResponseHead};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

/// Runs a test on one thread. One that takes a minute, also on a busy machine, hangs.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("test takes too long");
    });
}

/// As [`run`], with the clock advancing by itself whenever nothing else happens.
fn run_paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

type Ended = JoinHandle<Result<(), Error>>;

fn pair(client: Config, server: Config) -> (Client, Ended, Accept, Ended) {
    let (near, far) = duplex(16 * 1024);
    let (driver, client) = h2::client(near, client);
    let client_end = spawn_local(driver);
    let (driver, accept) = h2::server(far, Bytes::new(), server);
    (client, client_end, accept, spawn_local(driver))
}

fn get(path: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_path(path);
    head.set_authority("example.com");
    head
}

fn post(path: &str) -> RequestHead {
    let mut head = get(path);
    head.method = http::Method::POST;
    head
}

fn pattern(len: usize) -> Bytes {
    (0..len).map(|at| ((at * 31) >> 3) as u8).collect::<Vec<u8>>().into()
}

/// Answers with the request's content and trailers.
async fn echo(request: RequestHead, mut stream: Stream) -> Result<(), Error> {
    let mut response = ResponseHead::new(200);
    response.headers.append("x-path", request.path());
    stream.send_response(&response, false)?;
    while let Some(data) = stream.data().await {
        stream.capacity().await?;
        stream.send_data(data?, false)?;
    }
    match stream.take_trailers() {
        Some(trailers) => stream.send_trailers(&trailers),
        None => stream.send_data(Bytes::new(), true),
    }
}

fn serve_echo(mut accept: Accept) {
    spawn_local(async move {
        while let Some((head, stream)) = accept.accept().await {
            spawn_local(echo(head, stream));
        }
    });
}

async fn body(stream: &mut Stream) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(data) = stream.data().await {
        all.extend_from_slice(&data?);
    }
    Ok(all)
}

async fn exchange(
    client: &Client,
    path: &str,
    content: Bytes,
    trailers: bool,
) -> Result<(ResponseHead, Vec<u8>), Error> {
    client.ready().await?;
    let mut stream = client.open(&post(path), false)?;
    let mut head = ResponseHead::default();
    if trailers {
        stream.send_data(content, false)?;
        let mut fields = Headers::new();
        fields.append("x-check", path);
        stream.send_trailers(&fields)?;
    } else {
        stream.send_data(content, true)?;
    }
    stream.response(&mut head).await?;
    let content = body(&mut stream).await?;
    let got = stream.take_trailers();
    assert_eq!(got.is_some(), trailers);
    if let Some(got) = got {
        assert_eq!(got.get_str("x-check"), Some(path));
    }
    Ok((head, content))
}

#[test]
fn many_exchanges_share_a_connection() {
    run(async {
        let (client, client_end, accept, server_end) = pair(Config::default(), Config::default());
        serve_echo(accept);
        let tasks: Vec<_> = (0..200)
            .map(|i| {
                let client = client.clone();
                spawn_local(async move {
                    let path = format!("/{i}");
                    let content = pattern(i * 511);
                    let (head, got) = exchange(&client, &path, content.clone(), i % 3 == 0).await.unwrap();
                    assert_eq!((head.status, head.headers.get_str("x-path")), (200, Some(&*path)));
                    assert!(got == content, "content of {i}");
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(client.active(), 0);
        drop(client);
        assert!(client_end.await.unwrap().is_ok());
        assert!(server_end.await.unwrap().is_ok());
    });
}

#[test]
fn content_larger_than_all_windows_passes_both_ways() {
    run(async {
        let small = Config { stream_window: 10_000, connection_window: 70_000, ..Config::default() };
        let (client, _end, accept, _) = pair(small.clone(), small);
        serve_echo(accept);
        let content = pattern(3_000_000);
        let both = (0..4).map(|_| {
            let (client, content) = (client.clone(), content.clone());
            spawn_local(async move { exchange(&client, "/", content, true).await.unwrap().1 })
        });
        for task in both.collect::<Vec<_>>() {
            assert!(task.await.unwrap() == content);
        }
    });
}

#[test]
fn a_stream_that_nobody_reads_does_not_hold_up_others() {
    run(async {
        let (client, _end, mut accept, _) = pair(Config::default(), Config::default());
        let mut stuck = client.open(&post("/stuck"), false).unwrap();
        stuck.send_data(pattern(2_000_000), true).unwrap();
        let (_, held) = accept.accept().await.unwrap();
        serve_echo(accept);
        let (_, got) = exchange(&client, "/", pattern(500_000), false).await.unwrap();
        assert_eq!(got.len(), 500_000);
        drop(held);
        let error = std::future::poll_fn(|cx| stuck.poll_reset(cx)).await;
        assert!(matches!(error, Error::Reset(code::CANCEL)), "{error:?}");
        // What was buffered for it has given its window back.
        for _ in 0..5 {
            exchange(&client, "/", pattern(900_000), false).await.unwrap();
        }
    });
}

#[test]
fn whole_contents_that_nobody_reads_give_their_window_back() {
    run(async {
        let small = Config { connection_window: 65_535, ..Config::default() };
        let (client, _end, accept, _) = pair(small.clone(), small);
        serve_echo(accept);
        for _ in 0..20 {
            let mut stream = client.open(&post("/"), false).unwrap();
            stream.send_data(pattern(20_000), true).unwrap();
            while client.active() > 0 {
                tokio::task::yield_now().await;
            }
            drop(stream);
        }
    });
}

#[test]
fn capacity_waits_for_the_window() {
    run(async {
        let (client, _end, mut accept, _) =
            pair(Config::default(), Config { stream_window: 65_535, ..Config::default() });
        let mut stream = client.open(&post("/"), false).unwrap();
        stream.send_data(pattern(100_000), false).unwrap();
        let (_, mut server) = accept.accept().await.unwrap();
        tokio::time::timeout(Duration::from_millis(20), stream.capacity()).await.expect_err("no window is left");
        let mut got = 0;
        while got < 100_000 {
            got += server.data().await.unwrap().unwrap().len();
        }
        stream.capacity().await.unwrap();
        stream.send_data(Bytes::from_static(b"x"), true).unwrap();
        assert_eq!(body(&mut server).await.unwrap(), b"x");
        assert!(server.is_end_stream());
    });
}

#[test]
fn informational_heads_come_first() {
    run(async {
        let (client, _end, mut accept, _) = pair(Config::default(), Config::default());
        let mut stream = client.open(&get("/"), true).unwrap();
        let (request, mut server) = accept.accept().await.unwrap();
        assert_eq!((request.path(), request.authority()), ("/", Some("example.com")));
        assert!(server.is_end_stream());
        server.send_informational(&ResponseHead::new(103)).unwrap();
        server.send_response(&ResponseHead::new(404), true).unwrap();
        assert!(server.send_response(&ResponseHead::new(200), true).is_err());
        let mut head = ResponseHead::default();
        stream.response(&mut head).await.unwrap();
        assert_eq!(head.status, 103);
        stream.response(&mut head).await.unwrap();
        assert_eq!(head.status, 404);
        assert!(stream.data().await.is_none());
    });
}

#[test]
fn resets_reach_the_other_side() {
    run(async {
        let (client, _end, mut accept, _) = pair(Config::default(), Config::default());
        let mut stream = client.open(&post("/"), false).unwrap();
        let (_, mut server) = accept.accept().await.unwrap();
        stream.reset(code::CANCEL);
        assert!(matches!(server.data().await, Some(Err(Error::Reset(code::CANCEL)))));
        assert!(matches!(server.send_response(&ResponseHead::new(200), true), Err(Error::Reset(code::CANCEL))));

        let mut stream = client.open(&post("/"), false).unwrap();
        accept.accept().await.unwrap().1.reset(code::REFUSED_STREAM);
        let error = stream.response(&mut ResponseHead::default()).await.unwrap_err();
        assert!(error.unprocessed());

        // A server that has answered wants no more.
        let mut stream = client.open(&post("/"), false).unwrap();
        accept.accept().await.unwrap().1.send_response(&ResponseHead::new(413), true).unwrap();
        let mut head = ResponseHead::default();
        stream.response(&mut head).await.unwrap();
        assert_eq!(head.status, 413);
        let error = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        assert!(matches!(error, Error::Reset(code::NO_ERROR)), "{error:?}");
        assert!(stream.data().await.is_none(), "the response was whole");
    });
}

#[test]
fn a_client_keeps_to_the_servers_limit() {
    run(async {
        let (client, _end, mut accept, _) =
            pair(Config::default(), Config { max_concurrent_streams: 2, ..Config::default() });
        let first = client.open(&get("/"), true).unwrap();
        drop(accept.accept().await.unwrap());
        drop(first);
        // The settings have come by now.
        let _a = client.open(&get("/a"), true).unwrap();
        let b = client.open(&get("/b"), true).unwrap();
        assert!(!client.has_capacity() && client.is_usable());
        assert!(matches!(client.open(&get("/c"), true), Err(Error::Refused)));
        let waiting = {
            let client = client.clone();
            spawn_local(async move { client.ready().await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(b);
        waiting.await.unwrap().unwrap();
    });
}

#[test]
fn a_server_that_says_goodbye_serves_what_it_has() {
    run(async {
        let (client, client_end, mut accept, server_end) = pair(Config::default(), Config::default());
        let mut stream = client.open(&get("/"), true).unwrap();
        let (_, mut server) = accept.accept().await.unwrap();
        accept.shutdown();
        assert!(accept.accept().await.is_none());
        assert!(!client.is_usable());
        assert!(client.open(&get("/"), true).is_err());
        server.send_response(&ResponseHead::new(200), false).unwrap();
        server.send_data(pattern(100_000), true).unwrap();
        stream.response(&mut ResponseHead::default()).await.unwrap();
        assert_eq!(body(&mut stream).await.unwrap().len(), 100_000);
        drop((server, stream));
        assert!(server_end.await.unwrap().is_ok());
        assert!(client_end.await.unwrap().is_ok());
    });
}

#[test]
fn a_client_that_shuts_down_finishes_its_streams() {
    run(async {
        let (client, client_end, accept, server_end) = pair(Config::default(), Config::default());
        serve_echo(accept);
        let mut stream = client.open(&post("/"), false).unwrap();
        client.shutdown();
        assert!(!client.is_usable());
        stream.send_data(pattern(300_000), true).unwrap();
        stream.response(&mut ResponseHead::default()).await.unwrap();
        assert_eq!(body(&mut stream).await.unwrap().len(), 300_000);
        drop(stream);
        assert!(client_end.await.unwrap().is_ok());
        assert!(server_end.await.unwrap().is_ok());
    });
}

#[test]
fn a_dropped_driver_fails_all_streams() {
    run(async {
        let (near, _far) = duplex(1000);
        let (driver, client) = h2::client(near, Config::default());
        let mut stream = client.open(&get("/"), true).unwrap();
        drop(driver);
        assert!(stream.response(&mut ResponseHead::default()).await.is_err());
        assert!(!client.is_usable());
        assert!(client.ready().await.is_err());
    });
}

#[test]
fn content_length_is_held_against_the_content() {
    run(async {
        let (client, _end, mut accept, _) = pair(Config::default(), Config::default());
        for (announced, sent) in [("3", "ab"), ("3", "abcd")] {
            let mut head = post("/");
            head.headers.append("content-length", announced);
            let mut stream = client.open(&head, false).unwrap();
            stream.send_data(Bytes::from_static(sent.as_bytes()), true).unwrap();
            let (_, mut server) = accept.accept().await.unwrap();
            assert!(matches!(body(&mut server).await, Err(Error::Malformed(_))));
            let error = stream.response(&mut ResponseHead::default()).await.unwrap_err();
            assert!(matches!(error, Error::Reset(code::PROTOCOL_ERROR)));
        }
        // A HEAD response announces what it does not send.
        let mut head = get("/");
        head.method = http::Method::HEAD;
        let mut stream = client.open(&head, true).unwrap();
        let (_, mut server) = accept.accept().await.unwrap();
        let mut response = ResponseHead::new(200);
        response.headers.append("content-length", "10");
        server.send_response(&response, true).unwrap();
        stream.response(&mut response).await.unwrap();
        assert!(stream.data().await.is_none());
    });
}

#[test]
fn heads_that_are_too_large_are_answered_431() {
    run(async {
        let (client, _end, accept, _) = pair(Config::default(), Config { max_header_list: 4096, ..Config::default() });
        serve_echo(accept);
        let mut large = post("/");
        large.headers.append("x-large", "x".repeat(5000));
        let mut stream = client.open(&large, false).unwrap();
        let mut head = ResponseHead::default();
        stream.response(&mut head).await.unwrap();
        assert_eq!(head.status, 431);
        exchange(&client, "/", Bytes::new(), false).await.unwrap();
        // Beyond what is worth decoding the connection ends.
        large.headers.append("x-larger", "x".repeat(100_000));
        let mut stream = client.open(&large, false).unwrap();
        let error = stream.response(&mut head).await.unwrap_err();
        assert!(matches!(error, Error::GoAway(code::ENHANCE_YOUR_CALM)), "{error:?}");
    });
}

#[test]
fn large_heads_continue() {
    run(async {
        let (client, _end, accept, _) = pair(Config::default(), Config::default());
        serve_echo(accept);
        let mut large = post("/");
        for i in 0..10 {
            large.headers.append(format!("x-{i}"), "v".repeat(5000));
        }
        let mut stream = client.open(&large, true).unwrap();
        let mut head = ResponseHead::default();
        stream.response(&mut head).await.unwrap();
        assert_eq!(head.status, 200);
    });
}

#[test]
fn a_silent_peer_is_given_up() {
    run_paused(async {
        let alive = Some((Duration::from_secs(10), Duration::from_secs(3)));
        let (near, mut far) = duplex(16 * 1024);
        let (driver, client) = h2::client(near, Config { keep_alive: alive, ..Config::default() });
        let end = spawn_local(driver);
        // A server that says its settings and then nothing.
        far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let begin = tokio::time::Instant::now();
        let mut stream = client.open(&get("/"), true).unwrap();
        let error = stream.response(&mut ResponseHead::default()).await.unwrap_err();
        assert!(matches!(error, Error::Unresponsive), "{error:?}");
        assert_eq!(begin.elapsed().as_secs(), 13);
        assert!(matches!(end.await.unwrap(), Err(Error::Unresponsive)));

        // One that answers pings is kept.
        let (client, _end, _accept, _) = pair(Config { keep_alive: alive, ..Config::default() }, Config::default());
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(client.is_usable());
    });
}

/// A client whose peer has said its settings and nothing for long, while no stream was open; its driver, and that peer.
async fn left_alone() -> (h2::Client, tokio::task::JoinHandle<Result<(), Error>>, tokio::io::DuplexStream) {
    let alive = Some((Duration::from_secs(10), Duration::from_secs(3)));
    let (near, mut far) = duplex(16 * 1024);
    let config = Config { keep_alive: alive, keep_alive_while_idle: false, ..Config::default() };
    let (driver, client) = h2::client(near, config);
    let end = spawn_local(driver);
    far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    (client, end, far)
}

#[test]
fn a_peer_that_idles_is_left_alone_where_pings_are_for_streams() {
    run_paused(async {
        let (client, end, _far) = left_alone().await;
        assert!(client.is_usable());
        // The first request after that asks at once whether somebody is there.
        let begin = tokio::time::Instant::now();
        let mut stream = client.open(&get("/"), true).unwrap();
        let error = stream.response(&mut ResponseHead::default()).await.unwrap_err();
        assert!(matches!(error, Error::Unresponsive), "{error:?}");
        assert_eq!(begin.elapsed().as_secs(), 3);
        assert!(matches!(end.await.unwrap(), Err(Error::Unresponsive)));
    });
}

#[test]
fn a_peer_that_was_left_alone_is_watched_again_with_the_next_stream() {
    run_paused(async {
        let (client, end, mut far) = left_alone().await;
        let mut seen = vec![0; 16 * 1024];
        let count = far.read(&mut seen).await.unwrap();
        // A ping's head: eight bytes, type 6, no flags, stream 0.
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0];
        let at = |seen: &[u8]| seen.windows(9).position(|head| head == ping).map(|at| at + 9);
        assert_eq!(at(&seen[..count]), None, "nothing is asked while nobody minds");

        let begin = tokio::time::Instant::now();
        let mut stream = client.open(&get("/"), true).unwrap();
        let mut response = ResponseHead::default();
        let peer = async {
            let count = far.read(&mut seen).await.unwrap();
            let at = at(&seen[..count]).expect("asked together with the request");
            let answer = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], &seen[at..at + 8]].concat();
            tokio::time::sleep(Duration::from_secs(2)).await;
            far.write_all(&answer).await.unwrap();
            std::future::pending().await
        };
        let error = tokio::select! {
            error = stream.response(&mut response) => error.unwrap_err(),
            never = peer => never,
        };
        assert!(matches!(error, Error::Unresponsive), "{error:?}");
        assert_eq!(begin.elapsed().as_secs(), 2 + 13, "from its last sign of life");
        assert!(matches!(end.await.unwrap(), Err(Error::Unresponsive)));
    });
}

#[test]
fn requests_that_cannot_be_served_are_told_apart() {
    run(async {
        let small = Config { max_header_list: 1000, ..Config::default() };
        let (client, _end, mut accept, _) = pair(Config::default(), small.clone());
        let mut large = get("/large");
        large.headers.append("x-large", "v".repeat(2000));
        let mut stream = client.open(&large, true).unwrap();
        let Some(h2::Incoming::Refused(head, mut server, Error::HeadTooLarge)) = accept.incoming().await else {
            panic!("too large")
        };
        assert_eq!(head.path(), "/large", "what came before is known");
        // Whoever serves says why.
        let mut answer = ResponseHead::new(431);
        answer.headers.append("x-why", "large");
        server.send_response(&answer, true).unwrap();
        drop(server);
        let mut head = ResponseHead::default();
        stream.response(&mut head).await.unwrap();
        assert_eq!((head.status, head.headers.get_str("x-why")), (431, Some("large")));

        // One that is malformed has been reset; the next is served.
        let (mut near, far) = duplex(64 * 1024);
        let (driver, mut accept) = h2::server(far, Bytes::new(), small);
        spawn_local(driver);
        let upper = b"\x82\x86\x84\x41\x01h\x00\x01X\x01y";
        let good = b"\x82\x86\x84\x41\x01h";
        near.write_all(&[PREFACE, &frame(1, 5, 1, upper), &frame(1, 5, 3, good)].concat()).await.unwrap();
        let mut told = Vec::new();
        while told.len() < 2 {
            told.push(match accept.incoming().await.unwrap() {
                h2::Incoming::Request(_, stream) => format!("{} served", stream.id()),
                h2::Incoming::Refused(_, mut stream, Error::Malformed(_)) => {
                    assert!(stream.send_response(&ResponseHead::new(200), true).is_err(), "it is over");
                    format!("{} refused", stream.id())
                }
                h2::Incoming::Refused(_, stream, error) => format!("{} {error}", stream.id()),
            });
        }
        told.sort_unstable();
        assert_eq!(told, ["1 refused", "3 served"]);
    });
}

#[test]
fn a_goodbye_does_not_wait_forever_for_a_pong() {
    run_paused(async {
        let (mut near, far) = duplex(16 * 1024);
        let (driver, accept) = h2::server(far, Bytes::new(), Config::default());
        let end = spawn_local(driver);
        near.write_all(PREFACE).await.unwrap();
        accept.shutdown();
        let begin = tokio::time::Instant::now();
        end.await.unwrap().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn capacity_passes_those_by_who_do_not_use_it() {
    run(async {
        let (client, _end, mut accept, _) =
            pair(Config::default(), Config { connection_window: 65_535, ..Config::default() });
        let mut greedy = client.open(&post("/greedy"), false).unwrap();
        greedy.send_data(pattern(65_535), false).unwrap();
        let (_, mut read) = accept.accept().await.unwrap();
        // These are woken when the window opens, and then have nothing to say.
        let idle: Vec<_> = (0..20)
            .map(|_| {
                let mut stream = client.open(&post("/idle"), false).unwrap();
                spawn_local(async move {
                    stream.capacity().await.unwrap();
                    std::future::pending::<()>().await;
                })
            })
            .collect();
        let mut last = client.open(&post("/last"), false).unwrap();
        let sent = spawn_local(async move {
            last.capacity().await.unwrap();
            last.send_data(Bytes::from_static(b"x"), true).unwrap();
            last.response(&mut ResponseHead::default()).await
        });
        serve_echo(accept);
        let mut got = 0;
        while got < 65_535 {
            got += read.data().await.unwrap().unwrap().len();
        }
        sent.await.unwrap().unwrap();
        assert!(idle.iter().all(|task| !task.is_finished()));
    });
}

#[test]
fn large_contents_take_turns() {
    run(async {
        let (client, _end, accept, _) = pair(Config::default(), Config::default());
        serve_echo(accept);
        let order = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let tasks: Vec<_> = [("/large", 4_000_000), ("/small", 100_000)]
            .map(|(path, len)| {
                let (client, order) = (client.clone(), order.clone());
                spawn_local(async move {
                    exchange(&client, path, pattern(len), false).await.unwrap();
                    order.borrow_mut().push(path);
                })
            })
            .into();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.borrow(), ["/small", "/large"]);
    });
}

#[test]
fn a_peer_that_does_not_read_makes_senders_wait() {
    run_paused(async {
        let (near, mut far) = duplex(1000);
        let (driver, client) = h2::client(near, Config::default());
        spawn_local(driver);
        // SETTINGS: the largest windows, for streams and for the connection.
        far.write_all(&frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])).await.unwrap();
        far.write_all(&frame(8, 0, 0, &[0x7f, 0, 0, 0])).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sent = std::rc::Rc::new(std::cell::Cell::new(0));
        for _ in 0..50 {
            let mut stream = client.open(&post("/"), false).unwrap();
            let sent = sent.clone();
            spawn_local(async move {
                loop {
                    stream.capacity().await.unwrap();
                    stream.send_data(pattern(8192), false).unwrap();
                    sent.set(sent.get() + 8192);
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!((50_000..200_000).contains(&sent.get()), "{}", sent.get());
    });
}

/// A transport that counts the writes.
struct Counted {
    io: DuplexStream,
    writes: std::rc::Rc<std::cell::Cell<usize>>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[test]
fn what_streams_send_in_one_turn_is_written_at_once() {
    run(async {
        let (near, far) = duplex(1 << 20);
        let [sent, answered] = [0; 2].map(|_| std::rc::Rc::new(std::cell::Cell::new(0)));
        let (driver, client) = h2::client(Counted { io: near, writes: sent.clone() }, Config::default());
        spawn_local(driver);
        let (driver, accept) =
            h2::server(Counted { io: far, writes: answered.clone() }, Bytes::new(), Config::default());
        spawn_local(driver);
        serve_echo(accept);
        exchange(&client, "/", Bytes::new(), false).await.unwrap();
        sent.set(0);
        answered.set(0);
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let client = client.clone();
                spawn_local(async move { exchange(&client, "/", pattern(100), true).await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!((sent.get(), answered.get()), (1, 1));
    });
}

#[test]
fn connect_makes_a_tunnel() {
    run(async {
        let server = Config { enable_connect_protocol: true, ..Config::default() };
        let (client, _end, mut accept, _) = pair(Config::default(), server);
        let mut plain = get("");
        plain.method = http::Method::CONNECT;
        plain.headers.append("content-length", "0");
        let mut extended = get("/chat");
        extended.method = http::Method::CONNECT;
        extended.set_protocol("websocket");
        for head in [plain, extended] {
            let mut stream = client.open(&head, false).unwrap();
            let (request, mut server) = accept.accept().await.unwrap();
            assert_eq!(request.method, http::Method::CONNECT);
            assert_eq!((request.protocol(), request.path()), (head.protocol(), head.path()));
            let mut response = ResponseHead::new(200);
            response.headers.append("content-length", "0");
            server.send_response(&response, false).unwrap();
            stream.response(&mut response).await.unwrap();
            for _ in 0..3 {
                stream.send_data(Bytes::from_static(b"ping"), false).unwrap();
                assert_eq!(server.data().await.unwrap().unwrap(), "ping");
                server.send_data(Bytes::from_static(b"pong"), false).unwrap();
                assert_eq!(stream.data().await.unwrap().unwrap(), "pong");
            }
        }
        assert!(client.peer_allows_connect_protocol());
    });
}

// ---- Against the `h2` crate.

async fn h2_echo(io: DuplexStream) {
    let mut connection = ::h2::server::handshake(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let mut content = request.into_body();
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            while let Some(data) = content.data().await {
                let mut data = data.unwrap();
                content.flow_control().release_capacity(data.len()).unwrap();
                while !data.is_empty() {
                    send.reserve_capacity(data.len());
                    let n = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
                    send.send_data(data.split_to(n.min(data.len())), false).unwrap();
                }
            }
            match content.trailers().await.unwrap() {
                Some(trailers) => send.send_trailers(trailers).unwrap(),
                None => send.send_data(Bytes::new(), true).unwrap(),
            }
        });
    }
}

#[test]
fn our_client_understands_another_server() {
    run(async {
        let (near, far) = duplex(16 * 1024);
        tokio::spawn(h2_echo(far));
        let (driver, client) = h2::client(near, Config::default());
        let end = spawn_local(driver);
        let tasks: Vec<_> = (0..60)
            .map(|i| {
                let client = client.clone();
                spawn_local(async move {
                    let content = pattern(i * i * 300);
                    let path = format!("/{i}");
                    let (head, got) = exchange(&client, &path, content.clone(), i % 2 == 0).await.unwrap();
                    assert_eq!(head.status, 200);
                    assert!(got == content, "content of {i}");
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        drop(client);
        end.await.unwrap().unwrap();
    });
}

#[test]
fn our_server_is_understood_by_another_client() {
    run(async {
        let (near, far) = duplex(16 * 1024);
        let (driver, accept) = h2::server(far, Bytes::new(), Config::default());
        let end = spawn_local(driver);
        let closer = accept.closer();
        serve_echo(accept);
        let (client, connection) = ::h2::client::handshake(near).await.unwrap();
        let connection = tokio::spawn(connection);
        let tasks: Vec<_> = (0..60usize)
            .map(|i| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    let content = pattern(i * i * 300);
                    client = client.ready().await.unwrap();
                    let request = http::Request::post(format!("http://a/{i}")).body(()).unwrap();
                    let (response, mut send) = client.send_request(request, false).unwrap();
                    let mut left = content.clone();
                    let sending = tokio::spawn(async move {
                        while !left.is_empty() {
                            send.reserve_capacity(left.len());
                            let n = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
                            send.send_data(left.split_to(n.min(left.len())), false).unwrap();
                        }
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("x-check", i.into());
                        send.send_trailers(trailers).unwrap();
                    });
                    let response = response.await.unwrap();
                    assert_eq!(response.headers()["x-path"], format!("/{i}"));
                    let mut body = response.into_body();
                    let mut got = Vec::new();
                    while let Some(data) = body.data().await {
                        let data = data.unwrap();
                        body.flow_control().release_capacity(data.len()).unwrap();
                        got.extend_from_slice(&data);
                    }
                    assert!(got == content, "content of {i}");
                    assert_eq!(body.trailers().await.unwrap().unwrap()["x-check"], i.to_string());
                    sending.await.unwrap();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        closer.shutdown();
        drop(client);
        connection.await.unwrap().unwrap();
        end.await.unwrap().unwrap();
    });
}

#[test]
fn resets_and_goaway_agree_with_another_implementation() {
    run(async {
        let (near, far) = duplex(16 * 1024);
        let (driver, mut accept) = h2::server(far, Bytes::new(), Config::default());
        let end = spawn_local(driver);
        let (mut client, connection) = ::h2::client::handshake(near).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = || http::Request::post("http://a/").body(()).unwrap();

        let (response, mut send) = client.send_request(request(), false).unwrap();
        let (_, mut stream) = accept.accept().await.unwrap();
        send.send_reset(::h2::Reason::CANCEL);
        assert!(matches!(stream.data().await, Some(Err(Error::Reset(code::CANCEL)))));
        drop(response);

        let (response, _send) = client.send_request(request(), false).unwrap();
        accept.accept().await.unwrap().1.reset(code::REFUSED_STREAM);
        assert_eq!(response.await.unwrap_err().reason(), Some(::h2::Reason::REFUSED_STREAM));

        let (response, _send) = client.send_request(request(), true).unwrap();
        let (_, mut stream) = accept.accept().await.unwrap();
        accept.shutdown();
        assert!(accept.accept().await.is_none());
        assert!(client.send_request(request(), true).is_err() || client.ready().await.is_err());
        stream.send_response(&ResponseHead::new(204), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 204);
        drop(stream);
        end.await.unwrap().unwrap();
        connection.await.unwrap().unwrap();
    });
}

#[test]
fn another_servers_goaway_refuses_what_it_did_not_take() {
    run(async {
        let (near, mut far) = duplex(16 * 1024);
        let (driver, client) = h2::client(near, Config::default());
        let end = spawn_local(driver);
        let mut first = client.open(&get("/1"), true).unwrap();
        let mut second = client.open(&get("/2"), true).unwrap();
        far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        far.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]).await.unwrap();
        let mut head = ResponseHead::default();
        assert!(second.response(&mut head).await.unwrap_err().unprocessed());
        assert!(!client.is_usable());
        far.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]).await.unwrap();
        first.response(&mut head).await.unwrap();
        assert_eq!(head.status, 200);
        drop((first, second, far));
        end.await.unwrap().unwrap();
    });
}

// ---- Abuse.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    let mut frame = len.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// What a server says to these bytes until it closes: the kinds and payloads of its frames.
async fn answers(bytes: Vec<u8>, config: Config) -> Vec<(u8, Vec<u8>)> {
    let (mut near, far) = duplex(1 << 22);
    let (driver, accept) = h2::server(far, Bytes::new(), config);
    spawn_local(driver);
    serve_echo(accept);
    near.write_all(&bytes).await.unwrap();
    let mut got = Vec::new();
    let _ = tokio::time::timeout(Duration::from_millis(500), near.read_to_end(&mut got)).await;
    let mut frames = Vec::new();
    let mut rest = &got[..];
    while rest.len() >= 9 {
        let len = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        frames.push((rest[3], rest[9..9 + len].to_vec()));
        rest = &rest[9 + len..];
    }
    frames
}

async fn goaway(bytes: Vec<u8>) -> Option<u32> {
    let frames = answers(bytes, Config::default()).await;
    frames.iter().find(|(kind, _)| *kind == 7).map(|(_, payload)| u32::from_be_bytes(payload[4..8].try_into().unwrap()))
}

#[test]
fn floods_end_the_connection() {
    run_paused(async {
        let calm = Some(code::ENHANCE_YOUR_CALM);
        let resets = |count: u32| {
            let mut bytes = PREFACE.to_vec();
            for id in 0..count {
                bytes.extend(frame(1, 4, id * 2 + 1, &[0x83, 0x86, 0x84]));
                bytes.extend(frame(3, 0, id * 2 + 1, &[0, 0, 0, 8]));
            }
            bytes
        };
        assert_eq!(goaway(resets(1200)).await, calm, "rapid reset");
        assert_eq!(goaway(resets(900)).await, None);

        let mut bytes = PREFACE.to_vec();
        for id in 0..1200 {
            bytes.extend(frame(1, 4, id * 2 + 1, &[0x83, 0x86, 0x84]));
            bytes.extend(frame(8, 0, id * 2 + 1, &[0, 0, 0, 0]));
        }
        assert_eq!(goaway(bytes).await, calm, "streams that we are made to reset");

        let flood = |frame: Vec<u8>, count: usize| [PREFACE, &frame.repeat(count)].concat();
        assert_eq!(goaway(flood(frame(6, 0, 0, b"12345678"), 30_000)).await, calm, "pings");
        assert_eq!(goaway(flood(frame(4, 0, 0, &[]), 30_000)).await, calm, "settings");
        assert_eq!(goaway(flood(frame(0xbe, 0, 0, &[]), 30_000)).await, calm, "unknown frames");
        assert_eq!(goaway(flood(frame(6, 0, 0, b"12345678"), 100)).await, None);

        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(1, 0, 1, &[0x82]));
        bytes.extend(frame(9, 0, 1, &[]).repeat(40));
        assert_eq!(goaway(bytes).await, calm, "empty CONTINUATION");

        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(1, 4, 1, &[0x83, 0x86, 0x84]));
        bytes.extend(frame(0, 0, 1, &[]).repeat(30_000));
        assert_eq!(goaway(bytes).await, calm, "empty DATA");
    });
}

#[test]
fn more_streams_than_allowed_are_refused() {
    run_paused(async {
        let mut bytes = PREFACE.to_vec();
        for id in 0..5 {
            bytes.extend(frame(1, 4, id * 2 + 1, &[0x83, 0x86, 0x84]));
        }
        let frames = answers(bytes, Config { max_concurrent_streams: 3, ..Config::default() }).await;
        let refused = frames.iter().filter(|(kind, payload)| *kind == 3 && payload[3] == 7).count();
        assert_eq!(refused, 2);
    });
}

mod random {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let stream = prop_oneof![Just(0u32), (1..12u32), any::<u32>()];
        let payload = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            Just(vec![0x83, 0x86, 0x84]),
            Just(vec![0, 0, 0, 8]),
            Just(vec![]),
        ];
        (0..11u8, any::<u8>(), stream, payload).prop_map(|(kind, flags, id, payload)| frame(kind, flags, id, &payload))
    }

    /// How one side behaves.
    #[derive(Clone, Copy, Debug)]
    enum Way {
        /// Properly.
        Whole,
        /// Drops the stream after so many chunks.
        Drop(usize),
        /// Resets the stream after so many chunks.
        Reset(usize),
        /// Goes away at once, a server after its whole response.
        Leave,
    }

    fn any_way() -> impl Strategy<Value = Way> {
        prop_oneof![
            2 => Just(Way::Whole),
            1 => (0..4usize).prop_map(Way::Drop),
            1 => (0..4usize).prop_map(Way::Reset),
            1 => Just(Way::Leave),
        ]
    }

    async fn read_in_a_way(mut stream: Stream, way: Way) -> Result<(), Error> {
        let most = match way {
            Way::Whole => usize::MAX,
            Way::Drop(chunks) | Way::Reset(chunks) => chunks,
            Way::Leave => 0,
        };
        for _ in 0..most {
            let Some(data) = stream.data().await else { break };
            data?;
        }
        if matches!(way, Way::Reset(_)) {
            stream.reset(code::INTERNAL_ERROR);
        }
        Ok(())
    }

    async fn answer_in_a_way(mut stream: Stream, way: Way, len: usize) -> Result<(), Error> {
        stream.send_response(&ResponseHead::new(200), false)?;
        stream.send_data(pattern(len), !matches!(way, Way::Drop(_)))?;
        read_in_a_way(stream, way).await
    }

    async fn ask_in_a_way(client: Client, way: Way, len: usize) -> Result<(), Error> {
        client.ready().await?;
        let mut stream = client.open(&post("/chaos"), false)?;
        stream.send_data(pattern(len), true)?;
        if !matches!(way, Way::Leave) {
            stream.response(&mut ResponseHead::default()).await?;
        }
        read_in_a_way(stream, way).await
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn whatever_streams_do_the_connection_stays_whole(
            ways in proptest::collection::vec((any_way(), 0..50_000usize, any_way(), 0..50_000usize), 1..40),
            stream_window in 1000..100_000u32,
            max_concurrent_streams in 1..20u32,
        ) {
            run(async {
                let config =
                    Config { stream_window, connection_window: 65_535, max_concurrent_streams, ..Config::default() };
                let (client, client_end, mut accept, server_end) = pair(config.clone(), config);
                // The settings arrive with the first exchange.
                let asked = ways.clone();
                let server = spawn_local(async move {
                    let (head, stream) = accept.accept().await.unwrap();
                    echo(head, stream).await.unwrap();
                    let mut ways = asked.into_iter();
                    while let Some((head, stream)) = accept.accept().await {
                        if head.path() == "/chaos" {
                            let (_, _, way, len) = ways.next().unwrap_or((Way::Leave, 0, Way::Leave, 0));
                            spawn_local(answer_in_a_way(stream, way, len));
                        } else {
                            spawn_local(echo(head, stream));
                        }
                    }
                });
                exchange(&client, "/", Bytes::new(), false).await.unwrap();
                let tasks: Vec<_> =
                    ways.iter().map(|(way, len, ..)| spawn_local(ask_in_a_way(client.clone(), *way, *len))).collect();
                for task in tasks {
                    let _ = task.await.unwrap();
                }
                // A window that leaked would stop this.
                for _ in 0..3 {
                    let content = pattern(200_000);
                    assert!(exchange(&client, "/", content.clone(), true).await.unwrap().1 == content);
                }
                assert_eq!(client.active(), 0);
                drop(client);
                client_end.await.unwrap().unwrap();
                server_end.await.unwrap().unwrap();
                server.await.unwrap();
            });
        }


        #[test]
        fn bytes_never_panic(bytes: Vec<u8>, frames in proptest::collection::vec(any_frame(), 0..30)) {
            run_paused(async {
                answers([PREFACE, &bytes].concat(), Config::default()).await;
                answers([PREFACE, &frames.concat(), &bytes].concat(), Config::default()).await;
            });
        }

        #[test]
        fn bytes_never_panic_a_client(frames in proptest::collection::vec(any_frame(), 0..30)) {
            run_paused(async {
                let (near, mut far) = duplex(1 << 20);
                let (driver, client) = h2::client(near, Config::default());
                spawn_local(driver);
                let tasks: Vec<_> = (0..4).map(|_| {
                    let mut stream = client.open(&post("/"), false).unwrap();
                    spawn_local(async move {
                        let _ = stream.send_data(pattern(1000), true);
                        let mut head = ResponseHead::default();
                        if stream.response(&mut head).await.is_ok() {
                            let _ = body(&mut stream).await;
                        }
                    })
                }).collect();
                let head = frame(1, 4, 1, &[0x88]);
                far.write_all(&[&PREFACE[24..], &head, &frames.concat()].concat()).await.unwrap();
                drop(far);
                for task in tasks {
                    task.await.unwrap();
                }
            });
        }

        #[test]
        fn fragments_do_not_matter(cuts in proptest::collection::vec(1..60usize, 1..50)) {
            run_paused(async {
                let mut bytes = PREFACE.to_vec();
                bytes.extend(frame(1, 4, 1, &[0x83, 0x86, 0x84, 0x40, 1, b'x', 1, b'y']));
                bytes.extend(frame(1, 0, 3, &[0x83, 0x86]));
                bytes.extend(frame(9, 4, 3, &[0x84, 0xbe]));
                bytes.extend(frame(0, 9, 3, b"\x05hello, world....."));
                bytes.extend(frame(0, 0, 1, &[b'z'; 300]));
                bytes.extend(frame(0, 1, 1, &[b'z'; 6000]));
                let (mut near, far) = duplex(1 << 20);
                let split = bytes.len().min(cuts[0]);
                let (driver, mut accept) =
                    h2::server(far, Bytes::copy_from_slice(&bytes[..split]), Config::default());
                spawn_local(driver);
                let mut rest = &bytes[split..];
                for cut in cuts.iter().cycle() {
                    let (part, after) = rest.split_at(rest.len().min(*cut));
                    near.write_all(part).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                for expect in [vec![b'z'; 6300], b"hello, world".to_vec()] {
                    let (head, mut stream) = accept.accept().await.unwrap();
                    assert_eq!(head.headers.get_str("x"), Some("y"));
                    assert!(body(&mut stream).await.unwrap() == expect);
                }
            });
        }
    }
}
