//! Who may use a port: what `InboundServerPolicies` asks and streams.

use super::net::{ip_from_proto, labels_of, meta_of, network_from_proto};
use super::route::*;
use super::{
    Decoded, InvalidMessage, Within, duration_from_proto, duration_to_proto, each, meta_from_proto, meta_to_proto,
    narrow, required,
};
use crate::authorization::{
    Authentication, Authorization, InboundHttp, InboundProtocol, InboundRoute, InboundRule, Network, RateLimit, Server,
};
use crate::defaults;
use crate::endpoint::Labels;
use crate::policy::Filter;
use linkerd2_proxy_api::inbound::{self as proto, authn, http_local_rate_limit, proxy_protocol};

// ---- the question --------------------------------------------------------------------------------------------------

/// Asks for the policy of a workload's port. The workload is JSON, as everywhere in the API.
pub fn port_spec_to_proto(workload: &str, port: u16) -> proto::PortSpec {
    proto::PortSpec { workload: workload.to_string(), port: u32::from(port) }
}

/// The workload (JSON) and its port.
pub fn port_spec_from_proto(from: proto::PortSpec) -> Decoded<(String, u16)> {
    match narrow(from.port, "port")? {
        0 => Err(InvalidMessage::missing("port")),
        port => Ok((from.workload, port)),
    }
}

// ---- the answer ----------------------------------------------------------------------------------------------------

/// Who may use a port.
///
/// The wire has no rate limit for gRPC, and an authorization without networks, which lets nobody in, is not sent:
/// linkerd2-proxy would refuse the whole server.
pub fn server_to_proto(from: &Server) -> proto::Server {
    use proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
    let routes = |http: &InboundHttp| http.routes.iter().map(http_route_to_proto).collect();
    let limit = |http: &InboundHttp| http.rate_limit.as_ref().map(rate_limit_to_proto);
    let kind = match &from.protocol {
        InboundProtocol::Detect { timeout, http } => Kind::Detect(Detect {
            timeout: Some(duration_to_proto(*timeout)),
            http_routes: routes(http),
            http_local_rate_limit: limit(http),
        }),
        InboundProtocol::Http1(http) => Kind::Http1(Http1 { routes: routes(http), local_rate_limit: limit(http) }),
        InboundProtocol::Http2(http) => Kind::Http2(Http2 { routes: routes(http), local_rate_limit: limit(http) }),
        InboundProtocol::Grpc(http) => {
            Kind::Grpc(Grpc { routes: http.routes.iter().map(grpc_route_to_proto).collect() })
        }
        InboundProtocol::Opaque => Kind::Opaque(Opaque {}),
        InboundProtocol::Tls => Kind::Tls(Tls {}),
    };
    proto::Server {
        protocol: Some(proto::ProxyProtocol { kind: Some(kind) }),
        server_ips: from.ips.iter().map(|ip| (*ip).into()).collect(),
        authorizations: authorizations_to_proto(&from.authorizations),
        labels: labels_of(&from.meta, &from.labels),
    }
}

/// Who may use a port.
pub fn server_from_proto(from: proto::Server) -> Decoded<Server> {
    use proxy_protocol::Kind;
    let http = |routes, limit: Option<proto::HttpLocalRateLimit>| -> Decoded<InboundHttp> {
        Ok(InboundHttp {
            routes: each(routes, "routes", http_route_from_proto)?,
            rate_limit: limit.map(rate_limit_from_proto).transpose().within("local_rate_limit")?,
        })
    };
    let protocol = match required(from.protocol.and_then(|protocol| protocol.kind), "protocol")? {
        Kind::Detect(detect) => InboundProtocol::Detect {
            timeout: duration_from_proto(detect.timeout, "protocol.detect.timeout")?
                .unwrap_or(defaults::DETECT_PATIENCE),
            http: http(detect.http_routes, detect.http_local_rate_limit).within("protocol.detect")?,
        },
        Kind::Http1(http1) => {
            InboundProtocol::Http1(http(http1.routes, http1.local_rate_limit).within("protocol.http1")?)
        }
        Kind::Http2(http2) => {
            InboundProtocol::Http2(http(http2.routes, http2.local_rate_limit).within("protocol.http2")?)
        }
        Kind::Grpc(grpc) => InboundProtocol::Grpc(InboundHttp {
            routes: each(grpc.routes, "protocol.grpc.routes", grpc_route_from_proto)?,
            rate_limit: None,
        }),
        Kind::Opaque(_) => InboundProtocol::Opaque,
        Kind::Tls(_) => InboundProtocol::Tls,
    };
    let labels: Labels = from.labels.into_iter().collect();
    Ok(Server {
        meta: meta_of(&labels, "server")?,
        protocol,
        ips: each(from.server_ips, "server_ips", ip_from_proto)?,
        authorizations: each(from.authorizations, "authorizations", authorization_from_proto)?,
        labels,
    })
}

// ---- authorizations ------------------------------------------------------------------------------------------------

fn authorizations_to_proto(from: &[Authorization]) -> Vec<proto::Authz> {
    from.iter().filter(|authorization| !authorization.networks.is_empty()).map(authorization_to_proto).collect()
}

fn authorization_to_proto(from: &Authorization) -> proto::Authz {
    use authn::{Permit, PermitMeshTls, PermitUnauthenticated, permit_mesh_tls};
    let mesh_tls = |clients| Permit::MeshTls(PermitMeshTls { clients: Some(clients) });
    let permit = match &from.authentication {
        Authentication::Unauthenticated => Permit::Unauthenticated(PermitUnauthenticated {}),
        Authentication::Tls => mesh_tls(permit_mesh_tls::Clients::Unauthenticated(PermitUnauthenticated {})),
        Authentication::Identities { names, suffixes } => {
            mesh_tls(permit_mesh_tls::Clients::Identities(permit_mesh_tls::PermitClientIdentities {
                identities: names.iter().cloned().map(|name| proto::Identity { name }).collect(),
                suffixes: suffixes.iter().map(|suffix| suffix_to_proto(suffix)).collect(),
            }))
        }
    };
    let network = |network: &Network| proto::Network {
        net: Some(network.net.into()),
        except: network.except.iter().map(|net| (*net).into()).collect(),
    };
    proto::Authz {
        networks: from.networks.iter().map(network).collect(),
        authentication: Some(proto::Authn { permit: Some(permit) }),
        labels: labels_of(&from.meta, &from.labels),
        metadata: Some(meta_to_proto(&from.meta)),
    }
}

/// An authentication that we do not know is an error, never permission. No networks: nobody.
fn authorization_from_proto(from: proto::Authz) -> Decoded<Authorization> {
    use authn::{Permit, permit_mesh_tls::Clients};
    let network = |network: proto::Network| {
        Ok(Network {
            net: network_from_proto(required(network.net, "net")?).within("net")?,
            except: each(network.except, "except", network_from_proto)?,
        })
    };
    let permit = required(from.authentication.and_then(|authentication| authentication.permit), "authentication")?;
    let authentication = match permit {
        Permit::Unauthenticated(_) => Authentication::Unauthenticated,
        Permit::MeshTls(tls) => match required(tls.clients, "authentication.mesh_tls.clients")? {
            Clients::Unauthenticated(_) => Authentication::Tls,
            Clients::Identities(clients) => Authentication::Identities {
                names: clients.identities.into_iter().map(|identity| identity.name).collect(),
                suffixes: clients.suffixes.into_iter().map(suffix_from_proto).collect(),
            },
        },
    };
    let labels: Labels = from.labels.into_iter().collect();
    Ok(Authorization {
        meta: match from.metadata {
            Some(meta) => meta_from_proto(meta).within("metadata")?,
            None => meta_of(&labels, "serverauthorization")?,
        },
        networks: each(from.networks, "networks", network)?,
        authentication,
        labels,
    })
}

fn suffix_to_proto(suffix: &str) -> proto::IdentitySuffix {
    let name = suffix.strip_prefix('.').unwrap_or(suffix);
    let parts = if name.is_empty() { Vec::new() } else { name.split('.').map(str::to_string).collect() };
    proto::IdentitySuffix { parts }
}

fn suffix_from_proto(from: proto::IdentitySuffix) -> String {
    if from.parts.is_empty() { String::new() } else { format!(".{}", from.parts.join(".")) }
}

// ---- routes --------------------------------------------------------------------------------------------------------

fn http_route_to_proto(from: &InboundRoute) -> proto::HttpRoute {
    use proto::http_route::{Filter as FilterProto, Rule, filter::Kind};
    let filter = |filter: &Filter| {
        let kind = match filter {
            Filter::RequestHeaders(edit) => Kind::RequestHeaderModifier(request_edit_to_proto(edit)),
            Filter::Redirect(redirect) => Kind::Redirect(redirect_to_proto(redirect)),
            Filter::Fail(failure) => Kind::FailureInjector(failure_to_http(failure, from.grpc)),
            // Inbound routes have no extensions.
            Filter::ResponseHeaders(_) | Filter::Extension(_) | Filter::Named(_) => {
                Kind::FailureInjector(failure_to_http(&unsupported_filter(false), false))
            }
        };
        FilterProto { kind: Some(kind) }
    };
    let rule = |rule: &InboundRule| {
        Some(Rule {
            matches: matches_to_proto(&rule.matches, http_match_to_proto)?,
            filters: rule.filters.iter().map(filter).collect(),
        })
    };
    proto::HttpRoute {
        metadata: Some(meta_to_proto(&from.meta)),
        hosts: from.hosts.iter().map(host_to_proto).collect(),
        authorizations: authorizations_to_proto(&from.authorizations),
        rules: from.rules.iter().filter_map(rule).collect(),
    }
}

fn http_route_from_proto(from: proto::HttpRoute) -> Decoded<InboundRoute> {
    use proto::http_route::{Filter as FilterProto, Rule, filter::Kind};
    let filter = |filter: FilterProto| {
        Ok(match filter.kind {
            Some(Kind::RequestHeaderModifier(edit)) => {
                Filter::RequestHeaders(edit_from_proto(edit.add, edit.set, edit.remove)?)
            }
            Some(Kind::Redirect(redirect)) => Filter::Redirect(redirect_from_proto(redirect)?),
            Some(Kind::FailureInjector(failure)) => Filter::Fail(failure_from_http(failure)?),
            None => Filter::Fail(unsupported_filter(false)),
        })
    };
    let rule = |rule: Rule| {
        Ok(InboundRule {
            matches: each(rule.matches, "matches", http_match_from_proto)?,
            filters: each(rule.filters, "filters", filter)?,
        })
    };
    Ok(InboundRoute {
        meta: meta_from_proto(required(from.metadata, "metadata")?).within("metadata")?,
        hosts: each(from.hosts, "hosts", host_from_proto)?,
        authorizations: each(from.authorizations, "authorizations", authorization_from_proto)?,
        rules: each(from.rules, "rules", rule)?,
        grpc: false,
    })
}

fn grpc_route_to_proto(from: &InboundRoute) -> proto::GrpcRoute {
    use proto::grpc_route::{Filter as FilterProto, Rule, filter::Kind};
    let filter = |filter: &Filter| {
        let kind = match filter {
            Filter::RequestHeaders(edit) => Kind::RequestHeaderModifier(request_edit_to_proto(edit)),
            Filter::Fail(failure) => Kind::FailureInjector(failure_to_grpc(failure, from.grpc)),
            Filter::Redirect(_) | Filter::ResponseHeaders(_) | Filter::Extension(_) | Filter::Named(_) => {
                Kind::FailureInjector(failure_to_grpc(&unsupported_filter(true), true))
            }
        };
        FilterProto { kind: Some(kind) }
    };
    let rule = |rule: &InboundRule| {
        Some(Rule {
            matches: matches_to_proto(&rule.matches, grpc_match_to_proto)?,
            filters: rule.filters.iter().map(filter).collect(),
        })
    };
    proto::GrpcRoute {
        metadata: Some(meta_to_proto(&from.meta)),
        hosts: from.hosts.iter().map(host_to_proto).collect(),
        authorizations: authorizations_to_proto(&from.authorizations),
        rules: from.rules.iter().filter_map(rule).collect(),
    }
}

fn grpc_route_from_proto(from: proto::GrpcRoute) -> Decoded<InboundRoute> {
    use proto::grpc_route::{Filter as FilterProto, Rule, filter::Kind};
    let filter = |filter: FilterProto| {
        Ok(match filter.kind {
            Some(Kind::RequestHeaderModifier(edit)) => {
                Filter::RequestHeaders(edit_from_proto(edit.add, edit.set, edit.remove)?)
            }
            Some(Kind::FailureInjector(failure)) => Filter::Fail(failure_from_grpc(failure)?),
            None => Filter::Fail(unsupported_filter(true)),
        })
    };
    let rule = |rule: Rule| {
        Ok(InboundRule {
            matches: each(rule.matches, "matches", grpc_match_from_proto)?,
            filters: each(rule.filters, "filters", filter)?,
        })
    };
    Ok(InboundRoute {
        meta: meta_from_proto(required(from.metadata, "metadata")?).within("metadata")?,
        hosts: each(from.hosts, "hosts", host_from_proto)?,
        authorizations: each(from.authorizations, "authorizations", authorization_from_proto)?,
        rules: each(from.rules, "rules", rule)?,
        grpc: true,
    })
}

// ---- rate limits ---------------------------------------------------------------------------------------------------

fn rate_limit_to_proto(from: &RateLimit) -> proto::HttpLocalRateLimit {
    use http_local_rate_limit::{Limit, Override, r#override::ClientIdentities};
    let limit = |requests_per_second| Limit { requests_per_second };
    let exception = |(names, rate): &(Vec<String>, u32)| Override {
        limit: Some(limit(*rate)),
        clients: Some(ClientIdentities {
            identities: names.iter().cloned().map(|name| proto::Identity { name }).collect(),
        }),
    };
    proto::HttpLocalRateLimit {
        metadata: from.meta.as_ref().map(meta_to_proto),
        total: from.total.map(limit),
        identity: from.identity.map(limit),
        overrides: from.overrides.iter().map(exception).collect(),
    }
}

/// As in linkerd2-proxy, a rate of nothing is no limit.
fn rate_limit_from_proto(from: proto::HttpLocalRateLimit) -> Decoded<RateLimit> {
    use http_local_rate_limit::{Limit, Override};
    let rate = |limit: Option<Limit>| limit.map(|limit| limit.requests_per_second).filter(|rate| *rate > 0);
    let exception = |exception: Override| {
        let clients = exception.clients.unwrap_or_default().identities;
        Some((clients.into_iter().map(|identity| identity.name).collect(), rate(exception.limit)?))
    };
    Ok(RateLimit {
        meta: from.metadata.map(meta_from_proto).transpose().within("metadata")?,
        total: rate(from.total),
        identity: rate(from.identity),
        overrides: from.overrides.into_iter().filter_map(exception).collect(),
    })
}
