//! How targets are treated: what `OutboundPolicies` asks and streams.

mod grpc;
mod http;
mod parts;
mod tcp;

use self::grpc::*;
use self::http::*;
use self::parts::*;
use self::tcp::*;
use super::extension::{extension_name, failure_or_name, marker};
use super::route::*;
use super::{
    Decoded, InvalidMessage, Within, address_from_proto, address_to_proto, duration_from_proto, duration_to_proto,
    each, endpoint_from_proto, endpoint_to_proto, meta_from_proto, meta_to_proto, narrow, required,
};
use crate::defaults;
use crate::policy::{
    Backend, BackendTarget, Backoff, Breaker, Distribution, Filter, HttpRoute, HttpRoutes, HttpRule, Load, LoadPenalty,
    Meta, OutboundPolicy, OutboundProtocol, Queue, Refuse, Retry, RouteBackend, SuccessRate, Target, TcpRoute, TcpRule,
    Timeouts,
};
use linkerd2_proxy_api::http_route::Timeouts as TimeoutsProto;
use linkerd2_proxy_api::outbound::{self as proto, backend, failure_accrual, proxy_protocol, traffic_spec};
use linkerd2_proxy_api::{meta, opaque_route};
use std::time::Duration;

// ---- the question --------------------------------------------------------------------------------------------------

/// Asks how a workload's traffic to a target is treated. The workload is JSON, as everywhere in the API.
pub fn traffic_spec_to_proto(workload: &str, target: &Target) -> proto::TrafficSpec {
    let target = match target {
        Target::Addr(addr) => traffic_spec::Target::Addr(address_to_proto(*addr)),
        Target::Authority(name) => traffic_spec::Target::Authority(name.clone()),
    };
    proto::TrafficSpec { source_workload: workload.to_string(), target: Some(target) }
}

/// The workload (JSON) and what it wants to reach.
pub fn traffic_spec_from_proto(from: proto::TrafficSpec) -> Decoded<(String, Target)> {
    let target = match required(from.target, "target")? {
        traffic_spec::Target::Addr(addr) => Target::Addr(address_from_proto(addr).within("target.addr")?),
        traffic_spec::Target::Authority(name) if name.is_empty() => {
            return Err(InvalidMessage::missing("target.authority"));
        }
        traffic_spec::Target::Authority(name) => Target::Authority(name),
    };
    Ok((from.source_workload, target))
}

// ---- the answer ----------------------------------------------------------------------------------------------------

/// How a target is treated.
///
/// linkerd2-proxy takes one opaque route and one rule of a TCP or TLS route; more of them are not sent.
pub fn outbound_policy_to_proto(from: &OutboundPolicy) -> proto::OutboundPolicy {
    use proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
    let http1 = |http: &HttpRoutes| Http1 {
        routes: http.routes.iter().map(http_route_to_proto).collect(),
        failure_accrual: http.breaker.as_ref().map(breaker_to_proto),
    };
    let http2 = |http: &HttpRoutes| Http2 {
        routes: http.routes.iter().map(http_route_to_proto).collect(),
        failure_accrual: http.breaker.as_ref().map(breaker_to_proto),
    };
    let opaque = |routes: &[TcpRoute]| Opaque { routes: routes.iter().take(1).map(opaque_route_to_proto).collect() };
    let kind = match &from.protocol {
        OutboundProtocol::Detect { timeout, http1: one, http2: two, opaque: tcp } => Kind::Detect(Detect {
            timeout: Some(duration_to_proto(*timeout)),
            opaque: Some(opaque(tcp)),
            http1: Some(http1(one)),
            http2: Some(http2(two)),
        }),
        OutboundProtocol::Http1(http) => Kind::Http1(http1(http)),
        OutboundProtocol::Http2(http) => Kind::Http2(http2(http)),
        OutboundProtocol::Grpc(http) => Kind::Grpc(Grpc {
            routes: http.routes.iter().map(grpc_route_to_proto).collect(),
            failure_accrual: http.breaker.as_ref().map(breaker_to_proto),
        }),
        OutboundProtocol::Opaque(routes) => Kind::Opaque(opaque(routes)),
        OutboundProtocol::Tls(routes) => Kind::Tls(Tls { routes: routes.iter().map(tls_route_to_proto).collect() }),
    };
    proto::OutboundPolicy {
        protocol: Some(proto::ProxyProtocol { kind: Some(kind) }),
        metadata: Some(meta_to_proto(&from.meta)),
    }
}

/// How a target is treated.
pub fn outbound_policy_from_proto(from: proto::OutboundPolicy) -> Decoded<OutboundPolicy> {
    use proxy_protocol::Kind;
    let meta = meta_required(from.metadata)?;
    let protocol = match required(from.protocol.and_then(|protocol| protocol.kind), "protocol")? {
        Kind::Detect(detect) => {
            let http1 = required(detect.http1, "protocol.detect.http1")?;
            let http2 = required(detect.http2, "protocol.detect.http2")?;
            let opaque = required(detect.opaque, "protocol.detect.opaque")?;
            OutboundProtocol::Detect {
                timeout: duration_from_proto(detect.timeout, "protocol.detect.timeout")?
                    .unwrap_or(defaults::DETECT_PATIENCE),
                http1: http_routes(http1.routes, http1.failure_accrual).within("protocol.detect.http1")?,
                http2: http_routes(http2.routes, http2.failure_accrual).within("protocol.detect.http2")?,
                opaque: each(opaque.routes, "protocol.detect.opaque.routes", opaque_route_from_proto)?,
            }
        }
        Kind::Http1(http) => {
            OutboundProtocol::Http1(http_routes(http.routes, http.failure_accrual).within("protocol.http1")?)
        }
        Kind::Http2(http) => {
            OutboundProtocol::Http2(http_routes(http.routes, http.failure_accrual).within("protocol.http2")?)
        }
        Kind::Grpc(grpc) => OutboundProtocol::Grpc(HttpRoutes {
            routes: each(grpc.routes, "protocol.grpc.routes", grpc_route_from_proto)?,
            breaker: grpc
                .failure_accrual
                .map(breaker_from_proto)
                .transpose()
                .within("protocol.grpc.failure_accrual")?,
        }),
        Kind::Opaque(opaque) => {
            OutboundProtocol::Opaque(each(opaque.routes, "protocol.opaque.routes", opaque_route_from_proto)?)
        }
        Kind::Tls(tls) => OutboundProtocol::Tls(each(tls.routes, "protocol.tls.routes", tls_route_from_proto)?),
    };
    Ok(OutboundPolicy { meta, protocol })
}

fn meta_required(from: Option<meta::Metadata>) -> Decoded<Meta> {
    meta_from_proto(required(from, "metadata")?).within("metadata")
}

fn http_routes(routes: Vec<proto::HttpRoute>, accrual: Option<proto::FailureAccrual>) -> Decoded<HttpRoutes> {
    Ok(HttpRoutes {
        routes: each(routes, "routes", http_route_from_proto)?,
        breaker: breaker_or_none(accrual).within("failure_accrual")?,
    })
}

// ---- distributions -------------------------------------------------------------------------------------------------

// The four kinds of routes have four types that differ in name only.
macro_rules! distribution {
    ($module:ident, $backend:ty, $to_proto:ident, $from_proto:ident, $one_to_proto:path, $one_from_proto:path) => {
        fn $to_proto(from: &Distribution<$backend>, context: bool) -> proto::$module::Distribution {
            use proto::$module::{WeightedRouteBackend, distribution::*};
            let kind = match from {
                Distribution::First(all) if !all.is_empty() => Kind::FirstAvailable(FirstAvailable {
                    backends: all.iter().map(|backend| $one_to_proto(backend, context)).collect(),
                }),
                // Without any weight nothing may be forwarded (Gateway API), and linkerd2-proxy could not choose.
                Distribution::Random(all) if all.iter().any(|(_, weight)| *weight > 0) => {
                    let weighted = |(backend, weight): &($backend, u32)| WeightedRouteBackend {
                        backend: Some($one_to_proto(backend, context)),
                        weight: *weight,
                    };
                    Kind::RandomAvailable(RandomAvailable { backends: all.iter().map(weighted).collect() })
                }
                Distribution::Empty | Distribution::First(_) | Distribution::Random(_) => Kind::Empty(Empty {}),
            };
            proto::$module::Distribution { kind: Some(kind) }
        }

        fn $from_proto(from: Option<proto::$module::Distribution>) -> Decoded<Distribution<$backend>> {
            use proto::$module::distribution::Kind;
            Ok(match required(from.and_then(|distribution| distribution.kind), "backends")? {
                Kind::Empty(_) => Distribution::Empty,
                Kind::FirstAvailable(first) => {
                    Distribution::First(each(first.backends, "backends.first_available", $one_from_proto)?)
                }
                Kind::RandomAvailable(random) => {
                    let decode = |weighted: proto::$module::WeightedRouteBackend| {
                        Ok(($one_from_proto(required(weighted.backend, "backend")?)?, weighted.weight))
                    };
                    Distribution::Random(each(random.backends, "backends.random_available", decode)?)
                }
            })
        }
    };
}

distribution!(
    http_route,
    RouteBackend,
    http_backends_to_proto,
    http_backends_from_proto,
    http_backend_to_proto,
    http_backend_from_proto
);
distribution!(
    grpc_route,
    RouteBackend,
    grpc_backends_to_proto,
    grpc_backends_from_proto,
    grpc_backend_to_proto,
    grpc_backend_from_proto
);
distribution!(
    opaque_route,
    Backend,
    opaque_backends_to_proto,
    opaque_backends_from_proto,
    opaque_backend_to_proto,
    opaque_backend_from_proto
);
distribution!(
    tls_route,
    Backend,
    tls_backends_to_proto,
    tls_backends_from_proto,
    tls_backend_to_proto,
    tls_backend_from_proto
);
