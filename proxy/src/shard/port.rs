//! Who may use the workload's ports: inbound policy, compiled when it changes.
//!
//! **Invariant:** a port whose policy was never heard lets nobody in.

use super::destination::Declared;
use crate::config::{Config, DefaultPolicy};
use crate::control::Discovered;
use crate::error::Error;
use crate::policy::authorize::{Peer, authorize};
use crate::policy::limit::RateLimiter;
use crate::request::routes::Routes;
use gossamer_api::authorization::{self as authz, Authentication, Authorization, InboundHttp, InboundProtocol, Server};
use gossamer_api::defaults;
use gossamer_api::endpoint::Labels;
use gossamer_api::policy::Meta;
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// One of the workload's ports and who may use it.
pub struct Port {
    /// Its number.
    pub port: u16,
    pub(super) policy: RefCell<Option<Result<Rc<PortPolicy>, Arc<str>>>>,
    pub(super) changed: Notify,
}

/// Compiled inbound policy.
pub struct PortPolicy {
    /// The server object.
    pub meta: Meta,
    /// For metrics.
    pub labels: Labels,
    /// What is known of its protocol.
    pub protocol: Declared,
    /// Who may connect.
    pub authorizations: Vec<Authorization>,
    /// Who may request what.
    pub http: Rc<Routes>,
    /// Requests per second.
    pub limit: Option<RateLimiter>,
}

impl Port {
    /// Who may use it; waits for the control plane's first word. Without one nobody may: fails closed.
    pub async fn policy(&self) -> Result<Rc<PortPolicy>, Error> {
        let name = || format!("port {}", self.port);
        let wait = async {
            loop {
                let changed = self.changed.notified();
                match &*self.policy.borrow() {
                    Some(Ok(policy)) => return Ok(policy.clone()),
                    Some(Err(reason)) => return Err(Error::Discovery(name(), reason.clone())),
                    None => {}
                }
                changed.await;
            }
        };
        timeout(defaults::DISCOVERY_TIMEOUT + Duration::from_millis(80), wait)
            .await
            .unwrap_or_else(|_| Err(Error::Discovery(name(), "no answer from the control plane".into())))
    }

    /// Who may use it, if that is known.
    pub fn current(&self) -> Option<Rc<PortPolicy>> {
        match &*self.policy.borrow() {
            Some(Ok(policy)) => Some(policy.clone()),
            _ => None,
        }
    }

    /// Ends when the policy no longer lets this client connect.
    pub async fn revoked(&self, peer: &Peer) {
        loop {
            let changed = self.changed.notified();
            if let Some(policy) = self.current()
                && authorize(&policy.authorizations, peer).is_none()
            {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn update(&self, config: &Config, discovered: Discovered<Server>) {
        let next = match discovered {
            Discovered::Pending => return,
            Discovered::Known(server) => Ok(Rc::new(PortPolicy::compile(&server))),
            Discovered::Absent => {
                let opaque = config.opaque_ports.contains(self.port);
                Ok(Rc::new(PortPolicy::compile(&default_server(config, opaque))))
            }
            Discovered::Failed(reason) => Err(reason),
        };
        let mut policy = self.policy.borrow_mut();
        if next.is_ok() || !matches!(&*policy, Some(Ok(_))) {
            *policy = Some(next);
        }
        drop(policy);
        self.changed.notify_waiters();
    }
}

impl PortPolicy {
    fn compile(server: &Server) -> Self {
        let none = InboundHttp::default();
        let (protocol, http, grpc) = match &server.protocol {
            InboundProtocol::Detect { http, .. } => (Declared::Unknown, http, false),
            InboundProtocol::Http1(http) | InboundProtocol::Http2(http) => (Declared::Http, http, false),
            InboundProtocol::Grpc(http) => (Declared::Http, http, true),
            InboundProtocol::Opaque => (Declared::Opaque, &none, false),
            InboundProtocol::Tls => (Declared::Tls, &none, false),
        };
        PortPolicy {
            meta: server.meta.clone(),
            labels: server.labels.clone(),
            protocol,
            authorizations: server.authorizations.clone(),
            http: Rc::new(Routes::inbound(http, &server.meta, &server.authorizations, grpc)),
            limit: http.rate_limit.as_ref().map(|limit| RateLimiter::new(limit, Instant::now())),
        }
    }
}

/// What `default-inbound-policy` says, for a proxy without a control plane or a port that it does not know.
fn default_server(config: &Config, opaque: bool) -> Server {
    let everywhere =
        || [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|ip| ipnet::IpNet::new(ip, 0)).into_iter().flatten();
    let anybody = Authentication::Unauthenticated;
    let members = Authentication::Identities { names: Vec::new(), suffixes: vec![String::new()] };
    let cluster = || config.cluster_networks.clone();
    let (name, networks, authentication): (_, Vec<ipnet::IpNet>, _) = match config.default_policy {
        DefaultPolicy::AllUnauthenticated => ("all-unauthenticated", everywhere().collect(), anybody),
        DefaultPolicy::AllAuthenticated => ("all-authenticated", everywhere().collect(), members),
        DefaultPolicy::ClusterUnauthenticated => ("cluster-unauthenticated", cluster(), anybody),
        DefaultPolicy::ClusterAuthenticated => ("cluster-authenticated", cluster(), members),
        DefaultPolicy::Deny => ("deny", Vec::new(), anybody),
        DefaultPolicy::Audit => ("audit", everywhere().collect(), anybody),
    };
    let meta = Meta::named(name);
    let authorization = Authorization {
        meta: meta.clone(),
        networks: networks.into_iter().map(|net| authz::Network { net, except: Vec::new() }).collect(),
        authentication,
        labels: Labels::new(),
    };
    Server {
        meta,
        protocol: match opaque {
            true => InboundProtocol::Opaque,
            false => InboundProtocol::Detect { timeout: defaults::DETECT_PATIENCE, http: InboundHttp::default() },
        },
        ips: Vec::new(),
        authorizations: if config.default_policy == DefaultPolicy::Deny { Vec::new() } else { vec![authorization] },
        labels: Labels::new(),
    }
}
