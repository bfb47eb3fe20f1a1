//! Bytes between the two ends of an exchange: until the response's head, and from there to the end of both bodies.

use super::Failed;
use super::body::{Body, Side};
use super::ends::{Downstream, Upstream};
use crate::error::Error;
use crate::record::Record;
use gossamer_api::policy::Timeouts;
use gossamer_engine::ResponseHead;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Sends the request's body while waiting for the response's head; passes 1xx heads on. `peek`: trailers may follow
/// the head at once and say that all is to be tried again, so what follows it is waited for. Not while the client has
/// more to say: it may want the head first.
pub async fn head(
    down: &mut Downstream<'_>,
    up: &mut Upstream,
    body: &mut Body,
    response: &mut ResponseHead,
    peek: bool,
) -> Result<(), Side> {
    let mut peeking = false;
    poll_fn(|cx| {
        match body.poll_send(down, up, cx) {
            // An endpoint may answer early and close: its answer counts more than our failure to send.
            Poll::Ready(Err(Side::Endpoint(_))) => body.abandon(),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if peeking && up.poll_begun(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        while !peeking {
            response.clear();
            match up.poll_response(cx, response) {
                Poll::Ready(Ok(())) if response.is_informational() && response.status != 101 => {
                    down.send_informational(response);
                    let _ = down.poll_flush(cx).map_err(Side::Client)?;
                }
                Poll::Ready(Ok(())) if peek && body.is_complete() && up.poll_begun(cx).is_pending() => peeking = true,
                Poll::Ready(result) => return Poll::Ready(result.map_err(Side::Endpoint)),
                Poll::Pending => break,
            }
        }
        if body.is_complete()
            && let Poll::Ready(error) = down.poll_gone(cx)
        {
            return Poll::Ready(Err(Side::Client(error)));
        }
        Poll::Pending
    })
    .await
}

/// Moves the response's body to the client, and what is left of the request's body to the endpoint.
pub async fn stream(
    down: &mut Downstream<'_>,
    up: &mut Upstream,
    body: &mut Body,
    timeouts: &Timeouts,
    deadline: Option<Deadline>,
    record: &mut Record<'_>,
) -> Result<(), Error> {
    let mut response = Response::default();
    if timeouts.idle.is_none() && timeouts.response.is_none() && deadline.is_none() {
        return poll_fn(|cx| poll_both(down, up, body, &mut response, record, cx)).await;
    }
    // Rare, so boxed: timers are large.
    let limits = Box::pin(async {
        let response_end = timeouts.response.map(|timeout| (Instant::now() + timeout, "response", timeout));
        let end = earlier(deadline, response_end);
        let mut idle = pin!(sleep(timeouts.idle.unwrap_or(Duration::ZERO)));
        let work = poll_fn(|cx| {
            let before = response.moved + body.bytes;
            if let Poll::Ready(result) = poll_both(down, up, body, &mut response, record, cx) {
                return Poll::Ready(result);
            }
            let Some(limit) = timeouts.idle else { return Poll::Pending };
            if response.moved + body.bytes != before {
                idle.as_mut().reset(Instant::now() + limit);
            }
            ready!(idle.as_mut().poll(cx));
            Poll::Ready(Err(Error::Timeout("idle", limit)))
        });
        match end {
            Some((at, name, limit)) => timeout_at(at, work).await.unwrap_or(Err(Error::Timeout(name, limit))),
            None => work.await,
        }
    });
    limits.await
}

#[derive(Default)]
struct Response {
    ended: bool,
    moved: u64,
}

fn poll_both(
    down: &mut Downstream<'_>,
    up: &mut Upstream,
    body: &mut Body,
    response: &mut Response,
    record: &mut Record<'_>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Error>> {
    if !body.is_finished() {
        match body.poll_send(down, up, cx) {
            Poll::Ready(Err(Side::Client(error))) => return Poll::Ready(Err(Error::of_client(error))),
            Poll::Ready(Err(Side::Endpoint(_))) => body.abandon(),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
    }
    while !response.ended {
        ready!(down.poll_capacity(cx)).map_err(Error::of_client)?;
        let Poll::Ready(chunk) = up.poll_data(cx) else {
            // What came so far should not wait for what comes. A client that left frees the endpoint.
            if down.poll_flush(cx).map_err(Error::of_client)?.is_ready()
                && body.is_complete()
                && let Poll::Ready(error) = down.poll_gone(cx)
            {
                return Poll::Ready(Err(Error::of_client(error)));
            }
            return Poll::Pending;
        };
        match chunk.transpose().map_err(|error| record.upstream(error))? {
            Some(chunk) => {
                response.moved += chunk.len() as u64;
                record.received(chunk.len() as u64);
                let trailers = if up.is_end() { up.take_trailers() } else { None };
                let last = up.is_end() && trailers.is_none();
                down.send_data(chunk, last).map_err(Error::of_client)?;
                if let Some(trailers) = &trailers {
                    record.trailers(trailers);
                    down.send_end(Some(trailers)).map_err(Error::of_client)?;
                }
                response.ended = up.is_end();
            }
            None => {
                let trailers = up.take_trailers();
                if let Some(trailers) = &trailers {
                    record.trailers(trailers);
                }
                down.send_end(trailers.as_ref()).map_err(Error::of_client)?;
                response.ended = true;
            }
        }
    }
    // A response that is complete ends the exchange, even if the endpoint did not want all of the request.
    down.poll_last(cx).map_err(Error::of_client)
}

/// What `Retry-After` (seconds) or gRPC push-back (milliseconds) asks for.
pub fn retry_after(head: &ResponseHead) -> Option<Duration> {
    if head.status < 400 && !head.headers.contains("grpc-retry-pushback-ms") {
        return None;
    }
    let number = |name| head.headers.get_str(name).and_then(|value| value.trim().parse::<u32>().ok());
    let pushback = number("grpc-retry-pushback-ms").map(|ms| Duration::from_millis(ms.into()));
    pushback.or_else(|| number("retry-after").map(|seconds| Duration::from_secs(seconds.into())))
}

/// When something must be over, and the timeout that says so: name and length.
pub type Deadline = (Instant, &'static str, Duration);

/// The earlier of two deadlines.
pub fn earlier(one: Option<Deadline>, other: Option<Deadline>) -> Option<Deadline> {
    [one, other].into_iter().flatten().min_by_key(|(at, ..)| *at)
}

/// Until a deadline, or without one; without one no timer is made. The work is borrowed, so that it lies in its
/// caller's future once.
pub async fn before<T>(
    deadline: Option<Deadline>,
    work: Pin<&mut impl Future<Output = Result<T, Failed>>>,
) -> Result<T, Failed> {
    match deadline {
        None => work.await,
        Some((at, name, limit)) => {
            Box::pin(timeout_at(at, work)).await.unwrap_or_else(|_| Err(Failed::timeout(name, limit)))
        }
    }
}

impl Failed {
    fn timeout(name: &'static str, limit: Duration) -> Self {
        Failed { error: Error::Timeout(name, limit), endpoint: None, connecting: false }
    }
}
