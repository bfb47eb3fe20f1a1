//! Metric handles of endpoints and connections: found once, then only touched.

use crate::balance::{Balancer, Pick};
use crate::error::Error;
use crate::metrics::{
    AuthzLabels, AuthzMetrics, Direction, Metrics, RequestLabels, RequestMetrics, TcpLabels, TcpMetrics, TlsLabel,
};
use crate::policy::authorize::{Peer, PeerTls};
use crate::request::routes::Rule;
use crate::shard::{Destination, PortPolicy, Shard};
use gossamer_api::authorization::Authorization;
use gossamer_api::policy::Meta;
use std::cell::{OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Metric handles of an endpoint, found at its first request.
pub struct EndpointMetrics {
    /// Requests to it.
    pub requests: Arc<RequestMetrics>,
    /// Connections to it.
    pub tcp: Arc<TcpMetrics>,
}

impl EndpointMetrics {
    pub(super) fn new(shard: &Shard, direction: Direction, balancer: &Balancer, pick: &Pick) -> Self {
        let tls = match direction {
            Direction::Outbound => destination_tls(pick),
            Direction::Inbound => TlsLabel::None("loopback"),
        };
        let mut requests = RequestLabels::new(direction, tls);
        let mut tcp = TcpLabels::new(direction, false, tls);
        (requests.target, tcp.target) = (Some(pick.info.addr), Some(pick.info.addr));
        if direction == Direction::Outbound {
            let authority = Some(balancer.authority.as_str());
            (requests.authority, tcp.authority) = (authority, authority);
            (requests.dst, tcp.dst) = (Some(&pick.info.labels), Some(&pick.info.labels));
        }
        let metrics =
            EndpointMetrics { requests: shard.metrics.request_scope(requests), tcp: shard.metrics.tcp_scope(tcp) };
        pick.pool.measure(metrics.tcp.clone());
        metrics
    }
}

pub(super) fn destination_tls(pick: &Pick) -> TlsLabel<'_> {
    match &pick.info.tls {
        Some(tls) => TlsLabel::Mesh(Some(&tls.identity)),
        None => TlsLabel::None("not_provided_by_service_discovery"),
    }
}

/// Metric handles of a client's connection, found at its first request.
pub struct ConnectionMetrics {
    metrics: Metrics,
    /// Which way.
    pub direction: Direction,
    target: SocketAddr,
    server: Option<Meta>,
    peer: PeerTls,
    tcp: OnceCell<Arc<TcpMetrics>>,
    /// By rule and authorization: nearly always one.
    rules: RefCell<Vec<(Key, Handles)>>,
}

type Key = (*const Rule, Option<Meta>);

#[derive(Clone)]
pub(super) struct Handles {
    pub(super) requests: Arc<RequestMetrics>,
    pub(super) authz: Arc<AuthzMetrics>,
}

impl ConnectionMetrics {
    /// Of a connection of our workload: all to one address share them.
    pub fn outbound(shard: &Shard, destination: &Destination, target: SocketAddr) -> Rc<Self> {
        let make = || {
            Rc::new(ConnectionMetrics {
                metrics: shard.metrics.clone(),
                direction: Direction::Outbound,
                target,
                server: None,
                peer: PeerTls::None,
                tcp: OnceCell::new(),
                rules: RefCell::default(),
            })
        };
        let known = destination.clients.get_or_init(make);
        if known.target == target { known.clone() } else { make() }
    }

    /// Of a connection to our workload.
    pub fn inbound(shard: &Shard, policy: Option<&PortPolicy>, peer: &Peer, target: SocketAddr) -> Rc<Self> {
        Rc::new(ConnectionMetrics {
            metrics: shard.metrics.clone(),
            direction: Direction::Inbound,
            target,
            server: policy.map(|policy| policy.meta.clone()),
            peer: peer.tls.clone(),
            tcp: OnceCell::new(),
            rules: RefCell::default(),
        })
    }

    pub(super) fn tls(&self) -> TlsLabel<'_> {
        match (&self.peer, self.direction) {
            (PeerTls::Identity(identity), _) => TlsLabel::Mesh(Some(identity)),
            (PeerTls::Anonymous, _) => TlsLabel::Mesh(None),
            (PeerTls::None, Direction::Inbound) => TlsLabel::None("no_tls_from_remote"),
            (PeerTls::None, Direction::Outbound) => TlsLabel::None("loopback"),
        }
    }

    /// The client's side of the connection.
    pub fn tcp(&self) -> &Arc<TcpMetrics> {
        self.tcp.get_or_init(|| {
            let mut labels = TcpLabels::new(self.direction, true, self.tls());
            labels.target = Some(self.target);
            labels.server = self.server.as_ref();
            self.metrics.tcp_scope(labels)
        })
    }

    /// Of requests that no endpoint or rule was found for. Such are rare or soon over: the handle is looked up.
    pub(super) fn unserved(&self, error: &Error) -> Arc<RequestMetrics> {
        let mut labels = RequestLabels::new(self.direction, self.tls());
        labels.target = Some(self.target);
        labels.server = self.server.as_ref();
        labels.authority = error.target();
        self.metrics.request_scope(labels)
    }

    pub(super) fn handles(&self, policy: &PortPolicy, rule: &Rc<Rule>, by: Option<&Authorization>) -> Handles {
        let key = (Rc::as_ptr(rule), by.map(|by| by.meta.clone()));
        let mut known = self.rules.borrow_mut();
        if let Some((_, handles)) = known.iter().find(|(other, _)| *other == key) {
            return handles.clone();
        }
        let mut labels = RequestLabels::new(self.direction, self.tls());
        labels.target = Some(self.target);
        labels.server = Some(&policy.meta);
        labels.route = Some(&rule.meta);
        labels.authz = by.map(|by| &by.meta);
        let authz = AuthzLabels {
            server: &policy.meta,
            route: Some(&rule.meta),
            authz: by.map(|by| &by.meta),
            tls: self.tls(),
            target: Some(self.target),
        };
        let handles = Handles { requests: self.metrics.request_scope(labels), authz: self.metrics.authz_scope(authz) };
        // A policy that changes often must not make a long connection grow.
        if known.len() >= 32 {
            known.clear();
        }
        known.push((key, handles.clone()));
        handles
    }

    pub(super) fn connection_authz(&self, policy: &PortPolicy, by: Option<&Authorization>) -> Arc<AuthzMetrics> {
        self.metrics.authz_scope(AuthzLabels {
            server: &policy.meta,
            route: None,
            authz: by.map(|by| &by.meta),
            tls: self.tls(),
            target: Some(self.target),
        })
    }
}
