//! The tap API: live requests, matched, with their headers where asked for, bounded.

use crate::{Pair, WEB, http_pair};
use gossamer_api::request_id::RequestId;
use gossamer_api::wire::mesh::requests_client::RequestsClient;
use gossamer_api::wire::mesh::{RequestName, RequestStory};
use gossamer_tests::app;
use gossamer_tests::client::{H1, post_request};
use gossamer_tests::expect::{eventually, within};
use gossamer_tests::mesh::Mesh;
use linkerd2_proxy_api::tap::observe_request::r#match::{self as wanted, http as http_wanted};
use linkerd2_proxy_api::tap::observe_request::{Extract, Match, extract};
use linkerd2_proxy_api::tap::tap_client::TapClient;
use linkerd2_proxy_api::tap::tap_event::http::{Event, RequestInit, ResponseInit};
use linkerd2_proxy_api::tap::tap_event::{self, ProxyDirection};
use linkerd2_proxy_api::tap::{ObserveRequest, TapEvent};
use serde_json::Value;
use std::net::SocketAddr;
use tonic::Streaming;
use tonic::transport::Channel;

/// A session for all requests.
pub(crate) fn everything(limit: u32) -> ObserveRequest {
    ObserveRequest { limit, r#match: Some(path_prefix("/")), extract: None }
}

/// The reason code of the next answer of that name, by its label; other requests are left out.
pub(crate) async fn reason_of(events: &mut Streaming<TapEvent>, name: &str) -> Option<String> {
    loop {
        let (event, what) = next(events).await;
        let Event::ResponseInit(ResponseInit { id: Some(id), .. }) = what else { continue };
        if (RequestId { base: id.base, stream: id.stream }).to_string() == name {
            return event.destination_meta?.labels.remove("error");
        }
    }
}

pub(crate) async fn observe(tap: SocketAddr, request: ObserveRequest) -> Streaming<TapEvent> {
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
async fn a_session_sees_no_more_per_second_than_it_asked_for() {
    let (pair, app) = http_pair().await;
    let channel = Channel::from_shared(format!("http://{}", pair.shop.tap())).unwrap().connect().await.unwrap();
    let mut request =
        tonic::Request::new(ObserveRequest { limit: 100_000, r#match: Some(path_prefix("/")), extract: None });
    request.metadata_mut().insert("max-rps", "10".parse().unwrap());
    let mut events = TapClient::new(channel).observe(request).await.unwrap().into_inner();
    let mut client = H1::connect(pair.entry()).await;
    let start = std::time::Instant::now();
    for _ in 0..500 {
        assert_eq!(client.send(post_request("web", "/bytes/1", "x")).await.unwrap().status, 200);
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut seen = 0;
    while let Ok(Ok(Some(event))) = tokio::time::timeout(std::time::Duration::from_millis(500), events.message()).await
    {
        let Some(tap_event::Event::Http(http)) = event.event else { continue };
        seen += usize::from(matches!(http.event, Some(Event::RequestInit(_))));
    }
    assert!(seen >= 10 && (seen as f64) <= 10.0 * (seconds + 2.0), "{seen} of {} in {seconds} s", app.count());
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

const ONLY_FRIENDS: &str = r#"
apiVersion: policy.gossamer.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: only-friends, namespace: test }
spec: { service: web, from: [{ serviceAccounts: [{ name: friend }] }] }
"#;

/// Header, metric, access log and tap; and the object that has decided.
#[tokio::test]
async fn a_refusal_has_one_word_everywhere() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).set("access-log", "json").set("log-format", "json");
    let web = web.start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    mesh.apply("only-friends.yaml", ONLY_FRIENDS);
    eventually("the policy is known", || async {
        let status = H1::connect(shop.to(WEB)).await.send(post_request("web", "/other", "x")).await.ok()?.status;
        (status == 403).then_some(())
    })
    .await;
    // Not earlier: one that says nothing for a while may be taken for bytes, and policy would end it.
    let mut client = H1::connect(shop.to(WEB)).await;
    let before = web.metrics().await.sum("inbound_http_errors_total", &[("error", "denied")]);
    let served = app.count();
    let request = ObserveRequest { limit: 10, r#match: Some(path_prefix("/secret")), extract: Some(headers()) };
    let mut events = observe(web.tap(), request).await;
    let answer = client.send(post_request("web", "/secret", "x")).await.unwrap();
    assert_eq!((answer.status, answer.reason(), app.count()), (403, "denied", served), "{answer:?}");
    assert!(answer.header("l5d-proxy-error").contains("only-friends"), "{answer:?}");

    let (_, init) = next(&mut events).await;
    assert!(matches!(init, Event::RequestInit(_)), "{init:?}");
    let (event, init) = next(&mut events).await;
    let Event::ResponseInit(ResponseInit { http_status, headers, .. }) = init else { panic!("{init:?}") };
    let told = header(&headers, "l5d-proxy-error").unwrap_or_default();
    assert!(http_status == 403 && told.starts_with("denied"), "{http_status} {told:?}");
    let labels = event.destination_meta.unwrap_or_default().labels;
    assert_eq!(labels.get("error").map(String::as_str), Some("denied"), "for those who want no headers");

    let metrics = web.metrics().await;
    assert_eq!(metrics.sum("inbound_http_errors_total", &[("error", "denied")]), before + 1.0, "{}", metrics.text);
    eventually("the line of the access log", || async {
        let log = web.log();
        // Every line is JSON, those of the proxy itself as well.
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
        lines.filter(|line| line["path"] == "/secret").find(|line| line["reason"] == "denied" && line["status"] == 403)
    })
    .await;
}

/// What a proxy remembers of a request.
pub(crate) async fn explain(tap: SocketAddr, name: &str) -> Result<RequestStory, tonic::Status> {
    let channel = Channel::from_shared(format!("http://{tap}")).unwrap().connect().await.unwrap();
    let RequestId { base, stream } = name.parse().unwrap();
    RequestsClient::new(channel).explain(RequestName { base, stream }).await.map(tonic::Response::into_inner)
}

/// The id that the client got is explained by the proxy that gave it, afterwards, without a tap.
#[tokio::test]
async fn a_refused_request_is_explained_by_its_id() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    mesh.apply("only-friends.yaml", ONLY_FRIENDS);
    let answer = eventually("the policy is in force", || async {
        let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", "/secret?token=1", "x")).await.ok()?;
        (answer.status == 403).then_some(answer)
    })
    .await;
    let id = answer.header("gossamer-request");
    let story = eventually("the story", || async { explain(web.tap(), id).await.ok() }).await;
    assert_eq!((story.reason.as_str(), story.status, story.outbound), ("denied", 403, false), "{story:#?}");
    assert_eq!((story.method.as_str(), story.path.as_str()), ("POST", "/secret"), "{story:#?}");
    assert!(story.decided_by.contains("only-friends") && story.client_id.starts_with("shop.test."), "{story:#?}");
    assert!(!story.policy.is_empty() && story.authorization.is_empty() && story.unix_ms > 0, "{story:#?}");
    let error = explain(shop.tap(), id).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound, "another proxy has other requests");
}

/// From our side: nobody listens there, and each attempt is told.
#[tokio::test]
async fn a_failed_request_names_its_endpoint_and_each_attempt() {
    let mesh = Mesh::start().await;
    let shop = mesh.workload("shop").calls("127.0.0.1:9").start().await;
    let answer = H1::connect(shop.to("127.0.0.1:9")).await.send(post_request("gone", "/", "x")).await.unwrap();
    assert!(answer.status >= 502, "{answer:?}");
    let id = answer.header("gossamer-request");
    let story = eventually("the story", || async { explain(shop.tap(), id).await.ok() }).await;
    assert_eq!((story.reason, story.status, story.outbound), (answer.reason().into(), answer.status.into(), true));
    assert!(story.failed.iter().any(|one| one.endpoint == "127.0.0.1:9"), "{:?}", story.failed);
    assert!(story.total_us >= story.head_us && story.head_us > 0);
}

/// A tapped success can be looked up as well, by the id of its line; both proxies have their own.
#[tokio::test]
async fn a_tapped_request_is_explained_by_the_id_of_its_line() {
    let (pair, _) = http_pair().await;
    let request = ObserveRequest { limit: 10, r#match: Some(path_prefix("/bytes")), extract: None };
    let mut events = observe(pair.shop.tap(), request).await;
    let mut client = H1::connect(pair.entry()).await;
    client.send(post_request("web", "/bytes/7", "body")).await.unwrap();
    let (_, init) = next(&mut events).await;
    let Event::RequestInit(RequestInit { id: Some(id), .. }) = init else { panic!("{init:?}") };
    let name = RequestId { base: id.base, stream: id.stream }.to_string();
    let story = eventually("the story", || async { explain(pair.shop.tap(), &name).await.ok() }).await;
    assert_eq!((story.status, story.reason.as_str(), story.response_bytes), (200, "", 7), "{story:#?}");
    assert!(story.endpoint_id.starts_with("web.test.") && !story.endpoint.is_empty(), "{story:#?}");
    assert!(explain(pair.web.tap(), &name).await.is_err());
}
