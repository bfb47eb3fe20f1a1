//! What each target does with its bytes. Nothing may panic, overflow or loop; beyond that a few parsers must not depend on
//! how their input is cut.

mod http;

pub use http::{h1, h2};

use gossamer_api::kubernetes::parse_yaml;
use gossamer_api::wire;
use gossamer_api::workload::Identity;
use gossamer_proxy::balance::transport::Header;
use gossamer_proxy::detect::{detect, promising};
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
    match kind % 4 {
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
        2 => drop(destination::Update::decode(data).ok().map(wire::endpoint_update_from_proto)),
        _ => drop(outbound::TrafficSpec::decode(data).ok().map(wire::traffic_spec_from_proto)),
    }
}
