//! Who sees which requests, and what is bounded.

use super::matcher::Invalid;
use super::*;
use api::observe_request::r#match as wire;
use gossamer_api::workload::Identity;
use proptest::prelude::*;
use prost::Message;
use tokio_stream::StreamExt;

fn taps() -> Taps {
    Taps::new(Arc::default())
}

fn head(method: &str, path: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.method = method.parse().unwrap();
    head.set_authority("web:80");
    head.set_path(path);
    head.headers.append("x-a", "1");
    head
}

fn observed(head: &RequestHead) -> Observed<'_> {
    Observed {
        head,
        direction: Direction::Outbound,
        source: "10.0.0.1:4000".parse().unwrap(),
        source_tls: TlsLabel::None("loopback"),
        destination: Some("10.1.0.1:80".parse().unwrap()),
        destination_tls: TlsLabel::Disabled,
        destination_labels: None,
        route_labels: None,
    }
}

fn is(condition: wire::Match) -> api::observe_request::Match {
    api::observe_request::Match { r#match: Some(condition) }
}

fn everything() -> api::observe_request::Match {
    is(wire::Match::All(wire::Seq::default()))
}

fn http(condition: wire::http::Match) -> api::observe_request::Match {
    is(wire::Match::Http(wire::Http { r#match: Some(condition) }))
}

fn path(condition: wire::http::string_match::Match) -> api::observe_request::Match {
    http(wire::http::Match::Path(wire::http::StringMatch { r#match: Some(condition) }))
}

fn tcp(condition: wire::tcp::Match) -> wire::Tcp {
    wire::Tcp { r#match: Some(condition) }
}

fn net(net: &str) -> wire::Tcp {
    let net: ipnet::IpNet = net.parse().unwrap();
    tcp(wire::tcp::Match::Netmask(wire::tcp::Netmask { ip: Some(net.addr().into()), mask: net.prefix_len().into() }))
}

fn ports(min: u32, max: u32) -> wire::Tcp {
    tcp(wire::tcp::Match::Ports(wire::tcp::PortRange { min, max }))
}

fn label(key: &str, value: &str) -> wire::Label {
    wire::Label { key: key.into(), value: value.into() }
}

fn extract_headers() -> Option<api::observe_request::Extract> {
    use api::observe_request::{Extract, extract};
    let headers = extract::http::Extract::Headers(extract::http::Headers {});
    Some(Extract { extract: Some(extract::Extract::Http(extract::Http { extract: Some(headers) })) })
}

/// A request of a client on this host.
fn local(request: api::ObserveRequest) -> Request<api::ObserveRequest> {
    from("127.0.0.1:1", request)
}

fn from(address: &str, request: api::ObserveRequest) -> Request<api::ObserveRequest> {
    let mut request = Request::new(request);
    request.extensions_mut().insert(PeerIdentity { identity: None, address: Some(address.parse().unwrap()) });
    request
}

async fn observe(taps: &Taps, request: api::ObserveRequest) -> Result<Events, Status> {
    TapService(taps.clone()).observe(local(request)).await.map(Response::into_inner)
}

async fn observe_everything(taps: &Taps, limit: u32) -> Events {
    let request = api::ObserveRequest { limit, r#match: Some(everything()), extract: None };
    observe(taps, request).await.unwrap()
}

fn event(event: Option<Result<api::TapEvent, Status>>) -> (api::TapEvent, Event) {
    let event = event.unwrap().unwrap();
    let Some(api::tap_event::Event::Http(http)) = event.event.clone() else { panic!("{event:?}") };
    (event, http.event.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_request_is_told_from_beginning_to_end() {
    let taps = taps();
    let request = api::ObserveRequest { limit: 9, r#match: Some(everything()), extract: extract_headers() };
    let mut events = observe(&taps, request).await.unwrap();
    let now = Instant::now();
    let id: Identity = "web.demo".parse().unwrap();
    let dst = Labels::from([("pod".to_string(), "web-1".to_string())]);
    let mut head = head("POST", "/a?secret");
    head.version = Version::Http2;
    let mut tapped = taps
        .request(
            &Observed {
                destination_tls: TlsLabel::Mesh(Some(&id)),
                destination_labels: Some(&dst),
                route_labels: Some(&dst),
                ..observed(&head)
            },
            now,
        )
        .unwrap();
    let mut response = ResponseHead::new(201);
    response.headers.append("x-b", "2");
    tapped.response(&response, now + Duration::from_millis(5));
    let mut trailers = Headers::new();
    trailers.append("grpc-status", "7");
    tapped.end(End::Grpc(7), 42, Some(&trailers), now + Duration::from_millis(9));

    let (base, init) = event(events.next().await);
    let Event::RequestInit(init) = init else { panic!("{init:?}") };
    assert_eq!((init.path.as_str(), init.authority.as_str()), ("/a", "web:80"));
    let shown: Vec<_> = init.headers.unwrap().headers.into_iter().map(|header| header.name).collect();
    assert_eq!(shown, [":method", ":scheme", ":authority", ":path", "x-a"]);
    let labels = base.destination_meta.unwrap().labels;
    assert_eq!(
        (labels["pod"].as_str(), labels["tls"].as_str(), labels["server_id"].as_str()),
        ("web-1", "true", "web.demo")
    );
    assert_eq!(base.source_meta.unwrap().labels["tls"], "loopback");
    assert_eq!(base.route_meta.unwrap().labels["pod"], "web-1");
    assert_eq!(base.proxy_direction, i32::from(api::tap_event::ProxyDirection::Outbound));

    let Event::ResponseInit(init) = event(events.next().await).1 else { panic!() };
    assert_eq!((init.http_status, init.since_request_init.unwrap().nanos), (201, 5_000_000));
    assert_eq!(init.headers.unwrap().headers[0].name, "x-b");
    let Event::ResponseEnd(end) = event(events.next().await).1 else { panic!() };
    assert_eq!((end.response_bytes, end.since_response_init.unwrap().nanos), (42, 4_000_000));
    assert_eq!(end.eos.unwrap().end, Some(api::eos::End::GrpcStatusCode(7)));
    assert_eq!(end.trailers.unwrap().headers[0].value, b"7");
}

#[tokio::test(start_paused = true)]
async fn without_a_session_nothing_is_watched_and_a_session_ends_with_its_stream() {
    let taps = taps();
    let head = head("GET", "/");
    assert!(!taps.is_active() && taps.request(&observed(&head), Instant::now()).is_none());
    let events = observe_everything(&taps, 1).await;
    assert!(taps.is_active());
    drop(events);
    assert!(!taps.is_active());
}

#[tokio::test(start_paused = true)]
async fn after_its_limit_a_session_ends_when_what_it_watches_has_ended() {
    let taps = taps();
    let mut events = observe_everything(&taps, 2).await;
    let head = head("GET", "/");
    let now = Instant::now();
    let first = taps.request(&observed(&head), now).unwrap();
    let second = taps.request(&observed(&head), now).unwrap();
    assert!(taps.request(&observed(&head), now).is_none() && !taps.is_active());
    first.end(End::Complete, 0, None, now);
    drop(second);
    let mut told = Vec::new();
    while let Some(next) = events.next().await {
        told.push(event(Some(next)).1);
    }
    assert_eq!(told.len(), 4);
    let Event::ResponseEnd(end) = &told[3] else { panic!() };
    assert_eq!(end.eos.unwrap().end, Some(api::eos::End::ResetErrorCode(CANCEL)), "given up");
}

#[tokio::test(start_paused = true)]
async fn a_session_sees_so_many_requests_per_second() {
    let taps = taps();
    let mut request = local(api::ObserveRequest { limit: u32::MAX, r#match: Some(everything()), extract: None });
    request.metadata_mut().insert(MAX_RPS, "5".parse().unwrap());
    let _events = TapService(taps.clone()).observe(request).await.unwrap();
    let head = head("GET", "/");
    let seen = |now| (0..50).filter(|_| taps.request(&observed(&head), now).is_some()).count();
    assert_eq!(seen(Instant::now()), 5);
    assert_eq!(seen(Instant::now() + Duration::from_secs(1)), 5);
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_stands_still_loses_events_not_requests() {
    let dropped = Arc::new(Counter::default());
    let taps = Taps::new(dropped.clone());
    let mut request = local(api::ObserveRequest { limit: u32::MAX, r#match: Some(everything()), extract: None });
    request.metadata_mut().insert(MAX_RPS, "1000000".parse().unwrap());
    let _events = TapService(taps.clone()).observe(request).await.unwrap();
    let head = head("GET", "/");
    let tapped: Vec<_> = (0..TAP_QUEUE + 10).map(|_| taps.request(&observed(&head), Instant::now())).collect();
    assert_eq!(tapped.iter().flatten().count(), TAP_QUEUE);
    assert_eq!(dropped.get(), 10);
}

#[tokio::test(start_paused = true)]
async fn bad_and_too_many_sessions_are_refused() {
    let taps = taps();
    let refused = |request| async { observe(&taps, request).await.err().unwrap().code() };
    assert_eq!(refused(api::ObserveRequest::default()).await, tonic::Code::InvalidArgument);
    let no_match = api::ObserveRequest { limit: 1, r#match: None, extract: None };
    assert_eq!(refused(no_match).await, tonic::Code::InvalidArgument);
    let mut held = Vec::new();
    for _ in 0..TAP_SESSIONS {
        held.push(observe_everything(&taps, 1).await);
    }
    let one_more = api::ObserveRequest { limit: 1, r#match: Some(everything()), extract: None };
    assert_eq!(refused(one_more.clone()).await, tonic::Code::ResourceExhausted);
    held.pop();
    assert!(observe(&taps, one_more).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn only_this_host_may_tap() {
    let service = TapService(taps());
    let request = api::ObserveRequest { limit: 1, r#match: Some(everything()), extract: None };
    for (address, expect) in
        [("127.0.0.1:1", true), ("[::1]:1", true), ("[::ffff:127.0.0.1]:1", true), ("10.0.0.1:1", false)]
    {
        assert_eq!(service.observe(from(address, request.clone())).await.is_ok(), expect, "{address}");
    }
    assert!(service.observe(Request::new(request)).await.is_err(), "an unknown client");
}

#[test]
fn header_fields_are_bounded() {
    let mut headers = Headers::new();
    headers.append("big", vec![b'x'; HEADER_BYTES]);
    headers.append("small", "1");
    let shown = fields([].iter(), &headers).headers;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].name, "small");
}

#[test]
fn requests_are_matched() {
    use wire::Match::*;
    use wire::http::string_match::Match::{Exact, Prefix};
    let head = head("GET", "/api/a?q");
    let labels = Labels::from([("pod".to_string(), "web-1".to_string())]);
    let request = Observed { destination_labels: Some(&labels), ..observed(&head) };
    let not = |m| is(Not(Box::new(m)));
    let seq = |matches| wire::Seq { matches };
    let method = |method: http::Method| http_types::HttpMethod::from(method);
    for (wanted, expect) in [
        (everything(), true),
        (is(Any(seq(vec![]))), false),
        (not(everything()), false),
        (is(Any(seq(vec![not(everything()), everything()]))), true),
        (is(All(seq(vec![not(everything()), everything()]))), false),
        (path(Exact("/api/a".into())), true),
        (path(Exact("/api".into())), false),
        (path(Prefix("/api".into())), true),
        (http(wire::http::Match::Method(method(http::Method::GET))), true),
        (http(wire::http::Match::Method(method(http::Method::POST))), false),
        (http(wire::http::Match::Scheme("http".into())), true),
        (http(wire::http::Match::Scheme("https".into())), false),
        (http(wire::http::Match::Authority(wire::http::StringMatch { r#match: Some(Exact("web:80".into())) })), true),
        (is(Source(net("10.0.0.0/24"))), true),
        (is(Source(net("10.1.0.0/24"))), false),
        (is(Destination(net("10.1.0.1/32"))), true),
        (is(Source(net("fd00::/8"))), false),
        (is(Destination(ports(80, 0))), true),
        (is(Destination(ports(0, 80))), true),
        (is(Destination(ports(81, 90))), false),
        (is(Source(ports(4000, 4001))), true),
        (is(DestinationLabel(label("pod", "web-1"))), true),
        (is(DestinationLabel(label("pod", "web"))), false),
        (is(RouteLabel(label("pod", "web-1"))), false),
    ] {
        assert_eq!(Match::new(Some(wanted.clone())).unwrap().matches(&request), expect, "{wanted:?}");
    }
}

#[test]
fn bad_matches_say_why() {
    use wire::Match::*;
    let wide = wire::Seq { matches: vec![everything(); 300] };
    for (wanted, why) in [
        (api::observe_request::Match::default(), Invalid::Empty),
        (is(Source(wire::Tcp::default())), Invalid::Empty),
        (is(Source(ports(0, 0))), Invalid::Port),
        (is(Source(ports(2, 1))), Invalid::Port),
        (is(Source(ports(1, 70_000))), Invalid::Port),
        (is(Source(net("10.0.0.0/0"))), Invalid::Network),
        (is(DestinationLabel(label("", "x"))), Invalid::Empty),
        (http(wire::http::Match::Scheme(http_types::Scheme::default())), Invalid::Empty),
        (is(Any(wide)), Invalid::TooMany),
    ] {
        assert_eq!(Match::new(Some(wanted)).unwrap_err(), why);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_match_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = api::ObserveRequest::decode(&bytes[..]) {
            let head = head("GET", "/");
            let _ = Match::new(request.r#match).map(|wanted| wanted.matches(&observed(&head)));
        }
    }
}
