//! Routes of bytes, and of TLS by server name.

use super::*;

/// The one rule; a route without rules goes nowhere.
pub(super) fn first_rule(from: &TcpRoute) -> TcpRule {
    from.rules.first().cloned().unwrap_or_default()
}

pub(super) fn opaque_route_to_proto(from: &TcpRoute) -> proto::OpaqueRoute {
    use proto::opaque_route::{Filter, Rule, filter::Kind};
    let rule = first_rule(from);
    let filter = rule.refuse.as_ref().map(|refuse| match refuse {
        Refuse::Forbidden => Kind::Forbidden(opaque_route::Forbidden {}),
        Refuse::Invalid(message) => Kind::Invalid(opaque_route::Invalid { message: message.clone() }),
    });
    proto::OpaqueRoute {
        metadata: Some(meta_to_proto(&from.meta)),
        rules: vec![Rule {
            backends: Some(opaque_backends_to_proto(&rule.backends, false)),
            filters: filter.map(|kind| Filter { kind: Some(kind) }).into_iter().collect(),
        }],
    }
}

pub(super) fn opaque_route_from_proto(from: proto::OpaqueRoute) -> Decoded<TcpRoute> {
    use proto::opaque_route::{Filter, Rule, filter::Kind};
    let refuse = |filter: Filter| match filter.kind {
        Some(Kind::Forbidden(_)) => Refuse::Forbidden,
        Some(Kind::Invalid(invalid)) => Refuse::Invalid(invalid.message),
        None => Refuse::Invalid("the route has a filter that is not supported".into()),
    };
    let rule = |rule: Rule| {
        Ok(TcpRule {
            backends: opaque_backends_from_proto(rule.backends)?,
            refuse: rule.filters.into_iter().next().map(refuse),
        })
    };
    let rules = each(from.rules, "rules", rule)?;
    Ok(TcpRoute { meta: meta_required(from.metadata)?, snis: Vec::new(), rules })
}

pub(super) fn tls_route_to_proto(from: &TcpRoute) -> proto::TlsRoute {
    use proto::tls_route::{Filter, Rule, filter::Kind};
    let rule = first_rule(from);
    let filter = rule.refuse.as_ref().map(|refuse| match refuse {
        Refuse::Forbidden => Kind::Forbidden(opaque_route::Forbidden {}),
        Refuse::Invalid(message) => Kind::Invalid(opaque_route::Invalid { message: message.clone() }),
    });
    proto::TlsRoute {
        metadata: Some(meta_to_proto(&from.meta)),
        snis: from.snis.iter().map(sni_to_proto).collect(),
        rules: vec![Rule {
            backends: Some(tls_backends_to_proto(&rule.backends, false)),
            filters: filter.map(|kind| Filter { kind: Some(kind) }).into_iter().collect(),
        }],
    }
}

pub(super) fn tls_route_from_proto(from: proto::TlsRoute) -> Decoded<TcpRoute> {
    use proto::tls_route::{Filter, Rule, filter::Kind};
    let refuse = |filter: Filter| match filter.kind {
        Some(Kind::Forbidden(_)) => Refuse::Forbidden,
        Some(Kind::Invalid(invalid)) => Refuse::Invalid(invalid.message),
        None => Refuse::Invalid("the route has a filter that is not supported".into()),
    };
    let rule = |rule: Rule| {
        Ok(TcpRule {
            backends: tls_backends_from_proto(rule.backends)?,
            refuse: rule.filters.into_iter().next().map(refuse),
        })
    };
    Ok(TcpRoute {
        snis: each(from.snis, "snis", sni_from_proto)?,
        rules: each(from.rules, "rules", rule)?,
        meta: meta_required(from.metadata)?,
    })
}

pub(super) fn opaque_backend_to_proto(from: &Backend, _: bool) -> proto::opaque_route::RouteBackend {
    proto::opaque_route::RouteBackend { backend: Some(backend_to_proto(from)), filters: Vec::new() }
}

/// A filter of a backend can only refuse, and so does a backend that is invalid.
pub(super) fn opaque_backend_from_proto(from: proto::opaque_route::RouteBackend) -> Decoded<Backend> {
    let mut backend = backend_from_proto(required(from.backend, "backend")?).within("backend")?;
    if !from.filters.is_empty() {
        backend.target = BackendTarget::Invalid;
    }
    Ok(backend)
}

pub(super) fn tls_backend_to_proto(from: &Backend, _: bool) -> proto::tls_route::RouteBackend {
    proto::tls_route::RouteBackend { backend: Some(backend_to_proto(from)), filters: Vec::new() }
}

pub(super) fn tls_backend_from_proto(from: proto::tls_route::RouteBackend) -> Decoded<Backend> {
    let mut backend = backend_from_proto(required(from.backend, "backend")?).within("backend")?;
    if !from.filters.is_empty() {
        backend.target = BackendTarget::Invalid;
    }
    Ok(backend)
}
