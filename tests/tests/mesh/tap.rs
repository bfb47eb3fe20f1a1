//! The tap API: live requests, matched, with their headers where asked for, bounded.

use crate::{Pair, http_pair};
use gossamer_tests::client::{H1, post_request};
use gossamer_tests::expect::within;
use linkerd2_proxy_api::tap::observe_request::r#match::{self as wanted, http as http_wanted};
use linkerd2_proxy_api::tap::observe_request::{Extract, Match, extract};
use linkerd2_proxy_api::tap::tap_client::TapClient;
use linkerd2_proxy_api::tap::tap_event::http::{Event, RequestInit, ResponseInit};
use linkerd2_proxy_api::tap::tap_event::{self, ProxyDirection};
use linkerd2_proxy_api::tap::{ObserveRequest, TapEvent};
use std::net::SocketAddr;
use tonic::Streaming;
use tonic::transport::Channel;

async fn observe(tap: SocketAddr, request: ObserveRequest) -> Streaming<TapEvent> {
    let channel = Channel::from_shared(format!("http://{tap}")).unwrap().connect().await.unwrap();
    TapClient::new(channel).observe(request).await.unwrap().into_inner()
}

fn path_prefix(prefix: &str) -> Match {
    let prefix = http_wanted::string_match::Match::Prefix(prefix.into());
    let path = http_wanted::Match::Path(http_wanted::StringMatch { r#match: Some(prefix) });
    Match { r#match: Some(wanted::Match::Http(wanted::Http { r#match: Some(path) })) }
}

fn headers() -> Extract {
    let headers = extract::http::Extract::Headers(extract::http::Headers {});
    Extract { extract: Some(extract::Extract::Http(extract::Http { extract: Some(headers) })) }
}

async fn next(events: &mut Streaming<TapEvent>) -> (TapEvent, Event) {
    let event = within("an event", events.message()).await.unwrap().expect("the stream goes on");
    let Some(tap_event::Event::Http(http)) = event.event.clone() else { panic!("{event:?}") };
    (event, http.event.unwrap())
}

fn header(init: &Option<linkerd2_proxy_api::http_types::Headers>, name: &str) -> Option<String> {
    let headers = &init.as_ref()?.headers;
    let found = headers.iter().find(|header| header.name == name)?;
    Some(String::from_utf8_lossy(&found.value).into_owned())
}

#[tokio::test]
async fn a_request_is_seen_from_both_sides_with_its_headers() {
    let (pair, _) = http_pair().await;
    let request = |_| ObserveRequest { limit: 10, r#match: Some(path_prefix("/bytes")), extract: Some(headers()) };
    let mut outbound = observe(pair.shop.tap(), request(())).await;
    let mut inbound = observe(pair.web.tap(), request(())).await;
    let mut client = H1::connect(pair.entry()).await;
    client.send(post_request("web", "/status/204", "ignored")).await.unwrap();
    let mut wanted = post_request("web", "/bytes/7?q=1", "body");
    wanted.headers_mut().insert("x-order", "42".parse().unwrap());
    client.send(wanted).await.unwrap();
    for (events, direction) in [(&mut outbound, ProxyDirection::Outbound), (&mut inbound, ProxyDirection::Inbound)] {
        let (event, init) = next(events).await;
        assert_eq!(event.proxy_direction(), direction);
        let Event::RequestInit(RequestInit { path, headers, authority, id, .. }) = init else { panic!("{init:?}") };
        assert_eq!((path.as_str(), authority.as_str()), ("/bytes/7", "web"), "{direction:?}: no query");
        assert_eq!(header(&headers, "x-order").as_deref(), Some("42"));
        let (event, init) = next(events).await;
        let Event::ResponseInit(ResponseInit { http_status, id: of, .. }) = init else { panic!("{init:?}") };
        assert_eq!((http_status, of), (200, id));
        let identities = [event.source_meta, event.destination_meta].map(|meta| meta.map(|meta| meta.labels));
        let text = format!("{identities:?}");
        assert!(text.contains("shop.test.") || text.contains("web.test."), "{text}");
        let (_, end) = next(events).await;
        let Event::ResponseEnd(end) = end else { panic!("{end:?}") };
        assert_eq!((end.response_bytes, end.id), (7, id));
    }
}

#[tokio::test]
async fn a_session_ends_at_its_limit() {
    let (pair, _) = http_pair().await;
    let request = ObserveRequest { limit: 3, r#match: Some(path_prefix("/")), extract: None };
    let mut events = observe(pair.shop.tap(), request).await;
    let inits = tap_all(&pair, &mut events, 10).await;
    assert_eq!(inits, 3);
}

/// Sends requests; how many of them were seen until the session's end.
async fn tap_all(pair: &Pair, events: &mut Streaming<TapEvent>, requests: usize) -> usize {
    let mut client = H1::connect(pair.entry()).await;
    for _ in 0..requests {
        client.send(post_request("web", "/bytes/1", "x")).await.unwrap();
    }
    let mut seen = 0;
    while let Some(event) = within("an event, or the end", events.message()).await.unwrap() {
        let Some(tap_event::Event::Http(http)) = event.event else { continue };
        seen += usize::from(matches!(http.event, Some(Event::RequestInit(_))));
    }
    seen
}

#[tokio::test]
async fn a_reader_that_stands_still_delays_no_request() {
    let (pair, app) = http_pair().await;
    let request = ObserveRequest { limit: 100_000, r#match: Some(path_prefix("/")), extract: Some(headers()) };
    let _unread = observe(pair.shop.tap(), request).await;
    let mut client = H1::connect(pair.entry()).await;
    for _ in 0..300 {
        let mut request = post_request("web", "/bytes/1", "x");
        request.headers_mut().insert("x-long", "l".repeat(4000).parse().unwrap());
        assert_eq!(client.send(request).await.unwrap().status, 200);
    }
    assert_eq!(app.count(), 300);
}
