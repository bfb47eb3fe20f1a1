//! What each target does with its bytes. Nothing may panic, overflow or loop; beyond that a few parsers must not depend on
//! how their input is cut.

mod http;

pub use http::{h1, h2};

use gossamer_api::kubernetes::parse_yaml;
use gossamer_api::policy::Timeouts;
use gossamer_api::process::tls::Anchors;
use gossamer_api::wire;
use gossamer_api::wire::mesh;
use gossamer_api::workload::{Identity, Workload};
use gossamer_engine::{RequestHead, ResponseHead, Version};
use gossamer_identity::token::JoinTokens;
use gossamer_proxy::balance::transport::Header;
use gossamer_proxy::detect::{detect, promising};
use gossamer_proxy::request::exchange::retry_after;
use gossamer_proxy::request::{asked, headers};
use linkerd2_proxy_api::{destination, inbound, outbound};
use prost::Message;

/// Protocol detection: ClientHello, preface, request line. More bytes never change a verdict.
pub fn hello(data: &[u8]) {
    // All beginnings of short inputs, some of long ones: the work is quadratic.
    let step = data.len() / 64 + 1;
    let mut verdict = None;
    for end in (0..data.len()).step_by(step).chain([data.len()]) {
        let now = detect(&data[..end]);
        if verdict.is_some() {
            assert_eq!(now, verdict, "{end} bytes");
        } else {
            promising(&data[..end]);
        }
        verdict = now;
    }
}

/// The opaque transport header. What was read can be written, and is then read as the same.
pub fn transport_header(data: &[u8]) {
    let mut bytes = bytes::BytesMut::from(data);
    if let Ok(Some(header)) = Header::decode(&mut bytes) {
        assert!(data.ends_with(&bytes), "what follows the header is left");
        let mut again = bytes::BytesMut::from(&header.encode()[..]);
        assert_eq!(Header::decode(&mut again).ok().flatten(), Some(header));
    }
}

/// A certificate signing request.
pub fn csr(data: &[u8]) {
    let identity = Identity::service_account("web", "demo", "gossamer", "cluster.local").expect("a valid name");
    let _ = gossamer_identity::csr::check(data, &identity);
}

/// Objects in YAML and JSON.
pub fn objects(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = parse_yaml(text);
    }
}

/// Messages of the control plane; the first byte says which. What is accepted can be told on.
pub fn policy(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 8 {
        0 => {
            let decoded = outbound::OutboundPolicy::decode(data).ok();
            if let Some(policy) = decoded.and_then(|policy| wire::outbound_policy_from_proto(policy).ok()) {
                let told = wire::outbound_policy_to_proto(&policy);
                assert!(wire::outbound_policy_from_proto(told).is_ok(), "{policy:?}");
            }
        }
        1 => {
            let decoded = inbound::Server::decode(data).ok();
            if let Some(server) = decoded.and_then(|server| wire::server_from_proto(server).ok()) {
                assert!(wire::server_from_proto(wire::server_to_proto(&server)).is_ok(), "{server:?}");
            }
        }
        2 => {
            let decoded = destination::Update::decode(data).ok();
            if let Some(update) = decoded.and_then(|update| wire::endpoint_update_from_proto(update).ok()) {
                let told = wire::endpoint_update_from_proto(wire::endpoint_update_to_proto(&update));
                assert_eq!(told.ok(), Some(update));
            }
        }
        3 => drop(outbound::TrafficSpec::decode(data).ok().map(wire::traffic_spec_from_proto)),
        4 => drop(inbound::PortSpec::decode(data).ok().map(wire::port_spec_from_proto)),
        5 => drop(mesh::WatchExtensions::decode(data).ok().map(wire::watch_extensions_from_proto)),
        6 => drop(mesh::ExtensionSet::decode(data).ok().map(wire::extensions_from_proto)),
        _ => {
            let text = String::from_utf8_lossy(data);
            let _ = (text.parse::<Identity>(), Identity::spiffe(&text), JoinTokens::new().read(&text));
            let _ = (Anchors::from_pem(&text), serde_json::from_str::<Workload>(&text));
        }
    }
}

/// Headers that only proxies are meant to send, and anybody can: one `name: value` each line.
pub fn mesh_headers(data: &[u8]) {
    let (mut request, mut response) = (RequestHead::default(), ResponseHead::new(503));
    request.version = Version::Http2;
    for line in data.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default().trim_ascii());
        request.headers.append(name, value);
        response.headers.append(name, value);
    }
    let mut asking = request.clone();
    headers::outbound(&mut asking);
    if let Some(asked) = asked::take(&mut asking.headers, None, Timeouts::default()) {
        assert!(!asking.headers.contains("l5d-timeout") && !asking.headers.contains("l5d-retry-limit"), "{asked:?}");
    }
    headers::inbound(&mut request, Some("web"));
    let clients: Vec<_> = request.headers.get_all("l5d-client-id").collect();
    assert_eq!(clients, [b"web"], "nobody says who he is by a header");
    let _ = (headers::upgrade(&request.headers), retry_after(&response));
    headers::response(&mut response);
}
