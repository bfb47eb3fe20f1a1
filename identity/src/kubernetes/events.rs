//! Kubernetes events: what `kubectl describe` shows of certificates that were not issued, on the pod that asked (if its
//! token proves which) or on the service account.
//!
//! Anybody may ask for anybody's identity, so events are few: one a while for an identity and reason, and a rate for all.

use std::collections::HashMap;
use std::time::Duration;

use gossamer_api::process::stop::Stop;
use gossamer_api::workload::Identity;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::review::causes;
use crate::refusal::Refusal;
use crate::service::Failure;

/// Publishes events of this process.
pub fn recorder(client: Client) -> Recorder {
    // The pod's name, as Kubernetes sets it.
    let instance = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    Recorder::new(client, Reporter { controller: CONTROLLER.to_owned(), instance })
}

/// Makes events of failures, until the process stops.
pub async fn tell(recorder: Recorder, mut failures: mpsc::Receiver<Failure>, stop: Stop) {
    let mut seldom = Seldom::default();
    loop {
        let failure = tokio::select! {
            () = stop.stopping() => return,
            failure = failures.recv() => failure,
        };
        let Some(failure) = failure else { return };
        if !seldom.admit(&failure.identity, failure.refusal.reason(), Instant::now()) {
            continue;
        }
        let Some((event, about)) = event(&failure) else { continue };
        publish(&recorder, &event, &about).await;
    }
}

/// One event. A failure is only logged: the cause is in the log already.
pub async fn publish(recorder: &Recorder, event: &Event, about: &ObjectReference) {
    match tokio::time::timeout(PATIENCE, recorder.publish(event, about)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = causes(&error), "no event could be written"),
        Err(_) => tracing::debug!("no event could be written in time"),
    }
}

/// A warning about an object.
pub fn warning(reason: &str, action: &str, note: String) -> Event {
    Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        // The API server refuses longer ones.
        note: Some(note.chars().take(MAX_NOTE).collect()),
        action: action.to_owned(),
        secondary: None,
    }
}

fn event(failure: &Failure) -> Option<(Event, ObjectReference)> {
    // What can't be an object's name is nobody's fault in the cluster.
    if matches!(failure.refusal, Refusal::BadIdentity(_) | Refusal::ForeignIdentity { .. }) {
        return None;
    }
    let note = format!("no certificate for {}: {}", failure.identity, failure.refusal);
    // Proved before asked for: an event must not blame others.
    let proved = failure.caller.as_ref();
    let identity = proved.map_or(&failure.identity, |caller| &caller.identity);
    let (account, namespace, ..) = identity.parts()?;
    let (kind, name, uid) = match proved.and_then(|caller| caller.pod.as_ref()) {
        Some(pod) => ("Pod", pod.name.as_str(), Some(pod.uid.clone())),
        None => ("ServiceAccount", account, None),
    };
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        uid,
        ..ObjectReference::default()
    };
    Some((warning("CertificateRefused", "Certify", note), about))
}

/// How often a failure becomes an event. Bounded.
#[derive(Default)]
struct Seldom {
    told: HashMap<(Identity, &'static str), Instant>,
    /// When the bucket of all is full again (the generic cell rate algorithm).
    full: Option<Instant>,
}

impl Seldom {
    fn admit(&mut self, identity: &Identity, reason: &'static str, now: Instant) -> bool {
        self.told.retain(|_, at| now < *at + AGAIN);
        if self.told.len() >= MAX_TOLD || self.told.contains_key(&(identity.clone(), reason)) {
            return false;
        }
        let full = self.full.map_or(now, |full| full.max(now)) + EVERY;
        if full > now + EVERY * BURST {
            return false;
        }
        self.full = Some(full);
        self.told.insert((identity.clone(), reason), now);
        true
    }
}

/// Who says so.
const CONTROLLER: &str = "gossamer.io/identity";
/// The same failure, again. kubectl shows events for an hour.
const AGAIN: Duration = Duration::from_secs(300);
/// All failures together: a burst, then one each while.
const BURST: u32 = 25;
const EVERY: Duration = Duration::from_secs(2);
/// [`AGAIN`] and [`EVERY`] don't allow more.
const MAX_TOLD: usize = 200;
const MAX_NOTE: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Caller, Pod};

    fn id(account: &str) -> Identity {
        Identity::service_account(account, "demo", "gossamer", "cluster.local").unwrap()
    }

    #[test]
    fn an_event_is_about_who_is_proved() {
        let unproved = Failure { identity: id("web"), caller: None, refusal: Refusal::TokenRefused("expired".into()) };
        let (event_of, about) = event(&unproved).unwrap();
        assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("ServiceAccount"), Some("web")));
        assert_eq!(about.namespace.as_deref(), Some("demo"));
        assert!(event_of.note.unwrap().ends_with("Kubernetes refused the token: expired"));
        let pod = Some(Pod { name: "evil-1".into(), uid: "7".into() });
        let caller = Some(Caller { identity: id("evil"), pod });
        let proved = Failure { identity: id("web"), caller, refusal: Refusal::OthersToken(id("web")) };
        let (_, about) = event(&proved).unwrap();
        assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("Pod"), Some("evil-1")));
        let foreign = Refusal::ForeignIdentity { identity: id("web"), suffix: String::new() };
        assert!(event(&Failure { identity: id("web"), caller: None, refusal: foreign }).is_none());
    }

    #[test]
    fn many_failures_make_few_events() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        assert!(seldom.admit(&id("web"), "a", start));
        assert!(!seldom.admit(&id("web"), "a", start + AGAIN / 2), "told already");
        assert!(seldom.admit(&id("web"), "b", start), "another reason");
        let admitted = (0..1000).filter(|n| seldom.admit(&id(&format!("w{n}")), "a", start)).count();
        assert_eq!(admitted as u32, BURST - 2);
        let later = start + AGAIN + EVERY;
        assert!(seldom.admit(&id("web"), "a", later));
        let hour = (0..3600).filter(|n| seldom.admit(&id(&format!("x{n}")), "a", later + Duration::from_secs(*n)));
        assert!(hour.count() < 1850);
    }
}
