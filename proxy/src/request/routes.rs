//! Routes as the request path uses them: compiled once per policy change, indexed by the router's answer.

use crate::balance::{Balancer, Rules};
use crate::error::Error;
use crate::metrics::RouteMetrics;
use crate::policy::limit::RetryBudget;
use crate::policy::route::{Found, Router};
use crate::request::mirror::Mirror;
use crate::shard::Shard;
use gossamer_api::authorization::{Authorization, InboundHttp};
use gossamer_api::policy::{
    Backend, BackendTarget, Breaker, Delay, Distribution, Extension, Filter, HttpRoutes, Meta, Mirror as Policy,
    RequestMatch, Retry, TcpRoute, Timeouts,
};
use gossamer_engine::RequestHead;
use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;
use tokio::time::Instant;

/// Compiled routes of one target or server.
pub struct Routes {
    router: Router,
    /// By route, then by rule.
    rules: Vec<Vec<Rc<Rule>>>,
    /// Some rule looks at paths.
    by_path: bool,
}

/// How a matched request is treated.
pub struct Rule {
    /// The route that decided.
    pub meta: Meta,
    /// Failures are gRPC statuses.
    pub grpc: bool,
    /// Applied to the request before a backend is chosen.
    pub filters: Vec<Filter>,
    /// Where to.
    pub backends: Backends,
    /// How long.
    pub timeouts: Timeouts,
    /// Whether again; `None`: only where it is safe.
    pub retry: Option<Retry>,
    /// What retries may cost.
    pub budget: RetryBudget,
    /// Clients may ask for other retries and timeouts.
    pub allow_l5d_request_headers: bool,
    /// Who may: inbound only.
    pub authorizations: Vec<Authorization>,
    /// What else happens to requests; nearly always nothing.
    pub more: Option<Box<More>>,
    /// Counts the requests of a route that somebody wrote; outbound only, found with the first of them.
    pub metrics: OnceCell<Arc<RouteMetrics>>,
}

/// What a route's extensions do beside changing the head.
#[derive(Default)]
pub struct More {
    /// Where copies go.
    pub mirrors: Vec<Rc<Mirror>>,
    /// How long requests are held back.
    pub delays: Vec<Delay>,
}

/// Where a rule's requests go.
pub enum Backends {
    /// The workload beside us.
    Local,
    /// Nowhere.
    None,
    /// The first that is available.
    First(Vec<RuleBackend>),
    /// By weight; the sum of all weights.
    Weighted(Vec<(RuleBackend, u32)>, u32),
}

/// One backend of a rule.
pub struct RuleBackend {
    /// Its endpoints.
    pub balancer: Rc<Balancer>,
    /// Applied after the rule's.
    pub filters: Vec<Filter>,
    /// Where copies of requests to this backend go.
    pub mirrors: Vec<Rc<Mirror>>,
    /// The object does not exist or may not be used; says which.
    pub invalid: Option<String>,
}

fn invalid(backend: &Backend) -> Option<String> {
    matches!(backend.target, BackendTarget::Invalid).then(|| format!("backend {} can't be used", backend.meta))
}

impl Routes {
    /// Compiles outbound routes.
    pub fn outbound(shard: &Rc<Shard>, routes: &HttpRoutes) -> Self {
        let router = Router::new(
            routes.routes.iter().map(|r| (r.hosts.as_slice(), r.rules.iter().map(|rule| rule.matches.as_slice()))),
        );
        let rules = routes
            .routes
            .iter()
            .map(|route| {
                let rules = route.rules.iter().map(|rule| {
                    let mirror = |mirror: &Policy| {
                        let balancer = shard.balancer(&mirror.backend, routes.breaker);
                        Mirror::new(shard, &route.meta, mirror, balancer)
                    };
                    let (filters, more) = extended(&rule.filters, mirror);
                    Rc::new(Rule {
                        meta: route.meta.clone(),
                        grpc: route.grpc,
                        filters,
                        backends: backends(&rule.backends, |backend| {
                            let (filters, more) = extended(&backend.filters, mirror);
                            RuleBackend {
                                balancer: shard.balancer(&backend.backend, routes.breaker),
                                filters,
                                mirrors: more.map(|more| more.mirrors).unwrap_or_default(),
                                invalid: invalid(&backend.backend),
                            }
                        }),
                        timeouts: rule.timeouts,
                        retry: rule.retry.clone(),
                        allow_l5d_request_headers: rule.allow_l5d_request_headers,
                        budget: RetryBudget::standard(Instant::now()),
                        authorizations: Vec::new(),
                        more,
                        metrics: OnceCell::new(),
                    })
                });
                rules.collect()
            })
            .collect();
        let by_path =
            looks_at_paths(routes.routes.iter().flat_map(|route| &route.rules).flat_map(|rule| &rule.matches));
        Routes { router, rules, by_path }
    }

    /// Compiles a server's routes; without any there is one that matches everything, with the server's own
    /// authorizations.
    pub fn inbound(http: &InboundHttp, meta: &Meta, authorizations: &[Authorization], grpc: bool) -> Self {
        let rule = |meta: &Meta, grpc: bool, filters: &[Filter], authorizations: &[Authorization]| {
            Rc::new(Rule {
                meta: meta.clone(),
                grpc,
                filters: filters.to_vec(),
                backends: Backends::Local,
                timeouts: Timeouts::default(),
                retry: None,
                allow_l5d_request_headers: false,
                budget: RetryBudget::standard(Instant::now()),
                authorizations: authorizations.to_vec(),
                more: None,
                metrics: OnceCell::new(),
            })
        };
        if http.routes.is_empty() {
            let router = Router::new([(&[][..], [&[][..]])]);
            return Routes { router, rules: vec![vec![rule(meta, grpc, &[], authorizations)]], by_path: false };
        }
        let router = Router::new(
            http.routes.iter().map(|r| (r.hosts.as_slice(), r.rules.iter().map(|rule| rule.matches.as_slice()))),
        );
        let rules = http
            .routes
            .iter()
            .map(|route| {
                let rules = route.rules.iter();
                rules
                    .map(|r| {
                        // Either the route's or the server's let a request in (linkerd2-proxy inbound/src/policy).
                        let both = [&route.authorizations[..], authorizations].concat();
                        rule(&route.meta, route.grpc, &r.filters, &both)
                    })
                    .collect()
            })
            .collect();
        let by_path = looks_at_paths(http.routes.iter().flat_map(|route| &route.rules).flat_map(|rule| &rule.matches));
        Routes { router, rules, by_path }
    }

    /// The rule for a request, and how it matched.
    pub fn find(&self, head: &RequestHead) -> Option<(&Rc<Rule>, Found)> {
        let found = self.router.find(head)?;
        Some((self.rules.get(found.route)?.get(found.rule)?, found))
    }

    /// True when a request's path decides which rule it falls under.
    pub fn by_path(&self) -> bool {
        self.by_path
    }

    /// What could not be compiled, for the log.
    pub fn problems(&self) -> &[String] {
        self.router.problems()
    }
}

/// Parts what changes heads from the rest, so that a request looks at neither in vain.
fn extended(from: &[Filter], mirror: impl Fn(&Policy) -> Rc<Mirror>) -> (Vec<Filter>, Option<Box<More>>) {
    let (mut filters, mut more) = (Vec::new(), More::default());
    for filter in from {
        match filter {
            Filter::Extension(extension) => match &**extension {
                Extension::Mirror(of) => more.mirrors.push(mirror(of)),
                Extension::Delay(delay) => more.delays.push(delay.clone()),
                Extension::Rewrite(_) => filters.push(filter.clone()),
                Extension::ResponseHeaders(edit) => filters.push(Filter::ResponseHeaders(edit.clone())),
            },
            // What may be missing is.
            Filter::Named(name) if !name.required => {}
            _ => filters.push(filter.clone()),
        }
    }
    let empty = more.mirrors.is_empty() && more.delays.is_empty();
    (filters, (!empty).then(|| Box::new(more)))
}

fn looks_at_paths<'a>(mut matches: impl Iterator<Item = &'a RequestMatch>) -> bool {
    matches.any(|a_match| a_match.path.is_some())
}

/// Compiled TCP routes.
pub struct TcpRoutes {
    /// As policy says.
    pub routes: Vec<TcpRoute>,
    backends: Vec<Backends>,
}

impl TcpRoutes {
    /// Compiles the first rule of each route.
    pub fn new(shard: &Rc<Shard>, routes: &[TcpRoute]) -> Self {
        let compile = |route: &TcpRoute| match route.rules.first() {
            Some(rule) => backends(&rule.backends, |backend: &Backend| RuleBackend {
                balancer: shard.balancer(backend, None),
                filters: Vec::new(),
                mirrors: Vec::new(),
                invalid: invalid(backend),
            }),
            None => Backends::None,
        };
        TcpRoutes { routes: routes.to_vec(), backends: routes.iter().map(compile).collect() }
    }

    /// Where a connection goes; for TLS by server name.
    pub fn choose(&self, sni: Option<&str>, target: &str) -> Result<(&RuleBackend, &Meta), Error> {
        use gossamer_api::policy::{HostMatch, Refuse};
        let matches = |route: &TcpRoute| match sni {
            _ if route.snis.is_empty() => Some(0),
            None => None,
            Some(sni) => route.snis.iter().filter_map(|host| specificity(host, sni)).max(),
        };
        fn specificity(host: &HostMatch, sni: &str) -> Option<usize> {
            match host {
                HostMatch::Exact(name) => name.eq_ignore_ascii_case(sni).then_some(usize::MAX),
                HostMatch::Suffix(suffix) => {
                    let head = sni.len().checked_sub(suffix.len())?;
                    let below = head > 0 && sni.as_bytes()[head - 1] == b'.';
                    (below && sni[head..].eq_ignore_ascii_case(suffix)).then_some(suffix.len() + 1)
                }
            }
        }
        let best = self.routes.iter().enumerate().filter_map(|(i, route)| Some((matches(route)?, i)));
        // The most specific; of equal ones the first.
        let (_, index) = best
            .max_by_key(|(specificity, i)| (*specificity, std::cmp::Reverse(*i)))
            .ok_or_else(|| Error::NoRoute(target.to_string()))?;
        let route = &self.routes[index];
        match route.rules.first().and_then(|rule| rule.refuse.as_ref()) {
            Some(Refuse::Forbidden) => return Err(Error::Forbidden(target.to_string())),
            Some(Refuse::Invalid(why)) => return Err(Error::InvalidPolicy(route.meta.to_string(), why.clone())),
            None => {}
        }
        Ok((self.backends[index].choose(&route.meta)?, &route.meta))
    }
}

fn backends<B>(distribution: &Distribution<B>, compile: impl Fn(&B) -> RuleBackend) -> Backends {
    match distribution {
        Distribution::Empty => Backends::None,
        Distribution::First(all) => Backends::First(all.iter().map(compile).collect()),
        Distribution::Random(all) => {
            let total = all.iter().map(|(_, weight)| *weight).fold(0, u32::saturating_add);
            Backends::Weighted(all.iter().map(|(backend, weight)| (compile(backend), *weight)).collect(), total)
        }
    }
}

impl Backends {
    /// One of them. Errors: there is none, or it is the turn of one that does not exist: its share of requests fails.
    pub fn choose(&self, meta: &Meta) -> Result<&RuleBackend, Error> {
        let backend = self.turn(meta)?;
        match &backend.invalid {
            Some(why) => Err(Error::InvalidPolicy(meta.to_string(), why.clone())),
            None => Ok(backend),
        }
    }

    fn turn(&self, meta: &Meta) -> Result<&RuleBackend, Error> {
        let none = || Error::NoEndpoints(format!("{meta} (no backend)"));
        match self {
            Backends::Local | Backends::None => Err(none()),
            Backends::First(all) if all.len() == 1 => Ok(&all[0]),
            Backends::First(all) => {
                let now = Instant::now();
                all.iter().find(|backend| backend.balancer.is_available(now)).or(all.first()).ok_or_else(none)
            }
            Backends::Weighted(all, total) => {
                if *total == 0 {
                    return Err(none());
                }
                let mut roll = if all.len() == 1 { 0 } else { fastrand::u32(..*total) };
                for (backend, weight) in all {
                    match roll.checked_sub(*weight) {
                        Some(rest) => roll = rest,
                        None => return Ok(backend),
                    }
                }
                Err(none())
            }
        }
    }
}

/// The rules of a backend's balancer.
pub fn rules(backend: &Backend, breaker: Option<Breaker>) -> Rules {
    let load = match &backend.target {
        BackendTarget::Balance { load, .. } => *load,
        BackendTarget::Forward(_) | BackendTarget::Invalid => Rules::default().load,
    };
    Rules { load, breaker, queue: backend.queue }
}
