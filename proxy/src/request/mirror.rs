//! Copies of requests to another service. Fire and forget: nobody waits for a mirror, and nobody gets its answer; whether
//! it had the status of the real one is counted.
//!
//! **Invariant:** copies are bounded in number, in bytes and in time; what would be more is not sent, and counted. A
//! request that is not copied carries nothing of this.

use super::ends::Upstream;
use super::{exchange, headers, open};
use crate::balance::{Balancer, Wants};
use crate::error::Error;
use crate::metrics::{MirrorLabels, MirrorMetrics};
use crate::shard::Shard;
use bytes::Bytes;
use gossamer_api::defaults;
use gossamer_api::policy::{Meta, Mirror as Policy};
use gossamer_engine::h1::Length;
use gossamer_engine::{Headers, RequestHead};
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Where copies of a rule's requests go.
pub struct Mirror {
    balancer: Rc<Balancer>,
    ratio: (u32, u32),
    metrics: Arc<MirrorMetrics>,
}

impl Mirror {
    /// Compiles a mirror of a route.
    pub fn new(shard: &Shard, route: &Meta, from: &Policy, balancer: Rc<Balancer>) -> Rc<Self> {
        let metrics = shard.metrics.mirror_scope(MirrorLabels { route, backend: &from.backend.meta });
        Rc::new(Mirror { balancer, ratio: from.ratio, metrics })
    }

    fn takes_its_turn(&self) -> bool {
        let (numerator, denominator) = self.ratio;
        numerator > 0 && (numerator >= denominator || fastrand::u32(..denominator) < numerator)
    }
}

/// How the real request ended, for comparison.
#[derive(Default)]
pub struct Verdict {
    /// HTTP status and gRPC code; `None`: not over.
    end: Cell<Option<(u16, Option<u16>)>>,
    over: Notify,
}

impl Verdict {
    /// It is over.
    pub fn reached(&self, status: u16, grpc: Option<u16>) {
        self.end.set(Some((status, grpc)));
        self.over.notify_waiters();
    }

    async fn wait(&self) -> (u16, Option<u16>) {
        loop {
            let over = self.over.notified();
            if let Some(end) = self.end.get() {
                return end;
            }
            over.await;
        }
    }
}

/// A copy whose body is still coming. Dropped before it is complete, it is not sent.
pub struct Copy {
    mirrors: Vec<(Rc<Mirror>, Slot)>,
    request: Request,
    bytes: usize,
    verdict: Rc<Verdict>,
}

/// What every mirror gets.
#[derive(Clone)]
struct Request {
    head: RequestHead,
    body: Vec<Bytes>,
    trailers: Option<Headers>,
}

/// A place among the copies in flight.
struct Slot(Rc<Shard>);

impl Slot {
    fn take(shard: &Rc<Shard>) -> Option<Self> {
        let taken = shard.mirrors.get();
        (taken < defaults::MIRRORS_IN_FLIGHT).then(|| {
            shard.mirrors.set(taken + 1);
            Slot(shard.clone())
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}

/// Begins to copy a request for those mirrors whose turn it is. The verdict is for whoever sees the real one end.
pub fn begin(shard: &Rc<Shard>, mirrors: &[Rc<Mirror>], head: &RequestHead) -> Option<(Box<Copy>, Rc<Verdict>)> {
    let mut chosen = Vec::new();
    for mirror in mirrors.iter().filter(|mirror| mirror.takes_its_turn()) {
        match Slot::take(shard) {
            Some(slot) => chosen.push((mirror.clone(), slot)),
            None => mirror.metrics.skipped.inc(),
        }
    }
    if chosen.is_empty() {
        return None;
    }
    let mut head = head.clone();
    // It is sent when the whole body is there, so that nobody has to be asked for it.
    head.headers.remove("expect");
    let verdict = Rc::new(Verdict::default());
    let request = Request { head, body: Vec::new(), trailers: None };
    Some((Box::new(Copy { mirrors: chosen, request, bytes: 0, verdict: verdict.clone() }), verdict))
}

impl Copy {
    /// Takes a chunk of the body; false: it is too much, and the copy is of no use any more.
    pub fn take(&mut self, chunk: &Bytes) -> bool {
        self.bytes += chunk.len();
        let fits = self.bytes <= defaults::MIRROR_MAX_BODY;
        if fits {
            self.request.body.push(chunk.clone());
        }
        fits
    }

    /// The body is complete: the copy goes out.
    pub fn send(mut self: Box<Self>, trailers: Option<&Headers>) {
        self.request.trailers = trailers.cloned();
        let (bytes, verdict) = (self.bytes, self.verdict.clone());
        for (mirror, slot) in std::mem::take(&mut self.mirrors) {
            let (request, verdict) = (self.request.clone(), verdict.clone());
            tokio::task::spawn_local(async move {
                match timeout(defaults::MIRROR_TIMEOUT, compare(&mirror, request, bytes, &verdict)).await {
                    Ok(Ok(true)) => mirror.metrics.same.inc(),
                    Ok(Ok(false)) => mirror.metrics.different.inc(),
                    Ok(Err(error)) => {
                        tracing::debug!(mirror = %mirror.balancer.meta, %error, "mirror failed");
                        mirror.metrics.failed.inc();
                    }
                    Err(_) => mirror.metrics.failed.inc(),
                }
                drop(slot);
            });
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.mirrors.iter().for_each(|(mirror, _)| mirror.metrics.skipped.inc());
    }
}

/// Sends a copy, takes its answer, and says whether that has the status of the real one.
async fn compare(mirror: &Mirror, request: Request, bytes: usize, real: &Verdict) -> Result<bool, Error> {
    let Request { mut head, body, trailers } = request;
    let balancer = &mirror.balancer;
    let pick = match balancer.pick(Instant::now(), &[]) {
        Some(pick) => pick,
        None => balancer.ready(Wants::Stream, &[]).await?,
    };
    let length = match (bytes, &trailers) {
        (0, None) => Length::Empty,
        (_, None) => Length::Known(bytes as u64),
        (_, Some(_)) => Length::Unknown,
    };
    let opened = open(&pick, &mut head, length, false).await;
    if let Err(error @ (Error::Connect(..) | Error::Handshake(..) | Error::WrongIdentity(..))) = &opened {
        balancer.refused(&pick, error, Instant::now());
    }
    let mut up = opened?.ok_or_else(|| Error::Overloaded(balancer.authority.clone()))?;
    pick.connected();
    pick.sent(Instant::now());
    balancer.alive();
    let upstream = |error| Error::Upstream(pick.info.addr, error);
    let mut sending = Sending { chunks: body.into_iter(), trailers, finished: length == Length::Empty };
    let mut response = gossamer_engine::ResponseHead::default();
    poll_fn(|cx| {
        // An endpoint may answer early and close: its answer counts more than our failure to send.
        if let Poll::Ready(Err(_)) = sending.poll(&mut up, cx) {
            sending.finished = true;
        }
        loop {
            response.clear();
            match ready!(up.poll_response(cx, &mut response)) {
                Ok(()) if response.is_informational() => {}
                result => return Poll::Ready(result),
            }
        }
    })
    .await
    .map_err(upstream)?;
    pick.observe(response.status, exchange::retry_after(&response), Instant::now());
    headers::response(&mut response);
    let mut grpc = crate::record::grpc_status(&response.headers);
    while let Some(chunk) = poll_fn(|cx| {
        let _ = sending.poll(&mut up, cx);
        up.poll_data(cx)
    })
    .await
    {
        drop(chunk.map_err(upstream)?);
    }
    if let Some(trailers) = up.take_trailers() {
        grpc = crate::record::grpc_status(&trailers).or(grpc);
    }
    pick.succeed(Instant::now());
    if let Upstream::H1(client, _) = up {
        pick.pool.give_back(*client);
    }
    Ok(real.wait().await == (response.status, grpc))
}

/// The rest of a body that is all there.
struct Sending {
    chunks: std::vec::IntoIter<Bytes>,
    trailers: Option<Headers>,
    finished: bool,
}

impl Sending {
    fn poll(&mut self, up: &mut Upstream, cx: &mut Context<'_>) -> Poll<Result<(), gossamer_engine::Error>> {
        while !self.finished {
            ready!(up.poll_capacity(cx))?;
            match self.chunks.next() {
                Some(chunk) => {
                    self.finished = self.chunks.as_slice().is_empty() && self.trailers.is_none();
                    up.send_data(chunk, self.finished)?;
                }
                None => {
                    up.send_end(self.trailers.as_ref())?;
                    self.finished = true;
                }
            }
        }
        up.poll_flush(cx)
    }
}

/// Holds a request back for as long as the delays whose turn it is say.
pub async fn delay(delays: &[gossamer_api::policy::Delay]) {
    for delay in delays {
        let (numerator, denominator) = delay.ratio;
        if numerator > 0 && (numerator >= denominator || fastrand::u32(..denominator) < numerator) {
            tokio::time::sleep(delay.time.min(defaults::DELAY_MAX)).await;
        }
    }
}
