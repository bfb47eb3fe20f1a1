//! The story of a request, from its head to the last byte of its answer. Start at [`handle`].
//!
//! **Invariant:** every request gets exactly one answer, the endpoint's or our own that says why not, and exactly one
//! [`Record`]; a response that was cut short is never passed off as complete.

pub mod asked;
pub mod body;
pub mod ends;
pub mod exchange;
pub mod headers;
pub mod mirror;
pub mod respond;
pub mod retry;
pub mod routes;
pub mod serve;

use crate::balance::{Balancer, Pick, Wants};
use crate::error::Error;
use crate::net::Stream;
use crate::policy::authorize::{self, Peer};
use crate::policy::filter::{self, Answer};
use crate::policy::path::has_dot_segments;
use crate::policy::route::Found;
use crate::record::{Record, grpc_status};
use crate::shard::{Destination, Port, Shard};
use body::Body;
use ends::{Downstream, Upstream};
use gossamer_api::endpoint::ProtocolHint;
use gossamer_api::keys;
use gossamer_engine::h1::{self, Length};
use gossamer_engine::message::Method;
use gossamer_engine::{RequestHead, ResponseHead, Version};
use retry::{Decider, Outcome};
use routes::Rule;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use tokio::time::{Instant, sleep};

/// A connection on which requests come.
pub struct Connection {
    /// Its data thread.
    pub shard: Rc<Shard>,
    /// The client.
    pub peer: Peer,
    /// The client's address.
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub target: SocketAddr,
    /// Which way.
    pub side: Side,
    /// Metric handles of this connection.
    pub metrics: Rc<crate::record::ConnectionMetrics>,
}

/// Which way requests go.
pub enum Side {
    /// From our workload.
    Outbound(Rc<Destination>),
    /// To it: the port's policy, and the workload itself.
    Inbound(Rc<Port>, Rc<Balancer>),
}

/// What becomes of the client's connection after an answer.
pub enum After {
    /// Whatever the protocol says.
    Ready,
    /// The answer was cut short: the client must see that.
    Abort,
    /// No HTTP any more: bytes, to this connection.
    Tunnel(Box<h1::Client<Stream>>),
}

/// Answers a request: with the service's response, or with our own that says why not.
///
/// Dropping the future cancels the request at the endpoint and is recorded.
pub async fn handle(conn: &Connection, head: &mut RequestHead, down: &mut Downstream<'_>) -> After {
    let mut record = Record::request(conn, head);
    let forwarded = {
        let forward = pin!(forward(conn, head, down, &mut record));
        conn.shard.drain.within_grace(forward).await.unwrap_or(Err(Error::ShuttingDown))
    };
    match forwarded {
        Ok(after) => after,
        Err(error) if record.is_answered() => {
            record.cut_short(head, &error);
            After::Abort
        }
        Err(error) => {
            let id = record.refused(head, &error);
            let version = if record.was_upgraded { Version::Http2 } else { head.version };
            respond::send(&error, id, version, head.is_grpc(), head.method == Method::HEAD, down);
            After::Ready
        }
    }
}

async fn forward(
    conn: &Connection,
    head: &mut RequestHead,
    down: &mut Downstream<'_>,
    record: &mut Record<'_>,
) -> Result<After, Error> {
    let upgrade = headers::upgrade(&head.headers);
    let (rule, found) = admit(conn, head, record).await?;
    if let Some(protocol) = &upgrade {
        head.headers.append("connection", "upgrade");
        head.headers.append("upgrade", protocol);
    }
    let asked = match rule.allow_l5d_request_headers {
        true => asked::take(&mut head.headers, rule.retry.as_ref(), rule.timeouts),
        false => None,
    };
    let (retry, timeouts) = match &asked {
        Some(asked) => (asked.retry.as_ref(), &asked.timeouts),
        None => (rule.retry.as_ref(), &rule.timeouts),
    };
    let decider = Decider { route: retry, method: &head.method.clone(), grpc: rule.grpc || head.is_grpc() };
    let tunnel = upgrade.is_some() || head.method == Method::CONNECT;
    let length = down.length(head);
    let mut body = Body::new(decider.max_body(), length == Length::Empty);
    if let Some(more) = &rule.more {
        Box::pin(mirror::delay(&more.delays)).await;
        if !tunnel && let Some((copy, verdict)) = mirror::begin(&conn.shard, &more.mirrors, head) {
            record.mirrored = Some(verdict);
            body.copy(copy);
        }
    }
    let deadline = timeouts.request.map(|timeout| (record.start + timeout, "request", timeout));
    let mut response = conn.shard.head();
    let mut tried: Vec<SocketAddr> = Vec::new();
    rule.budget.deposit(record.start);
    let plan = Plan { conn, rule: &rule, found, length, tunnel, peek: decider.wants_status() };

    let mut retries = 0;
    // Why nobody could be reached, should nobody become reachable in time.
    let mut cause = None;
    let (pick, mut up) = loop {
        let limit = retry.and_then(|retry| retry.timeout);
        let limit = limit.map(|timeout| (Instant::now() + timeout, "attempt", timeout));
        let outcome = {
            let attempt = pin!(attempt(&plan, head, &mut body, &tried, &mut response, down, record));
            exchange::before(exchange::earlier(deadline, limit), attempt).await
        };
        if let Err(Failed { error, endpoint: Some(addr), .. }) = &outcome {
            record.attempt_failed(head, *addr, error);
        }
        let wanted = match &outcome {
            _ if !may_retry(conn, &outcome) => false,
            Ok((_, up)) => {
                let late = || decider.wants_status().then(|| up.grpc_status()).flatten();
                let grpc = grpc_status(&response.headers).or_else(late);
                decider.wants(&Outcome::Response { status: response.status, grpc })
            }
            Err(Failed { error, .. }) => decider.wants(&Outcome::Error(error)),
        };
        let free = matches!(&outcome, Err(failed) if failed.connecting);
        if !wanted || tunnel || !body.can_rewind() || !(free || retries < decider.limit()) {
            break outcome.map_err(|failed| match failed.error {
                Error::NotReady(..) => cause.map_or(failed.error, |cause: Box<Error>| *cause),
                error => error,
            })?;
        }
        if !free {
            if !rule.budget.withdraw(Instant::now()) {
                record.retry_refused();
                break outcome.map_err(|failed| failed.error)?;
            }
            retries += 1;
            record.retried();
        }
        let hint = outcome.is_ok().then(|| exchange::retry_after(&response)).flatten();
        match outcome {
            // Its stream is given back now, not after the wait.
            Ok((pick, up)) => {
                record.attempt_failed(head, pick.info.addr, format_args!("answered {}", response.status));
                tried.push(pick.info.addr);
                drop(up);
            }
            Err(Failed { endpoint: Some(addr), error, .. }) => {
                tried.push(addr);
                cause = Some(Box::new(error));
            }
            Err(_) => {}
        }
        let wait = if free { std::time::Duration::ZERO } else { decider.wait(retries, hint, fastrand::f32()) };
        if !wait.is_zero() {
            let wait = pin!(async {
                sleep(wait).await;
                Ok::<(), Failed>(())
            });
            Box::pin(exchange::before(deadline, wait)).await.map_err(|failed| failed.error)?;
        }
        body.rewind();
    };

    body.commit();
    if conn.shard.drain.is_begun()
        && let Downstream::H1(server) = down
    {
        // The drain began while the endpoint worked: the client should not count on this connection.
        server.set_close();
    }
    if headers::response(&mut response) {
        pick.pool.close();
    }
    respond_with(&rule, head, &mut response, &pick, &up, down, record)?;
    let switched = response.status == 101 || (head.method == Method::CONNECT && (200..300).contains(&response.status));
    if switched && let Downstream::H1(server) = down {
        server.flush().await.map_err(Error::of_client)?;
        return Ok(match up {
            Upstream::H1(client, _) => After::Tunnel(client),
            Upstream::H2(_) => After::Abort,
        });
    }
    let streamed = exchange::stream(down, &mut up, &mut body, timeouts, deadline, record).await;
    let complete = streamed.is_ok();
    conn.shard.give_head(response);
    record.finish(&pick, head, streamed);
    if let Upstream::H1(client, _) = up
        && complete
    {
        pick.pool.give_back(*client);
    }
    Ok(if complete { After::Ready } else { After::Abort })
}

/// Finds the rule for a request, checks that the client may, and applies the rule's filters.
async fn admit(conn: &Connection, head: &mut RequestHead, record: &mut Record<'_>) -> Result<(Rc<Rule>, Found), Error> {
    let (rule, found) = match &conn.side {
        Side::Outbound(destination) => {
            let policy = match destination.current() {
                Some(policy) => policy,
                None => Box::pin(destination.policy()).await?,
            };
            headers::outbound(head);
            let routes = if head.version == Version::Http2 { &policy.http2 } else { &policy.http1 };
            let Some((rule, found)) = routes.find(head) else {
                // A target that takes no HTTP may say why it takes nothing at all.
                let refused = policy.tcp.choose(None, &destination.target.to_string()).err();
                return Err(refused.unwrap_or_else(|| Error::NoRoute(policy.meta.to_string())));
            };
            (rule.clone(), found)
        }
        Side::Inbound(port, _) => {
            let policy = match port.current() {
                Some(policy) => policy,
                None => Box::pin(port.policy()).await?,
            };
            record.was_upgraded = headers::inbound(head, conn.peer.tls.identity().map(|identity| identity.as_str()));
            if policy.http.by_path() && has_dot_segments(head.path_only()) {
                return Err(Error::BadRequest("dot segments in a path that policy looks at"));
            }
            let (rule, found) = policy.http.find(head).ok_or_else(|| Error::NoRoute(policy.meta.to_string()))?;
            let Some(by) = authorize::authorize(&rule.authorizations, &conn.peer) else {
                record.denied(&policy, rule);
                return Err(Error::Denied { client: client_name(&conn.peer), server: policy.meta.to_string() });
            };
            record.allowed(&policy, rule, &rule.authorizations[by]);
            if let Some(limit) = &policy.limit
                && let Err(which) = limit.check(conn.peer.tls.identity(), Instant::now())
            {
                record.limited(&policy, rule, &rule.authorizations[by], which);
                return Err(Error::RateLimited(policy.meta.to_string()));
            }
            (rule.clone(), found)
        }
    };
    record.matched(&rule);
    apply(&rule, &rule.filters, head, &found)?;
    Ok((rule, found))
}

fn apply(
    rule: &Rule,
    filters: &[gossamer_api::policy::Filter],
    head: &mut RequestHead,
    found: &Found,
) -> Result<(), Error> {
    if filters.is_empty() {
        return Ok(());
    }
    filter::apply_request(filters, head, found, &mut |denominator| fastrand::u32(..denominator.max(1))).map_err(
        |answer| match answer {
            Answer::Redirect { status, location } => Error::Redirect { status, location },
            Answer::Fail { status, message } => Error::Injected { status, message },
            Answer::Missing(id) => Error::Extension(rule.meta.to_string(), id),
        },
    )
}

/// Retrying is the client's proxy's job, which may know another endpoint; proxies on both sides that did it would
/// multiply. Inbound only what the workload certainly has not seen is sent again: an idle connection closed as we used
/// it, or a stream was one too many for a workload that had not yet said how many it takes.
fn may_retry(conn: &Connection, outcome: &Result<(Pick, Upstream), Failed>) -> bool {
    let unseen = |failed: &Failed| matches!(&failed.error, Error::Upstream(_, error) if error.unprocessed());
    matches!(conn.side, Side::Outbound(_)) || outcome.as_ref().is_err_and(unseen)
}

/// Why an attempt failed.
pub struct Failed {
    error: Error,
    /// Where it was tried.
    endpoint: Option<SocketAddr>,
    /// No request was sent: trying elsewhere costs no budget, and stops when the balancer has nobody left.
    connecting: bool,
}

/// What all attempts at a request have in common.
struct Plan<'a> {
    conn: &'a Connection,
    rule: &'a Rc<Rule>,
    found: Found,
    length: Length,
    /// Bytes follow the head instead of a body.
    tunnel: bool,
    /// The answer's trailers may call for another attempt.
    peek: bool,
}

/// One attempt: choose, connect, send, and wait for the response's head.
async fn attempt(
    plan: &Plan<'_>,
    head: &mut RequestHead,
    body: &mut Body,
    tried: &[SocketAddr],
    response: &mut ResponseHead,
    down: &mut Downstream<'_>,
    record: &mut Record<'_>,
) -> Result<(Pick, Upstream), Failed> {
    let &Plan { conn, rule, found, length, tunnel, peek } = plan;
    let early = |error| Failed { error, endpoint: None, connecting: false };
    let mut filtered = None;
    // What the backend of this attempt does to responses.
    let mut after: &[gossamer_api::policy::Filter] = &[];
    let balancer = match &conn.side {
        Side::Inbound(_, local) => local,
        Side::Outbound(_) => {
            let backend = rule.backends.choose(&rule.meta).map_err(early)?;
            if !backend.filters.is_empty() {
                let mut copy = head.clone();
                apply(rule, &backend.filters, &mut copy, &found).map_err(early)?;
                filtered = Some(copy);
                after = &backend.filters;
            }
            // One copy of a request, however often it is tried and wherever it goes.
            if !backend.mirrors.is_empty()
                && !tunnel
                && record.mirrored.is_none()
                && let Some((copy, verdict)) =
                    mirror::begin(&conn.shard, &backend.mirrors, filtered.as_ref().unwrap_or(head))
            {
                record.mirrored = Some(verdict);
                body.copy(copy);
            }
            &backend.balancer
        }
    };
    let head = filtered.as_mut().unwrap_or(head);
    let fail = |pick: &Pick, error, connecting| Failed { error, endpoint: Some(pick.info.addr), connecting };
    let inbound = matches!(conn.side, Side::Inbound(..));
    let own = head.version != Version::Http2 && (tunnel || inbound);
    let wants = if own { Wants::Connection } else { Wants::Stream };
    let (pick, mut up) = loop {
        let pick = match balancer.pick_for(wants, Instant::now(), tried) {
            Some(pick) => pick,
            None => Box::pin(balancer.ready(wants, tried)).await.map_err(early)?,
        };
        require_identity(head, &pick).map_err(early)?;
        record.attempt(balancer, &pick, head);
        match open(&pick, head, length, tunnel).await {
            Ok(Some(up)) => {
                pick.connected();
                pick.sent(Instant::now());
                balancer.alive();
                break (pick, up);
            }
            // Many waited for its connection, and others have its streams now: wait for one, or go elsewhere.
            Ok(None) => {}
            Err(error) => {
                let connecting = matches!(error, Error::Connect(..) | Error::Handshake(..) | Error::WrongIdentity(..));
                if connecting {
                    balancer.refused(&pick, &error, Instant::now());
                }
                pick.fail(Instant::now());
                return Err(fail(&pick, error, connecting));
            }
        }
    };
    match exchange::head(down, &mut up, body, response, peek).await {
        Ok(()) => {
            let now = Instant::now();
            pick.observe(response.status, exchange::retry_after(response), now);
            filter::apply_response(after, response);
            Ok((pick, up))
        }
        Err(body::Side::Client(error)) => Err(early(Error::of_client(error))),
        Err(body::Side::Endpoint(error)) => {
            pick.fail(Instant::now());
            let error = match error {
                // An idle connection that closed as we used it: nothing was processed, if the method allows to say so.
                gossamer_engine::Error::ClosedBeforeResponse if !up.is_reused() => {
                    gossamer_engine::Error::Io(std::io::ErrorKind::UnexpectedEof)
                }
                error => error,
            };
            Err(fail(&pick, Error::Upstream(pick.info.addr, error), false))
        }
    }
}

/// Who a client is, as errors name it.
pub fn client_name(peer: &Peer) -> String {
    peer.tls.identity().map_or_else(|| peer.ip.to_string(), ToString::to_string)
}

/// A client may insist on who serves it (`l5d-require-id`).
fn require_identity(head: &RequestHead, pick: &Pick) -> Result<(), Error> {
    match head.headers.get_str(keys::HEADER_REQUIRE_ID) {
        Some(required) if pick.info.tls.as_ref().is_none_or(|tls| tls.identity.as_str() != required) => {
            Err(Error::RequiredIdentity(required.to_string()))
        }
        _ => Ok(()),
    }
}

/// Sends the request's head to an endpoint, on the connection that suits both. `None`: it has no stream left.
async fn open(pick: &Pick, head: &mut RequestHead, length: Length, tunnel: bool) -> Result<Option<Upstream>, Error> {
    if let Some(authority) = &pick.info.authority_override {
        // Another attempt may go where the request has its own name.
        let mut renamed = head.clone();
        renamed.set_authority(authority);
        return Box::pin(send(pick, &mut renamed, length, tunnel)).await;
    }
    send(pick, head, length, tunnel).await
}

async fn send(pick: &Pick, head: &mut RequestHead, length: Length, tunnel: bool) -> Result<Option<Upstream>, Error> {
    let addr = pick.info.addr;
    let upgrade = match headers::original_version(head) {
        // HTTP/1 travels inside HTTP/2 to a proxy that takes it: many requests, one connection.
        Some(version) if pick.info.hint == ProtocolHint::Http2 && pick.info.tls.is_some() && !tunnel => Some(version),
        Some(_) => {
            let (mut client, reused) = pick.pool.http1().await?;
            client.send_request(head, length);
            if length == Length::Empty {
                client.send_end(None);
            }
            return Ok(Some(Upstream::H1(Box::new(client), reused)));
        }
        None => None,
    };
    let Some(client) = pick.pool.http2().await? else { return Ok(None) };
    if let Some(version) = upgrade {
        head.headers.set(keys::HEADER_ORIG_PROTO, version);
    }
    let opened = client.open(head, length == Length::Empty);
    if upgrade.is_some() {
        head.headers.remove(keys::HEADER_ORIG_PROTO);
    }
    opened.map(|stream| Some(Upstream::H2(stream))).map_err(|error| Error::Upstream(addr, error))
}

/// Sends the response's head to the client.
fn respond_with(
    rule: &Rc<Rule>,
    head: &RequestHead,
    response: &mut ResponseHead,
    pick: &Pick,
    up: &Upstream,
    down: &mut Downstream<'_>,
    record: &mut Record<'_>,
) -> Result<(), Error> {
    if !rule.filters.is_empty() {
        filter::apply_response(&rule.filters, response);
    }
    if record.was_upgraded {
        response
            .headers
            .append(keys::HEADER_ORIG_PROTO, if head.version == Version::Http10 { "HTTP/1.0" } else { "HTTP/1.1" });
    }
    // HTTP/2 streams also tell here what the client did wrong meanwhile.
    down.send_response(response, up.length(response)).map_err(|error| match down {
        Downstream::H1(_) => Error::of_answer(pick.info.addr, error),
        Downstream::H2(_) => Error::of_client(error),
    })?;
    record.responded(response);
    Ok(())
}
