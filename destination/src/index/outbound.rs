//! How requests to a target are treated: what is known of the target, its routes, and defaults for the rest.

use super::routes::{Route, Rule, RuleBackend, RuleFilter, failure};
use super::services::{Port, Service, Speaks};
use super::{Asked, Index, Source};
use gossamer_api::defaults;
use gossamer_api::endpoint::Endpoint;
use gossamer_api::kubernetes::{Key, Kind, Name};
use gossamer_api::policy::{
    Backend, BackendTarget, Distribution, Extension, Filter, HttpRoute, HttpRoutes, HttpRule, Meta, Mirror,
    OutboundPolicy, OutboundProtocol, PathMatch, Queue, Refuse, RequestMatch, RouteBackend, TcpRoute, TcpRule,
};
use std::net::SocketAddr;
use std::time::Duration;

impl Index {
    /// How requests to what was asked for are treated. `None`: no such service, or a pod that it does not have.
    pub fn outbound(&self, asked: &Asked, source: &Source) -> Option<OutboundPolicy> {
        match asked {
            Asked::Service(name, port) => Some(self.service_policy(name, self.services.get(name)?, *port, source)),
            Asked::Instance(service, pod, port) => {
                let target = &self.services.get(service)?.port(*port)?.target;
                let pod = self.instance(service, pod)?;
                let workload = self.workloads.get(&pod)?;
                let addr = SocketAddr::new(*workload.ips.first()?, workload.port(target)?);
                Some(self.workload_policy(&pod, addr, source))
            }
            Asked::Workload(name, addr) => Some(self.workload_policy(name, *addr, source)),
            Asked::Address(addr) => Some(forward_policy(*addr)),
        }
    }

    fn workload_policy(&self, name: &Name, addr: SocketAddr, source: &Source) -> OutboundPolicy {
        let workload = self.workloads.get(name);
        let speaks = workload.map_or(Speaks::Unknown, |workload| self.workload_speaks(name, workload, addr.port()));
        let endpoint = self.workload_endpoint(name, addr, source);
        let meta = endpoint.meta.clone().unwrap_or_else(|| Meta::named("endpoint"));
        let backend = Backend { meta, queue: QUEUE, target: BackendTarget::Forward(Box::new(endpoint)) };
        let protocol = match speaks {
            Speaks::Unknown => detect(backend),
            Speaks::Http1 => OutboundProtocol::Http1(single("http", backend)),
            Speaks::Http2 => OutboundProtocol::Http2(single("http", backend)),
            Speaks::Grpc => OutboundProtocol::Grpc(single("grpc", backend)),
            Speaks::Opaque => OutboundProtocol::Opaque(vec![default_tcp("opaque", backend)]),
        };
        OutboundPolicy { meta: Meta::named("endpoint"), protocol }
    }

    fn service_policy(&self, name: &Name, service: &Service, number: u16, source: &Source) -> OutboundPolicy {
        let meta = Meta::service(&name.namespace, &name.name, number);
        let Some(port) = service.port(number) else {
            let rule = TcpRule { backends: Distribution::Empty, refuse: Some(Refuse::Forbidden) };
            let route = TcpRoute { meta: Meta::named("undefined-port"), snis: Vec::new(), rules: vec![rule] };
            return OutboundPolicy { meta, protocol: OutboundProtocol::Opaque(vec![route]) };
        };
        OutboundPolicy { meta, protocol: self.protocol(name, service, port, source) }
    }

    /// Routes of the most telling kind decide: gRPC, HTTP, TLS, TCP, as in Linkerd; else the port's declaration.
    fn protocol(&self, name: &Name, service: &Service, port: &Port, source: &Source) -> OutboundProtocol {
        let speaks = self.speaks(name, service, port);
        let http = |kind| self.http_routes(kind, name, service, port, source);
        let tcp = self.tcp_routes(Kind::TcpRoute, name, service, port, source);
        let or_default = |routes: Option<Vec<TcpRoute>>| {
            routes.unwrap_or_else(|| vec![default_tcp("opaque", self.backend(name, service, port.number))])
        };
        if speaks == Speaks::Opaque {
            let tls = self.tcp_routes(Kind::TlsRoute, name, service, port, source);
            return tls.map_or_else(|| OutboundProtocol::Opaque(or_default(tcp)), OutboundProtocol::Tls);
        }
        if let Some(routes) = http(Kind::GrpcRoute) {
            return OutboundProtocol::Grpc(routes);
        }
        if let Some(routes) = http(Kind::HttpRoute) {
            return match speaks {
                Speaks::Http1 => OutboundProtocol::Http1(routes),
                Speaks::Http2 | Speaks::Grpc => OutboundProtocol::Http2(routes),
                _ => detect_with(routes, or_default(tcp)),
            };
        }
        if let Some(routes) = self.tcp_routes(Kind::TlsRoute, name, service, port, source) {
            return OutboundProtocol::Tls(routes);
        }
        if let Some(routes) = tcp {
            return OutboundProtocol::Opaque(routes);
        }
        let backend = self.backend(name, service, port.number);
        let routes = |label| HttpRoutes {
            routes: vec![default_http(label, backend.clone(), service)],
            breaker: service.traffic().breaker,
        };
        match speaks {
            Speaks::Http1 => OutboundProtocol::Http1(routes("http")),
            Speaks::Http2 => OutboundProtocol::Http2(routes("http")),
            Speaks::Grpc => OutboundProtocol::Grpc(routes("grpc")),
            _ => detect_with(routes("http"), or_default(None)),
        }
    }

    /// Routes of a kind for a port: those of the client's namespace, else those of the service's own. `None`: none.
    fn routes_for(&self, kind: Kind, service: &Name, port: u16, source: &Source) -> Option<Vec<&Route>> {
        let keys = self.routes_of.get(service)?.iter().filter(|key: &&Key| key.kind == kind);
        let mut routes: Vec<_> = keys.filter_map(|key| self.routes.get(key)).collect();
        routes.retain(|route| route.is_for(service, port));
        let consumer = |route: &Route| {
            *route.key.name.namespace == source.namespace && route.key.name.namespace != service.namespace
        };
        if routes.iter().any(|route| consumer(route)) {
            routes.retain(|route| consumer(route));
        } else {
            routes.retain(|route| route.key.name.namespace == service.namespace);
        }
        // Older ones first, then by name; objects of files have no age and come last.
        routes.sort_by_key(|route| (route.created.is_empty(), &route.created, &route.key.name));
        (!routes.is_empty()).then_some(routes)
    }

    fn http_routes(
        &self,
        kind: Kind,
        name: &Name,
        service: &Service,
        port: &Port,
        source: &Source,
    ) -> Option<HttpRoutes> {
        let routes = self.routes_for(kind, name, port.number, source)?;
        let parent = self.backend(name, service, port.number);
        let read = |route: &&Route| HttpRoute {
            meta: route.meta(),
            hosts: route.hosts.clone(),
            rules: route.rules.iter().map(|rule| self.http_rule(rule, &parent)).collect(),
            grpc: kind == Kind::GrpcRoute,
        };
        Some(HttpRoutes { routes: routes.iter().map(read).collect(), breaker: service.traffic().breaker })
    }

    fn http_rule(&self, rule: &Rule, parent: &Backend) -> HttpRule {
        let mut filters = self.filters(&rule.filters);
        let own = |backend: Backend, filters| RouteBackend { backend, filters };
        let backends = match &rule.backends {
            None => Distribution::First(vec![own(parent.clone(), Vec::new())]),
            Some(all) if all.iter().all(|backend| backend.weight == 0) => {
                filters.push(failure("all backends have weight 0".into()));
                Distribution::First(vec![own(parent.clone(), Vec::new())])
            }
            Some(all) => {
                let used = all.iter().filter(|backend| backend.weight > 0);
                let read = |b: &RuleBackend| (own(self.rule_backend(b), self.filters(&b.filters)), b.weight);
                Distribution::Random(used.map(read).collect())
            }
        };
        HttpRule {
            matches: if rule.matches.is_empty() { vec![RequestMatch::default()] } else { rule.matches.clone() },
            filters,
            backends,
            timeouts: rule.timeouts,
            retry: rule.retry.clone(),
            allow_l5d_request_headers: false,
        }
    }

    /// A mirror to a service that does not exist is none (Gateway API).
    fn filters(&self, from: &[RuleFilter]) -> Vec<Filter> {
        let read = |filter: &RuleFilter| match filter {
            RuleFilter::Plain(filter) => Some(filter.clone()),
            RuleFilter::Mirror(to, ratio) => {
                let backend = self.rule_backend(to);
                let mirror = Extension::Mirror(Mirror { backend: backend.clone(), ratio: *ratio });
                (backend.target != BackendTarget::Invalid).then(|| Filter::Extension(Box::new(mirror)))
            }
        };
        from.iter().filter_map(read).collect()
    }

    fn tcp_routes(
        &self,
        kind: Kind,
        name: &Name,
        service: &Service,
        port: &Port,
        source: &Source,
    ) -> Option<Vec<TcpRoute>> {
        let routes = self.routes_for(kind, name, port.number, source)?;
        let read = |route: &&Route| TcpRoute {
            meta: route.meta(),
            snis: if kind == Kind::TlsRoute { route.hosts.clone() } else { Vec::new() },
            rules: route.rules.iter().map(|rule| self.tcp_rule(rule, name, service, port)).collect(),
        };
        Some(routes.iter().map(read).collect())
    }

    fn tcp_rule(&self, rule: &Rule, name: &Name, service: &Service, port: &Port) -> TcpRule {
        let Some(all) = &rule.backends else {
            let parent = self.backend(name, service, port.number);
            return TcpRule { backends: Distribution::First(vec![parent]), refuse: None };
        };
        let used: Vec<_> = all.iter().filter(|b| b.weight > 0).map(|b| (self.rule_backend(b), b.weight)).collect();
        if used.is_empty() {
            let refuse = Some(Refuse::Invalid("all backends have weight 0".into()));
            return TcpRule { backends: Distribution::Empty, refuse };
        }
        TcpRule { backends: Distribution::Random(used), refuse: None }
    }

    /// A backend that does not exist keeps its share, which fails (Gateway API).
    fn rule_backend(&self, from: &RuleBackend) -> Backend {
        let port = from.port.unwrap_or_default();
        let known = from.service.as_ref().and_then(|name| Some((name, self.services.get(name)?)));
        if let Some((name, service)) = known.filter(|(_, service)| service.port(port).is_some()) {
            return self.backend(name, service, port);
        }
        let meta = match &from.service {
            Some(name) => Meta::service(&name.namespace, &name.name, port),
            None => Meta::named(&from.name),
        };
        Backend { meta, queue: QUEUE, target: BackendTarget::Invalid }
    }

    fn backend(&self, name: &Name, service: &Service, port: u16) -> Backend {
        Backend {
            meta: Meta::service(&name.namespace, &name.name, port),
            queue: QUEUE,
            target: BackendTarget::Balance {
                authority: format!("{}:{port}", self.service_host(name)),
                load: service.traffic().load,
            },
        }
    }

    /// True when what was asked for is bytes, and its endpoint where it is a single one (`GetProfile`).
    pub fn profile(&self, asked: &Asked, source: &Source) -> (bool, Option<Endpoint>) {
        match asked {
            Asked::Service(name, port) => {
                let known = self.services.get(name).and_then(|service| Some((service, service.port(*port)?)));
                (known.is_some_and(|(service, port)| self.speaks(name, service, port) == Speaks::Opaque), None)
            }
            Asked::Workload(name, addr) => {
                let workload = self.workloads.get(name);
                let opaque = workload.is_some_and(|workload| self.is_opaque(name, workload, addr.port()));
                (opaque, Some(self.workload_endpoint(name, *addr, source)))
            }
            Asked::Address(addr) => (self.cluster.opaque_ports.contains(addr.port()), None),
            Asked::Instance(..) => match self.outbound(asked, source).map(|policy| policy.protocol) {
                Some(OutboundProtocol::Opaque(routes)) => (true, endpoint_of(&routes)),
                Some(OutboundProtocol::Detect { opaque, .. }) => (false, endpoint_of(&opaque)),
                Some(OutboundProtocol::Http1(http) | OutboundProtocol::Http2(http) | OutboundProtocol::Grpc(http)) => {
                    (false, http_endpoint_of(&http))
                }
                _ => (false, None),
            },
        }
    }
}

fn endpoint_of(routes: &[TcpRoute]) -> Option<Endpoint> {
    forwarded(routes.first()?.rules.first()?.backends.backends().next()?)
}

fn http_endpoint_of(http: &HttpRoutes) -> Option<Endpoint> {
    forwarded(&http.routes.first()?.rules.first()?.backends.backends().next()?.backend)
}

fn forwarded(backend: &Backend) -> Option<Endpoint> {
    match &backend.target {
        BackendTarget::Forward(endpoint) => Some((**endpoint).clone()),
        _ => None,
    }
}

/// An address that nobody in the cluster has: forwarded as it is.
fn forward_policy(addr: SocketAddr) -> OutboundPolicy {
    let meta = Meta::named("egress-fallback");
    let target = BackendTarget::Forward(Box::new(Endpoint::new(addr)));
    let backend = Backend { meta: meta.clone(), queue: QUEUE, target };
    OutboundPolicy { meta, protocol: detect(backend) }
}

/// To be found out.
fn detect(backend: Backend) -> OutboundProtocol {
    detect_with(single("http", backend.clone()), vec![default_tcp("opaque", backend)])
}

/// One backend, which has no breaker because there is no other.
fn single(label: &str, backend: Backend) -> HttpRoutes {
    let grpc = label == "grpc";
    let rule = HttpRule {
        matches: vec![if grpc { RequestMatch::default() } else { everything() }],
        backends: Distribution::First(vec![RouteBackend { backend, filters: Vec::new() }]),
        ..HttpRule::default()
    };
    let route = HttpRoute { meta: Meta::named(label), hosts: Vec::new(), rules: vec![rule], grpc };
    HttpRoutes { routes: vec![route], breaker: None }
}

fn detect_with(routes: HttpRoutes, opaque: Vec<TcpRoute>) -> OutboundProtocol {
    OutboundProtocol::Detect { timeout: DETECT_TIMEOUT, http1: routes.clone(), http2: routes, opaque }
}

/// The route of a port that has none.
fn default_http(label: &str, backend: Backend, service: &Service) -> HttpRoute {
    let grpc = label == "grpc";
    let rule = HttpRule {
        matches: vec![if grpc { RequestMatch::default() } else { everything() }],
        backends: Distribution::First(vec![RouteBackend { backend, filters: Vec::new() }]),
        timeouts: service.traffic().timeouts,
        retry: service.traffic().retry.clone(),
        ..HttpRule::default()
    };
    HttpRoute { meta: Meta::named(label), hosts: Vec::new(), rules: vec![rule], grpc }
}

fn default_tcp(label: &str, backend: Backend) -> TcpRoute {
    let rule = TcpRule { backends: Distribution::First(vec![backend]), refuse: None };
    TcpRoute { meta: Meta::named(label), snis: Vec::new(), rules: vec![rule] }
}

fn everything() -> RequestMatch {
    RequestMatch { path: Some(PathMatch::Prefix("/".into())), ..RequestMatch::default() }
}

const QUEUE: Queue = Queue { capacity: defaults::QUEUE_CAPACITY, failfast: defaults::QUEUE_FAILFAST };
/// For proxies that wait; Linkerd's.
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);
