//! The story of a question: ask, take what comes, ask again when the stream ends.

use super::Discovered;
use super::cache::Answer;
use super::link::{Backoff, Link};
use gossamer_api::defaults;
use std::convert::Infallible;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// A kind of question that the control plane answers with a stream.
pub(super) trait Question: Clone + Send + Sync + 'static {
    /// What is asked for.
    type Key: Display + Hash + Eq + Send + Sync + 'static;
    /// A message of the stream.
    type Message: Send + 'static;
    /// What they add up to.
    type Answer: Send + Sync + 'static;

    /// Opens the stream.
    fn ask(
        &self,
        key: &Self::Key,
        channel: Channel,
    ) -> impl Future<Output = Result<Streaming<Self::Message>, Status>> + Send;

    /// Takes a message over. `first`: none of this stream counted so far; returns whether this one does.
    fn take(
        &self,
        key: &Self::Key,
        message: Self::Message,
        first: bool,
        state: &watch::Sender<Discovered<Self::Answer>>,
    ) -> bool;

    /// Whether `NOT_FOUND` takes back what was known.
    const FORGETS: bool;
}

/// Keeps the answer to `key` up to date. Never ends by itself; dropped with its place in the cache.
pub(super) async fn follow<Q: Question>(question: Q, key: Q::Key, link: Arc<Link>, answer: Arc<Answer<Q::Answer>>) {
    let never = tokio::select! {
        never = keep_asking(&question, &key, &link, &answer) => never,
        never = lose_patience(&link, &answer.state) => never,
    };
    match never {}
}

async fn keep_asking<Q: Question>(question: &Q, key: &Q::Key, link: &Link, answer: &Answer<Q::Answer>) -> Infallible {
    let mut backoff = Backoff::default();
    loop {
        let status = match link.open(|channel| question.ask(key, channel)).await {
            Err(status) => status,
            Ok((mut stream, lease)) => {
                let mut first = true;
                let status = loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            if question.take(key, message, first, &answer.state) {
                                first = false;
                            }
                            backoff.reset();
                        }
                        Ok(None) => break Status::ok("the stream ended"),
                        Err(status) => break status,
                    }
                };
                link.broken(&lease, &status);
                status
            }
        };
        tracing::debug!(%key, code = ?status.code(), message = status.message(), "asking again");
        if is_refusal(&status) {
            absent::<Q>(key, &status, &answer.state);
            // Somebody who asks anew wants to know whether it exists by now.
            tokio::time::sleep(RECHECK_MIN).await;
            let _ = tokio::time::timeout(RECHECK_MAX, answer.asked.notified()).await;
        } else {
            complain(link, &answer.state, |state| matches!(state, Discovered::Failed(_)));
            tokio::time::sleep(backoff.wait()).await;
        }
    }
}

/// Whoever waits for a first answer learns why there is none.
async fn lose_patience<T>(link: &Link, state: &watch::Sender<Discovered<T>>) -> Infallible {
    tokio::time::sleep(defaults::DISCOVERY_TIMEOUT).await;
    complain(link, state, |state| matches!(state, Discovered::Pending));
    std::future::pending().await
}

fn complain<T>(link: &Link, state: &watch::Sender<Discovered<T>>, when: impl Fn(&Discovered<T>) -> bool) {
    let reason = link.complaint();
    state.send_if_modified(|state| {
        let same = matches!(state, Discovered::Failed(old) if *old == reason);
        let change = when(state) && !same;
        if change {
            *state = Discovered::Failed(reason);
        }
        change
    });
}

/// The service has no answer and would have none a moment later. Source: linkerd2-proxy (policy/api.rs); its inbound side
/// goes on asking after `NOT_FOUND`, which ours does as well, only less often.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented)
}

/// Only `NOT_FOUND` says that something is gone; the others say that the question is not understood, which is no
/// reason to give up what was known.
fn absent<Q: Question>(key: &Q::Key, status: &Status, state: &watch::Sender<Discovered<Q::Answer>>) {
    let forget = Q::FORGETS && status.code() == Code::NotFound;
    state.send_if_modified(|state| {
        let change = match state {
            Discovered::Absent => false,
            Discovered::Known(_) => forget,
            Discovered::Pending | Discovered::Failed(_) => true,
        };
        if change {
            tracing::debug!(%key, code = ?status.code(), message = status.message(), "not known to the control plane");
            *state = Discovered::Absent;
        }
        change
    });
}

/// Soonest and latest that something absent is asked for again.
const RECHECK_MIN: Duration = Duration::from_secs(1);
const RECHECK_MAX: Duration = Duration::from_secs(30);
