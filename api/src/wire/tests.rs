//! Everything that the domain can say survives the wire, and nothing that arrives makes a panic or a permission.

use super::net::labels_of;
use super::*;
use crate::authorization::*;
use crate::endpoint::*;
use crate::policy::*;
use crate::workload::Identity;
use linkerd2_proxy_api::{destination, http_route, inbound, outbound};
use proptest::prelude::*;
use prost::Message;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

// ---- domain values in the form that the wire gives back -------------------------------------------------------------

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,6}[a-z0-9]"
}

fn time() -> impl Strategy<Value = Duration> {
    (0..100_000u64, 0..1_000_000_000u32).prop_map(|(s, n)| Duration::new(s, n))
}

fn meta() -> impl Strategy<Value = Meta> {
    prop_oneof![
        word().prop_map(Meta::Default),
        (word(), word(), word(), word(), "[a-z]{0,3}", any::<u16>()).prop_map(
            |(group, kind, namespace, name, section, port)| Meta::Resource {
                group,
                kind,
                namespace,
                name,
                section,
                port
            }
        ),
    ]
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map(word().prop_map(|k| format!("x-{k}")), word(), 0..3)
}

fn labels_for(meta: &Meta, labels: &Labels) -> Labels {
    labels_of(meta, labels).into_iter().collect()
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn identity() -> impl Strategy<Value = crate::workload::Identity> {
    (word(), word()).prop_map(|(a, b)| format!("{a}.{b}.mesh").parse().unwrap())
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let hint = prop_oneof![Just(ProtocolHint::Unknown), Just(ProtocolHint::Http2), Just(ProtocolHint::Opaque)];
    let spiffe = "spiffe://[a-z]{1,8}(/[a-zA-Z0-9]{1,8}){1,4}".prop_map(|id| Identity::spiffe(&id).unwrap());
    let proved = prop_oneof![identity(), spiffe];
    let tls = (proved, identity()).prop_map(|(identity, server_name)| ServerTls { identity, server_name });
    let window = || proptest::option::of(1..u32::MAX);
    let http2 = (window(), window(), proptest::option::of((time(), time())), any::<bool>()).prop_map(
        |(connection_window, stream_window, keep_alive, keep_alive_while_idle)| Http2Params {
            connection_window,
            stream_window,
            keep_alive,
            keep_alive_while_idle,
        },
    );
    let rest = (
        hint,
        proptest::option::of(1..u16::MAX),
        proptest::option::of(word()),
        http2,
        proptest::option::of(meta()),
        labels(),
    );
    (addr(), any::<u32>(), proptest::option::of(tls), rest).prop_map(
        |(addr, weight, tls, (hint, transport_port, authority_override, http2, meta, labels))| Endpoint {
            addr,
            weight,
            tls,
            hint,
            transport_port,
            authority_override,
            http2,
            meta,
            labels,
        },
    )
}

fn host() -> impl Strategy<Value = HostMatch> {
    prop_oneof![
        "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}".prop_map(HostMatch::Exact),
        "([a-z]{1,4}(\\.[a-z]{1,4}){0,2})?".prop_map(HostMatch::Suffix)
    ]
}

fn value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        "[ -~]{0,8}".prop_map(|v| ValueMatch::Exact(v.into_bytes())),
        "[a-z.*]{0,5}".prop_map(ValueMatch::Regex)
    ]
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    (word(), value()).prop_map(|(name, value)| HeaderMatch { name, value })
}

fn http_match() -> impl Strategy<Value = RequestMatch> {
    let path = prop_oneof![
        "/[a-z/]{0,8}".prop_map(PathMatch::Exact),
        "/[a-z/]{0,8}".prop_map(PathMatch::Prefix),
        "/[a-z.*]{0,8}".prop_map(PathMatch::Regex),
    ];
    let query = (word(), value()).prop_map(|(name, value)| QueryMatch { name, value });
    let method = prop_oneof![Just("GET".to_string()), Just("POST".to_string()), "[A-Z]{3,9}"];
    (
        proptest::option::of(path),
        proptest::collection::vec(header_match(), 0..2),
        proptest::collection::vec(query, 0..2),
        proptest::option::of(method),
    )
        .prop_map(|(path, headers, query, method)| RequestMatch { path, headers, query, method })
}

fn grpc_match() -> impl Strategy<Value = RequestMatch> {
    let rpc = ("[a-z.]{1,6}", "[A-Za-z]{0,5}").prop_map(|(service, method)| PathMatch::Rpc { service, method });
    (proptest::option::of(rpc), proptest::collection::vec(header_match(), 0..2))
        .prop_map(|(path, headers)| RequestMatch { path, headers, ..RequestMatch::default() })
}

fn edit() -> impl Strategy<Value = HeaderEdit> {
    let pairs = || proptest::collection::vec((word(), "[ -~]{0,8}".prop_map(String::into_bytes)), 0..3);
    (pairs(), pairs(), proptest::collection::vec(word(), 0..2)).prop_map(|(set, add, remove)| HeaderEdit {
        set,
        add,
        remove,
    })
}

fn failure(status: std::ops::Range<u16>) -> impl Strategy<Value = Filter> {
    (status, word(), 1..100u32, 0..100u32)
        .prop_map(|(status, message, d, n)| Filter::Fail(Failure { status, message, ratio: (n.min(d), d) }))
}

fn redirect() -> impl Strategy<Value = Filter> {
    let path = prop_oneof!["/[a-z]{0,4}".prop_map(PathModifier::Full), "/[a-z]{0,4}".prop_map(PathModifier::Prefix)];
    (
        proptest::option::of(prop_oneof![Just("http".to_string()), Just("https".to_string())]),
        proptest::option::of(word()),
        proptest::option::of(1..u16::MAX),
        proptest::option::of(path),
        300..309u16,
    )
        .prop_map(|(scheme, host, port, path, status)| Filter::Redirect(Redirect { scheme, host, port, path, status }))
}

fn http_filter() -> impl Strategy<Value = Filter> {
    prop_oneof![
        edit().prop_map(Filter::RequestHeaders),
        edit().prop_map(Filter::ResponseHeaders),
        redirect(),
        failure(100..600)
    ]
}

fn grpc_filter() -> impl Strategy<Value = Filter> {
    prop_oneof![edit().prop_map(Filter::RequestHeaders), failure(0..17)]
}

fn backend() -> impl Strategy<Value = Backend> {
    let penalty = (time(), time(), time()).prop_map(|(penalty, max_retry_after, decay)| LoadPenalty {
        penalty,
        max_retry_after,
        decay,
    });
    let load = (time(), time(), proptest::option::of(penalty)).prop_map(|(default_rtt, decay, penalty)| Load {
        default_rtt,
        decay,
        penalty,
    });
    let target = prop_oneof![
        1 => Just(BackendTarget::Invalid),
        2 => endpoint().prop_map(|endpoint| BackendTarget::Forward(Box::new(endpoint))),
        4 => (word(), load).prop_map(|(authority, load)| BackendTarget::Balance { authority, load }),
    ];
    (meta(), any::<u32>(), time(), target).prop_map(|(meta, capacity, failfast, target)| Backend {
        meta,
        queue: Queue { capacity, failfast },
        target,
    })
}

fn distribution<B: Clone + std::fmt::Debug + 'static>(
    backend: impl Strategy<Value = B> + Clone + 'static,
) -> impl Strategy<Value = Distribution<B>> {
    prop_oneof![
        Just(Distribution::Empty),
        proptest::collection::vec(backend.clone(), 1..3).prop_map(Distribution::First),
        proptest::collection::vec((backend, 1..u32::MAX), 1..3).prop_map(Distribution::Random),
    ]
}

fn backoff() -> impl Strategy<Value = Backoff> {
    (time(), time(), 0.0..100.0f32, any::<bool>()).prop_map(|(min, more, jitter, respect_retry_after)| Backoff {
        min,
        max: min + more + Duration::from_millis(1),
        jitter,
        respect_retry_after,
    })
}

fn breaker() -> impl Strategy<Value = Breaker> {
    let rate = (0.01..1.0f64, time(), 0..1_000_000u32).prop_map(|(threshold, window, min_requests)| SuccessRate {
        threshold,
        window: window + Duration::from_millis(10),
        min_requests,
    });
    (any::<u32>(), backoff(), proptest::option::of(rate), 1..9u32).prop_map(
        |(max_failures, backoff, success_rate, min_ready)| Breaker { max_failures, backoff, success_rate, min_ready },
    )
}

fn http_route(grpc: bool) -> impl Strategy<Value = HttpRoute> {
    let matched = if grpc { grpc_match().boxed() } else { http_match().boxed() };
    let filter = if grpc { grpc_filter().boxed() } else { http_filter().boxed() };
    let backend = (backend(), proptest::collection::vec(filter.clone(), 0..2))
        .prop_map(|(backend, filters)| RouteBackend { backend, filters });
    let maybe = || proptest::option::of(time());
    let timeouts =
        (maybe(), maybe(), maybe()).prop_map(|(request, response, idle)| Timeouts { request, response, idle });
    let retry = (0..60_000u32, any::<u32>(), proptest::option::of(backoff()), maybe(), 1..600u16, any::<u8>())
        .prop_map(move |(limit, max_body, backoff, timeout, status, codes)| Retry {
            limit,
            max_body: max_body as usize,
            statuses: if grpc { vec![] } else { vec![(status, 599)] },
            // HTTP routes carry them for clients that speak gRPC on them.
            grpc_codes: [1, 4, 8, 13, 14]
                .into_iter()
                .enumerate()
                .filter(|(n, _)| codes & (1 << n) != 0)
                .map(|x| x.1)
                .collect(),
            timeout,
            backoff,
        });
    let rule = (
        proptest::collection::vec(matched, 0..3),
        proptest::collection::vec(filter, 0..2),
        distribution(backend.boxed()),
        timeouts,
        proptest::option::of(retry),
        any::<bool>(),
    )
        .prop_map(|(matches, filters, backends, timeouts, retry, allow_l5d_request_headers)| HttpRule {
            matches,
            filters,
            backends,
            timeouts,
            retry,
            allow_l5d_request_headers,
        });
    (meta(), proptest::collection::vec(host(), 0..2), proptest::collection::vec(rule, 0..3))
        .prop_map(move |(meta, hosts, rules)| HttpRoute { meta, hosts, rules, grpc })
}

fn http_routes(grpc: bool) -> impl Strategy<Value = HttpRoutes> {
    (proptest::collection::vec(http_route(grpc), 0..3), proptest::option::of(breaker()))
        .prop_map(|(routes, breaker)| HttpRoutes { routes, breaker })
}

fn tcp_routes(tls: bool) -> impl Strategy<Value = Vec<TcpRoute>> {
    let refuse = prop_oneof![Just(Refuse::Forbidden), word().prop_map(Refuse::Invalid)];
    let rule = (distribution(backend().boxed()), proptest::option::of(refuse))
        .prop_map(|(backends, refuse)| TcpRule { backends, refuse });
    let snis = proptest::collection::vec(host(), 0..if tls { 3 } else { 1 });
    let route = (meta(), snis, rule).prop_map(|(meta, snis, rule)| TcpRoute { meta, snis, rules: vec![rule] });
    proptest::collection::vec(route, 0..if tls { 3 } else { 2 })
}

fn outbound_policy() -> impl Strategy<Value = OutboundPolicy> {
    let protocol = prop_oneof![
        (time(), http_routes(false), http_routes(false), tcp_routes(false))
            .prop_map(|(timeout, http1, http2, opaque)| OutboundProtocol::Detect { timeout, http1, http2, opaque }),
        http_routes(false).prop_map(OutboundProtocol::Http1),
        http_routes(false).prop_map(OutboundProtocol::Http2),
        http_routes(true).prop_map(OutboundProtocol::Grpc),
        tcp_routes(false).prop_map(OutboundProtocol::Opaque),
        tcp_routes(true).prop_map(OutboundProtocol::Tls),
    ];
    (meta(), protocol).prop_map(|(meta, protocol)| OutboundPolicy { meta, protocol })
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    (any::<IpAddr>(), 0..=32u8).prop_map(|(ip, len)| ipnet::IpNet::new(ip, len).unwrap())
}

fn authorization() -> impl Strategy<Value = Authorization> {
    let suffixes = proptest::collection::vec("(\\.[a-z]{1,3}){0,3}", 0..3);
    let authentication = prop_oneof![
        Just(Authentication::Unauthenticated),
        Just(Authentication::Tls),
        (proptest::collection::vec(word(), 0..3), suffixes)
            .prop_map(|(names, suffixes)| Authentication::Identities { names, suffixes }),
    ];
    let network = (net(), proptest::collection::vec(net(), 0..2)).prop_map(|(net, except)| Network { net, except });
    (meta(), proptest::collection::vec(network, 1..3), authentication, labels()).prop_map(
        |(meta, networks, authentication, labels)| Authorization {
            labels: labels_for(&meta, &labels),
            meta,
            networks,
            authentication,
        },
    )
}

fn inbound_http(grpc: bool) -> impl Strategy<Value = InboundHttp> {
    let matched = if grpc { grpc_match().boxed() } else { http_match().boxed() };
    let filter = if grpc {
        grpc_filter().boxed()
    } else {
        prop_oneof![edit().prop_map(Filter::RequestHeaders), redirect(), failure(100..600)].boxed()
    };
    let rule = (proptest::collection::vec(matched, 0..3), proptest::collection::vec(filter, 0..2))
        .prop_map(|(matches, filters)| InboundRule { matches, filters });
    let route = (
        meta(),
        proptest::collection::vec(host(), 0..2),
        proptest::collection::vec(authorization(), 0..2),
        proptest::collection::vec(rule, 0..3),
    )
        .prop_map(move |(meta, hosts, authorizations, rules)| InboundRoute {
            meta,
            hosts,
            authorizations,
            rules,
            grpc,
        });
    let rate = || proptest::option::of(1..u32::MAX);
    let overrides = proptest::collection::vec((proptest::collection::vec(word(), 0..3), 1..u32::MAX), 0..3);
    let limit = (proptest::option::of(meta()), rate(), rate(), overrides)
        .prop_map(|(meta, total, identity, overrides)| RateLimit { meta, total, identity, overrides });
    // The wire has no rate limit for gRPC.
    (proptest::collection::vec(route, 0..3), proptest::option::of(limit))
        .prop_map(move |(routes, limit)| InboundHttp { routes, rate_limit: limit.filter(|_| !grpc) })
}

fn server() -> impl Strategy<Value = Server> {
    let protocol = prop_oneof![
        (time(), inbound_http(false)).prop_map(|(timeout, http)| InboundProtocol::Detect { timeout, http }),
        inbound_http(false).prop_map(InboundProtocol::Http1),
        inbound_http(false).prop_map(InboundProtocol::Http2),
        inbound_http(true).prop_map(InboundProtocol::Grpc),
        Just(InboundProtocol::Opaque),
        Just(InboundProtocol::Tls),
    ];
    (
        meta(),
        protocol,
        proptest::collection::vec(any::<IpAddr>(), 0..3),
        proptest::collection::vec(authorization(), 0..3),
        labels(),
    )
        .prop_map(|(meta, protocol, ips, authorizations, labels)| Server {
            labels: labels_for(&meta, &labels),
            meta,
            protocol,
            ips,
            authorizations,
        })
}

fn update() -> impl Strategy<Value = EndpointUpdate> {
    prop_oneof![
        (proptest::collection::vec(endpoint(), 0..4), labels()).prop_map(|(all, set)| EndpointUpdate::Add(all, set)),
        proptest::collection::vec(addr(), 0..4).prop_map(EndpointUpdate::Remove),
        any::<bool>().prop_map(|exists| EndpointUpdate::Empty { exists }),
    ]
}

/// Through bytes, as on a connection.
fn sent<M: Message + Default>(message: M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

/// The message with one byte changed, if it is still a message.
fn damaged<M: Message + Default>(message: M, at: usize, byte: u8) -> Option<M> {
    let mut bytes = message.encode_to_vec();
    let len = bytes.len();
    *bytes.get_mut(at % len.max(1))? = byte;
    M::decode(bytes.as_slice()).ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn an_outbound_policy_survives_the_wire(policy in outbound_policy()) {
        prop_assert_eq!(outbound_policy_from_proto(sent(outbound_policy_to_proto(&policy))), Ok(policy));
    }

    #[test]
    fn a_server_survives_the_wire(server in server()) {
        prop_assert_eq!(server_from_proto(sent(server_to_proto(&server))), Ok(server));
    }

    #[test]
    fn an_endpoint_update_survives_the_wire(update in update()) {
        prop_assert_eq!(endpoint_update_from_proto(sent(endpoint_update_to_proto(&update))), Ok(update));
    }

    #[test]
    fn questions_survive_the_wire(addr in addr(), name in word(), port in 1..u16::MAX) {
        for target in [Target::Addr(addr), Target::Authority(name.clone())] {
            let spec = sent(traffic_spec_to_proto("{}", &target));
            prop_assert_eq!(traffic_spec_from_proto(spec), Ok(("{}".to_string(), target)));
        }
        prop_assert_eq!(port_spec_from_proto(sent(port_spec_to_proto("{}", port))), Ok(("{}".to_string(), port)));
    }

    #[test]
    fn damaged_messages_never_panic(policy in outbound_policy(), server in server(), at in any::<usize>(), byte in any::<u8>()) {
        if let Some(message) = damaged(outbound_policy_to_proto(&policy), at, byte) {
            let _ = outbound_policy_from_proto(message);
        }
        if let Some(message) = damaged(server_to_proto(&server), at, byte) {
            let _ = server_from_proto(message);
        }
    }
}

// ---- what differs on purpose ----------------------------------------------------------------------------------------

fn allow_everyone() -> Authorization {
    let meta = Meta::named("all");
    Authorization {
        labels: labels_for(&meta, &Labels::new()),
        meta,
        networks: vec![Network { net: "0.0.0.0/0".parse().unwrap(), except: vec![] }],
        authentication: Authentication::Unauthenticated,
    }
}

fn open_server() -> Server {
    let meta = Meta::named("all-unauthenticated");
    Server {
        labels: labels_for(&meta, &Labels::new()),
        meta,
        protocol: InboundProtocol::Opaque,
        ips: vec![],
        authorizations: vec![allow_everyone()],
    }
}

#[test]
fn an_unknown_authentication_is_no_permission() {
    let mut message = server_to_proto(&open_server());
    message.authorizations[0].authentication = Some(inbound::Authn { permit: None });
    let error = server_from_proto(message).unwrap_err();
    assert_eq!(error.field, "authorizations[0].authentication");

    let mut message = server_to_proto(&open_server());
    let clients = inbound::authn::PermitMeshTls { clients: None };
    message.authorizations[0].authentication =
        Some(inbound::Authn { permit: Some(inbound::authn::Permit::MeshTls(clients)) });
    assert_eq!(server_from_proto(message).unwrap_err().field, "authorizations[0].authentication.mesh_tls.clients");
}

#[test]
fn an_authorization_without_networks_is_not_sent() {
    let mut server = open_server();
    server.authorizations[0].networks.clear();
    assert!(server_to_proto(&server).authorizations.is_empty());
}

#[test]
fn labels_of_older_control_planes_are_understood() {
    let mut message = server_to_proto(&open_server());
    message.labels = [("name".to_string(), "default:deny".to_string())].into();
    assert_eq!(server_from_proto(message.clone()).unwrap().meta, Meta::named("deny"));
    message.labels = [("name".to_string(), "web".to_string())].into();
    assert_eq!(server_from_proto(message).unwrap().meta.to_string(), "server//web");
}

fn one_rule(rule: HttpRule, grpc: bool) -> HttpRoute {
    HttpRoute { meta: Meta::named("r"), hosts: vec![], rules: vec![rule], grpc }
}

fn policy(protocol: OutboundProtocol) -> OutboundPolicy {
    OutboundPolicy { meta: Meta::service("demo", "web", 80), protocol }
}

fn routes(route: HttpRoute) -> HttpRoutes {
    HttpRoutes { routes: vec![route], breaker: None }
}

#[test]
fn an_unknown_filter_fails_its_requests_and_nothing_else() {
    let rule = HttpRule { filters: vec![Filter::Redirect(Redirect::default())], ..HttpRule::default() };
    let mut message = outbound_policy_to_proto(&policy(OutboundProtocol::Http1(routes(one_rule(rule, false)))));
    let Some(outbound::proxy_protocol::Kind::Http1(http)) = message.protocol.as_mut().unwrap().kind.as_mut() else {
        panic!("not HTTP/1");
    };
    http.routes[0].rules[0].filters[0].kind = None;
    let decoded = outbound_policy_from_proto(message).unwrap();
    let OutboundProtocol::Http1(http) = decoded.protocol else { panic!("not HTTP/1") };
    assert!(matches!(&http.routes[0].rules[0].filters[0], Filter::Fail(failure) if failure.status == 500));
}

#[test]
fn an_unknown_match_is_an_error_that_says_where() {
    let rule = HttpRule {
        matches: vec![RequestMatch { path: Some(PathMatch::Exact("/".into())), ..RequestMatch::default() }],
        ..HttpRule::default()
    };
    let mut message = outbound_policy_to_proto(&policy(OutboundProtocol::Http2(routes(one_rule(rule, false)))));
    let Some(outbound::proxy_protocol::Kind::Http2(http)) = message.protocol.as_mut().unwrap().kind.as_mut() else {
        panic!("not HTTP/2");
    };
    http.routes[0].rules[0].matches[0].path = Some(http_route::PathMatch { kind: None });
    let error = outbound_policy_from_proto(message).unwrap_err();
    assert_eq!(error.field, "protocol.http2.routes[0].rules[0].matches[0].path");
}

#[test]
fn a_grpc_route_among_http_routes_matches_the_same_requests() {
    let rpc = |service: &str, method: &str| RequestMatch {
        path: Some(PathMatch::Rpc { service: service.into(), method: method.into() }),
        ..RequestMatch::default()
    };
    let rule = HttpRule {
        matches: vec![rpc("a.B", "C"), rpc("a.B", ""), rpc("", "C"), rpc("", "")],
        filters: vec![Filter::Fail(Failure { status: 14, message: String::new(), ratio: (1, 1) })],
        ..HttpRule::default()
    };
    let sent = outbound_policy_to_proto(&policy(OutboundProtocol::Http2(routes(one_rule(rule, true)))));
    let OutboundProtocol::Http2(http) = outbound_policy_from_proto(sent).unwrap().protocol else { panic!() };
    let rule = &http.routes[0].rules[0];
    let paths: Vec<_> = rule.matches.iter().map(|m| m.path.clone()).collect();
    assert_eq!(
        paths,
        [
            Some(PathMatch::Exact("/a.B/C".into())),
            Some(PathMatch::Prefix("/a.B".into())),
            Some(PathMatch::Regex("/[^/]+/C".into())),
            None
        ]
    );
    assert!(matches!(&rule.filters[0], Filter::Fail(failure) if failure.status == 503));
}

#[test]
fn a_match_that_grpc_cannot_say_takes_its_rule_along() {
    let get = RequestMatch { method: Some("GET".into()), ..RequestMatch::default() };
    let rule = HttpRule { matches: vec![get], ..HttpRule::default() };
    let sent = outbound_policy_to_proto(&policy(OutboundProtocol::Grpc(routes(one_rule(rule, false)))));
    let OutboundProtocol::Grpc(http) = outbound_policy_from_proto(sent).unwrap().protocol else { panic!() };
    assert!(http.routes[0].rules.is_empty());
}

#[test]
fn a_redirect_without_status_is_302_from_us_and_301_from_the_wire() {
    let message = route::redirect_to_proto(&Redirect::default());
    assert_eq!(message.status, 302);
    assert_eq!(route::redirect_from_proto(http_route::RequestRedirect::default()).unwrap().status, 301);
}

#[test]
fn header_values_cannot_smuggle_a_line() {
    let headers = linkerd2_proxy_api::http_types::Headers {
        headers: vec![linkerd2_proxy_api::http_types::headers::Header {
            name: "a".into(),
            value: b"b\r\nc: d".to_vec(),
        }],
    };
    assert_eq!(route::edit_from_proto(None, Some(headers), vec![]).unwrap_err().field, "set[0].value");
}

#[test]
fn weights_of_nothing_go_nowhere() {
    let backend = Backend {
        meta: Meta::named("b"),
        queue: Queue { capacity: 1, failfast: Duration::ZERO },
        target: BackendTarget::Invalid,
    };
    let rule = TcpRule { backends: Distribution::Random(vec![(backend, 0)]), refuse: None };
    let route = TcpRoute { meta: Meta::named("r"), snis: vec![], rules: vec![rule] };
    let sent = outbound_policy_to_proto(&policy(OutboundProtocol::Opaque(vec![route])));
    let OutboundProtocol::Opaque(routes) = outbound_policy_from_proto(sent).unwrap().protocol else { panic!() };
    assert_eq!(routes[0].rules[0].backends, Distribution::Empty);
}

#[test]
fn a_spiffe_id_is_what_is_demanded_and_needs_a_name_to_be_sent() {
    use destination::tls_identity::{DnsLikeIdentity, Strategy, UriLikeIdentity};
    let uri = Strategy::UriLikeIdentity(UriLikeIdentity { uri: "spiffe://root/vm".into() });
    let mut message = endpoint_to_proto(&Endpoint::new(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 80)));
    message.tls_identity = Some(destination::TlsIdentity { strategy: Some(uri.clone()), server_name: None });
    let set = destination::WeightedAddrSet { addrs: vec![message.clone()], metric_labels: Default::default() };
    let update = destination::Update { update: Some(destination::update::Update::Add(set)) };
    // Left out rather than spoken to in the clear.
    assert_eq!(endpoint_update_from_proto(update), Ok(EndpointUpdate::Add(vec![], Labels::new())));

    let server_name = Some(DnsLikeIdentity { name: "vm.mesh".into() });
    message.tls_identity = Some(destination::TlsIdentity { strategy: Some(uri), server_name: server_name.clone() });
    let tls = endpoint_from_proto(message.clone()).unwrap().tls.unwrap();
    assert_eq!((tls.identity.as_str(), tls.server_name.as_str()), ("spiffe://root/vm", "vm.mesh"));

    let uri = Strategy::UriLikeIdentity(UriLikeIdentity { uri: "https://root/vm".into() });
    message.tls_identity = Some(destination::TlsIdentity { strategy: Some(uri), server_name });
    assert_eq!(endpoint_from_proto(message).unwrap_err().field, "tls_identity.uri_like_identity");
}

#[test]
fn numbers_that_linkerd_would_refuse_are_brought_into_range() {
    let breaker = Breaker {
        max_failures: 7,
        backoff: Backoff { min: Duration::ZERO, max: Duration::ZERO, jitter: f32::NAN, respect_retry_after: false },
        success_rate: Some(SuccessRate { threshold: 7.0, window: Duration::ZERO, min_requests: u32::MAX }),
        min_ready: 1,
    };
    let http = HttpRoutes { routes: vec![], breaker: Some(breaker) };
    let sent = outbound_policy_to_proto(&policy(OutboundProtocol::Http1(http)));
    let OutboundProtocol::Http1(http) = outbound_policy_from_proto(sent).unwrap().protocol else { panic!() };
    let breaker = http.breaker.unwrap();
    assert_eq!(breaker.backoff.max, Duration::from_millis(1));
    assert_eq!(breaker.backoff.jitter, 0.0);
    let rate = breaker.success_rate.unwrap();
    assert_eq!((rate.threshold, rate.window, rate.min_requests), (1.0, Duration::from_millis(10), 1_000_000));
}
