//! One of the replicas writes: the holder of a Lease.
//!
//! A lease counts as ended when nobody has changed it for its whole duration *as seen here*, so clocks need not agree.
//!
//! **Invariant:** whoever could not renew for [`GIVE_UP`] does not act as holder any more, before another may.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Says whether this process holds the lease.
pub(super) type Held = watch::Receiver<bool>;

/// Tries to hold the lease for as long as this runs.
pub(super) struct Holder {
    leases: Api<Lease>,
    me: String,
    held: watch::Sender<bool>,
    /// The last change of the lease, and when it was seen here.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
}

impl Holder {
    /// `me` must be unique: the pod's name.
    pub(super) fn new(client: Client, namespace: &str, me: &str) -> (Self, Held) {
        let (held, receiver) = watch::channel(false);
        (
            Holder { leases: Api::namespaced(client, namespace), me: me.into(), held, seen: None, renewed: None },
            receiver,
        )
    }

    pub(super) async fn run(&mut self) {
        let mut told = String::new();
        loop {
            let result = timeout(TIMEOUT, self.turn()).await.unwrap_or_else(|_| Err("no answer in time".into()));
            let now = Instant::now();
            match result {
                Ok(held) => {
                    self.renewed = held.then_some(now);
                    told.clear();
                }
                Err(error) => {
                    if error != told {
                        tracing::warn!(lease = LEASE, error, "not renewed; statuses are written by its holder alone");
                    }
                    told = error;
                }
            }
            let held = self.renewed.is_some_and(|at| now.duration_since(at) < GIVE_UP);
            self.held.send_if_modified(|present| {
                if *present != held {
                    tracing::info!(lease = LEASE, held, "the writer of statuses and events");
                }
                std::mem::replace(present, held) != held
            });
            sleep(RENEW).await;
        }
    }

    /// Gives the lease back, so that the next need not wait.
    pub(super) async fn release(&mut self) {
        if self.renewed.is_none() {
            return;
        }
        self.held.send_replace(false);
        if let Ok(Some(mut lease)) = self.leases.get_opt(LEASE).await
            && holder(&lease) == self.me
        {
            lease.spec.get_or_insert_default().holder_identity = Some(String::new());
            let _ = self.leases.replace(LEASE, &PostParams::default(), &lease).await;
        }
    }

    /// True when the lease is ours now.
    async fn turn(&mut self) -> Result<bool, String> {
        let lease = self.leases.get_opt(LEASE).await.map_err(|error| error.to_string())?;
        let now = Instant::now();
        let Some(mut lease) = lease else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(LEASE.into()), ..ObjectMeta::default() },
                spec: Some(taken(None, &self.me)),
            };
            return settled(self.leases.create(&PostParams::default(), &lease).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, at)) if *seen == version => *at,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        if !may_take(&lease, &self.me, now.duration_since(since)) {
            return Ok(false);
        }
        lease.spec = Some(taken(lease.spec.take(), &self.me));
        settled(self.leases.replace(LEASE, &PostParams::default(), &lease).await)
    }
}

/// Another was faster: that is no failure.
fn settled(result: kube::Result<Lease>) -> Result<bool, String> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// `unchanged`: for how long we have seen it as it is.
fn may_take(lease: &Lease, me: &str, unchanged: Duration) -> bool {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(DURATION.as_secs() as i32);
    let duration = Duration::from_secs(seconds.clamp(1, 3600) as u64);
    let holder = holder(lease);
    holder.is_empty() || holder == me || unchanged >= duration
}

fn taken(before: Option<LeaseSpec>, me: &str) -> LeaseSpec {
    let now = Some(MicroTime(Timestamp::now()));
    let before = before.unwrap_or_default();
    let same = before.holder_identity.as_deref() == Some(me);
    LeaseSpec {
        acquire_time: if same { before.acquire_time } else { now.clone() },
        holder_identity: Some(me.into()),
        lease_duration_seconds: Some(DURATION.as_secs() as i32),
        lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(i32::from(!same))),
        renew_time: now,
        ..LeaseSpec::default()
    }
}

/// Its name, in the control plane's namespace.
const LEASE: &str = "gossamer-destination";
/// Source: client-go's leader election (15 s, 10 s, 2 s).
const DURATION: Duration = Duration::from_secs(15);
const GIVE_UP: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_ended() {
        let lease = |holder: &str| Lease { spec: Some(taken(None, holder)), ..Lease::default() };
        let at = Duration::from_secs;
        assert!(may_take(&Lease::default(), "a", at(0)));
        assert!(may_take(&lease(""), "a", at(0)));
        assert!(may_take(&lease("a"), "a", at(0)));
        assert!(!may_take(&lease("b"), "a", at(14)));
        assert!(may_take(&lease("b"), "a", at(15)));
    }

    #[test]
    fn transitions_count_new_holders_only() {
        let first = taken(None, "a");
        let again = taken(Some(first.clone()), "a");
        assert_eq!((again.lease_transitions, &again.acquire_time), (first.lease_transitions, &first.acquire_time));
        assert_eq!(taken(Some(again), "b").lease_transitions, Some(2));
    }
}
