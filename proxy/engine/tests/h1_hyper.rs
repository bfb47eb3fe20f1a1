//! HTTP/1 against hyper: its client talks to our server, our client to its server, and both must see the same message.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use gossamer_engine::h1::{Client, Length, Limits, Server};
use gossamer_engine::io::Io;
use gossamer_engine::{Error, Headers, RequestHead, ResponseHead};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// A body in pieces, of a known length or not, with or without trailers.
#[derive(Clone, Default)]
struct Pieces {
    data: Vec<Bytes>,
    known: bool,
    trailers: Option<hyper::HeaderMap>,
}

impl Pieces {
    fn new(known: bool, sizes: &[usize]) -> Self {
        let piece = |(at, &size): (usize, &usize)| Bytes::from(vec![b'a' + at as u8; size]);
        Pieces { data: sizes.iter().enumerate().map(piece).collect(), known, trailers: None }
    }

    fn len(&self) -> u64 {
        self.data.iter().map(|data| data.len() as u64).sum()
    }

    fn length(&self) -> Length {
        match self.known {
            true if self.len() == 0 => Length::Empty,
            true => Length::Known(self.len()),
            false => Length::Unknown,
        }
    }

    fn concat(&self) -> Vec<u8> {
        self.data.concat()
    }

    fn all() -> Vec<Pieces> {
        let mut trailers = Pieces::new(false, &[10, 20]);
        trailers.trailers = Some([("x-sum".parse().unwrap(), "7".parse().unwrap())].into_iter().collect());
        let sizes: [&[usize]; 6] = [&[], &[1], &[5, 6, 7], &[20_000], &[100_000, 1, 70_000], &[16_384; 30]];
        let both = sizes.iter().flat_map(|sizes| [Pieces::new(true, sizes), Pieces::new(false, sizes)]);
        both.chain([trailers]).collect()
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.data.remove(0)))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self.known {
            true => hyper::body::SizeHint::with_exact(self.len()),
            false => hyper::body::SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.known && self.data.is_empty()
    }
}

async fn hyper_client(io: DuplexStream) -> hyper::client::conn::http1::SendRequest<Pieces> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// Sends a body as a proxy does: waits for room before each chunk.
async fn send<S: Io>(server: &mut Server<S>, pieces: &Pieces) -> Result<(), Error> {
    for data in &pieces.data {
        poll_fn(|cx| server.poll_capacity(cx)).await?;
        server.send_data(data.clone());
    }
    let mut trailers = Headers::new();
    for (name, value) in pieces.trailers.iter().flatten() {
        trailers.append(name, value);
    }
    server.send_end(Some(&trailers));
    server.flush().await
}

/// Echoes every request: its body comes back, of a known length or not as it came.
async fn echo(io: DuplexStream) {
    let mut server = Server::new(io, Bytes::new(), Limits::default());
    let mut head = RequestHead::default();
    while let Some(request) = server.request(&mut head).await {
        request.unwrap();
        let mut body = Pieces { known: server.body_length() != Length::Unknown, ..Pieces::default() };
        let length = server.body_length();
        while let Some(data) = poll_fn(|cx| server.poll_data(cx)).await {
            body.data.push(data.unwrap());
        }
        assert!(server.is_end());
        let mut response = ResponseHead::new(200);
        response.headers.append("x-method", head.method.as_str());
        response.headers.append("x-target", head.path());
        response.headers.append("x-host", head.authority().unwrap_or("-"));
        if let Some(value) = server.take_trailers().and_then(|trailers| trailers.get("x-sum").map(<[u8]>::to_vec)) {
            response.headers.append("x-trailer", value);
            body.trailers = Some([("x-sum".parse().unwrap(), "8".parse().unwrap())].into_iter().collect());
        }
        match head.path() {
            "/204" => response.status = 204,
            "/304" => response.status = 304,
            "/hints" => {
                server.send_informational(&ResponseHead::new(103));
                server.flush().await.unwrap();
            }
            "/close" => server.set_close(),
            _ => {}
        }
        server.send_response(&response, if head.method == Method::HEAD { Length::Known(7) } else { length });
        send(&mut server, &body).await.unwrap();
    }
    server.close().await;
}

#[tokio::test]
async fn hypers_client_gets_back_what_it_sent() {
    for pipe in [100, 1 << 20] {
        let (ours, theirs) = duplex(pipe);
        let served = tokio::spawn(echo(ours));
        let mut sender = hyper_client(theirs).await;
        for (at, pieces) in Pieces::all().into_iter().enumerate() {
            let (expect, trailers) = (pieces.concat(), pieces.trailers.clone());
            let request = Request::builder().method(Method::POST).uri(format!("/{at}?q=1")).header("host", "a:80");
            let request = match &trailers {
                Some(_) => request.header("te", "trailers").header("trailer", "x-sum"),
                None => request,
            };
            sender.ready().await.unwrap();
            let response = sender.send_request(request.body(pieces).unwrap()).await.unwrap();
            let (head, body) = response.into_parts();
            assert_eq!(head.status, 200);
            assert_eq!(head.headers["x-target"], format!("/{at}?q=1"));
            assert_eq!(head.headers["x-host"], "a:80");
            let body = body.collect().await.unwrap();
            if trailers.is_some() {
                assert_eq!(head.headers["x-trailer"], "7");
                assert_eq!(body.trailers().unwrap()["x-sum"], "8");
            }
            assert_eq!(body.to_bytes(), expect, "body {at} through a pipe of {pipe}");
        }
        drop(sender);
        served.await.unwrap();
    }
}

#[tokio::test]
async fn hypers_client_sees_the_end_of_responses_without_a_body() {
    let (ours, theirs) = duplex(1 << 16);
    let served = tokio::spawn(echo(ours));
    let mut sender = hyper_client(theirs).await;
    for (method, path) in [
        (Method::HEAD, "/"),
        (Method::GET, "/204"),
        (Method::GET, "/304"),
        (Method::GET, "/hints"),
        (Method::GET, "/close"),
    ] {
        sender.ready().await.unwrap();
        let request = Request::builder().method(method.clone()).uri(path).header("host", "a");
        let response = sender.send_request(request.body(Pieces::new(true, &[])).unwrap()).await.unwrap();
        if method == Method::HEAD {
            assert_eq!(response.headers()["content-length"], "7");
        }
        assert_eq!(response.headers().contains_key("connection"), path == "/close");
        assert_eq!(response.collect().await.unwrap().to_bytes(), "");
    }
    assert!(sender.ready().await.is_err(), "the connection is closed");
    served.await.unwrap();
}

#[tokio::test]
async fn an_upgraded_connection_is_a_plain_stream() {
    let (ours, theirs) = duplex(1 << 16);
    let served = tokio::spawn(async move {
        let mut server = Server::new(ours, Bytes::new(), Limits::default());
        server.request(&mut RequestHead::default()).await.unwrap().unwrap();
        let mut head = ResponseHead::new(101);
        head.headers.append("upgrade", "shout");
        server.send_response(&head, Length::Empty);
        server.flush().await.unwrap();
        let (mut io, before) = server.into_parts();
        let mut word = [0; 5];
        word[..before.len()].copy_from_slice(&before);
        io.read_exact(&mut word[before.len()..]).await.unwrap();
        io.write_all(&word.to_ascii_uppercase()).await.unwrap();
    });
    let mut sender = hyper_client(theirs).await;
    let request = Request::builder().uri("/").header("host", "a").header("connection", "upgrade");
    let request = request.header("upgrade", "shout").body(Pieces::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut word = String::new();
    stream.read_to_string(&mut word).await.unwrap();
    assert_eq!(word, "HELLO");
    served.await.unwrap();
}

fn hyper_server(io: DuplexStream) {
    let service = hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
        let path = request.uri().path().to_owned();
        let version = request.version();
        let known = request.body().size_hint().exact().is_some();
        let host = request.headers()["host"].clone();
        let mut request = request;
        if path == "/upgrade" {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                stream.write_all(b"hello").await.unwrap();
            });
        }
        let body = request.into_body().collect().await.unwrap();
        let trailers = body.trailers().cloned();
        let data = body.to_bytes();
        let (data, trailers) = match path.as_str() {
            "/204" | "/304" | "/upgrade" => (Vec::new(), None),
            _ if data.is_empty() => (Vec::new(), trailers),
            _ => (vec![data], trailers),
        };
        let mut response = Response::new(Pieces { data, known, trailers: trailers.clone() });
        *response.version_mut() = version;
        let headers = response.headers_mut();
        headers.insert("x-host", host);
        if trailers.is_some() {
            headers.insert("trailer", "x-sum".parse().unwrap());
        }
        match path.as_str() {
            "/204" => *response.status_mut() = hyper::StatusCode::NO_CONTENT,
            "/304" => *response.status_mut() = hyper::StatusCode::NOT_MODIFIED,
            "/close" => {
                headers.insert("connection", "close".parse().unwrap());
            }
            "/upgrade" => {
                headers.insert("connection", "upgrade".parse().unwrap());
                headers.insert("upgrade", "x".parse().unwrap());
                *response.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
            }
            _ => {}
        }
        Ok::<_, Infallible>(response)
    });
    tokio::spawn(async move {
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(TokioIo::new(io), service).with_upgrades().await;
    });
}

/// One exchange: the response's head, body and trailers. The body is sent while the response may come already.
async fn exchange(
    client: &mut Client<DuplexStream>,
    head: &RequestHead,
    pieces: &Pieces,
) -> Result<(ResponseHead, Vec<u8>, Option<Headers>), Error> {
    client.send_request(head, pieces.length());
    for data in &pieces.data {
        poll_fn(|cx| client.poll_capacity(cx)).await?;
        client.send_data(data.clone());
    }
    let mut trailers = Headers::new();
    for (name, value) in pieces.trailers.iter().flatten() {
        trailers.append(name, value);
    }
    client.send_end(Some(&trailers));
    client.flush().await?;
    let mut response = ResponseHead::default();
    client.response(&mut response).await?;
    let mut body = Vec::new();
    while let Some(data) = poll_fn(|cx| client.poll_data(cx)).await {
        body.extend_from_slice(&data?);
    }
    Ok((response, body, client.take_trailers()))
}

fn get(method: Method, path: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.method = method;
    head.set_path(path);
    head.set_authority("a:80");
    head
}

#[tokio::test]
async fn hypers_server_gets_what_was_sent_and_sends_it_back() {
    // hyper reads the whole request before it answers, so no pipe is too small for that.
    for pipe in [100, 1 << 20] {
        let (ours, theirs) = duplex(pipe);
        hyper_server(theirs);
        let mut client = Client::new(ours, Limits::default());
        for (at, pieces) in Pieces::all().into_iter().enumerate() {
            let mut head = get(Method::POST, &format!("/{at}"));
            if pieces.trailers.is_some() {
                head.headers.append("te", "trailers");
                head.headers.append("trailer", "x-sum");
            }
            let (response, body, trailers) = exchange(&mut client, &head, &pieces).await.unwrap();
            assert_eq!((response.status, response.headers.get("x-host")), (200, Some(&b"a:80"[..])));
            assert_eq!(body, pieces.concat(), "body {at} through a pipe of {pipe}");
            assert_eq!(trailers.is_some(), pieces.trailers.is_some());
            assert!(client.is_end() && client.is_reusable());
        }
    }
}

#[tokio::test]
async fn our_client_sees_the_end_of_responses_without_a_body() {
    let (ours, theirs) = duplex(1 << 16);
    hyper_server(theirs);
    let mut client = Client::new(ours, Limits::default());
    let none = Pieces::new(true, &[]);
    for (method, path) in [(Method::HEAD, "/"), (Method::GET, "/204"), (Method::GET, "/304"), (Method::GET, "/close")] {
        let (_, body, _) = exchange(&mut client, &get(method, path), &none).await.unwrap();
        assert_eq!((body.len(), client.is_reusable()), (0, path != "/close"));
    }
}

#[tokio::test]
async fn our_client_upgrades() {
    let (ours, theirs) = duplex(1 << 16);
    hyper_server(theirs);
    let mut client = Client::new(ours, Limits::default());
    let mut head = get(Method::GET, "/upgrade");
    head.headers.append("upgrade", "x");
    client.send_request(&head, Length::Empty);
    let mut response = ResponseHead::default();
    client.response(&mut response).await.unwrap();
    assert_eq!(response.status, 101);
    let (mut io, before) = client.into_parts();
    let mut word = before.to_vec();
    io.read_to_end(&mut word).await.unwrap();
    assert_eq!(word, b"hello");
}

#[tokio::test]
async fn both_of_our_ends_understand_each_other() {
    for pipe in [64, 1 << 16] {
        let (ours, theirs) = duplex(pipe);
        let served = tokio::spawn(echo(theirs));
        let mut client = Client::new(ours, Limits::default());
        for pieces in Pieces::all() {
            // The echo answers after the request's end, so that neither side waits for the other.
            let (response, body, trailers) = exchange(&mut client, &get(Method::PUT, "/x"), &pieces).await.unwrap();
            assert_eq!(response.headers.get("x-target"), Some(&b"/x"[..]));
            assert_eq!(body, pieces.concat());
            assert_eq!(trailers.is_some(), pieces.trailers.is_some());
            assert!(client.is_reusable());
        }
        drop(client);
        served.await.unwrap();
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (ours, mut theirs) = duplex(1 << 16);
    let served = tokio::spawn(echo(ours));
    let requests: String = (0..50).map(|at| format!("GET /{at} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    theirs.write_all(requests.as_bytes()).await.unwrap();
    theirs.write_all(b"GET /close HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut all = String::new();
    theirs.read_to_string(&mut all).await.unwrap();
    let targets: Vec<_> = all.lines().filter_map(|line| line.strip_prefix("x-target: ")).collect();
    let expect: Vec<_> = (0..50).map(|at| format!("/{at}")).chain(["/close".to_owned()]).collect();
    assert_eq!(targets, expect);
    served.await.unwrap();
}

#[tokio::test]
async fn hypers_full_bodies_too() {
    let (ours, theirs) = duplex(1 << 16);
    tokio::spawn(async move {
        let service = hyper::service::service_fn(async |_| {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"until the end"))))
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        let _ = server.keep_alive(false).serve_connection(TokioIo::new(theirs), service).await;
    });
    let mut client = Client::new(ours, Limits::default());
    let (_, body, _) = exchange(&mut client, &get(Method::GET, "/"), &Pieces::new(true, &[])).await.unwrap();
    assert_eq!((&body[..], client.is_reusable()), (&b"until the end"[..], false));
}
